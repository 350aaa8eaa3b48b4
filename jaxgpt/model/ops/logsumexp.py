"""log-sum-exp of logits. Not differentiable: the loss has a custom VJP.

M tokens of a chunk   V vocabulary   G groups   S logits of a group
"""

import jax
import jax.numpy as jnp

FLOAT32_MIN = -3.4028235e38


def log_sum_exp(logits_MxV: jax.Array) -> jax.Array:
    """log sum exp(logits) over the last axis, float32 [M]."""
    logits_MxV = logits_MxV.astype(jnp.float32)

    def two_pass(logits_MxV: jax.Array) -> jax.Array:
        lse_M: jax.Array = jax.nn.logsumexp(logits_MxV, axis=-1)
        return lse_M

    lse_M: jax.Array = jax.lax.platform_dependent(logits_MxV, cpu=two_pass, default=log_sum_exp_one_pass)
    return lse_M


def log_sum_exp_one_pass(logits_MxV: jax.Array) -> jax.Array:
    """log sum exp(logits) over the last axis, float32 [M], reading the logits once with a running maximum.

    The method is that of Milakov & Gimelshein (2018). Logits are reduced in groups first, whose size lets the threads
    of a GPU load several numbers at a time. XLA would split 50,304 logits into 128 groups of 393 and load one by one.
    """
    groups_MxGxS = logits_MxV.reshape(len(logits_MxV), -1, group_size(logits_MxV.shape[1]))
    start = (jnp.float32(FLOAT32_MIN), jnp.float32(0))  # finite, because -inf - (-inf) is NaN
    peaks_and_sums = (groups_MxGxS, jnp.ones_like(groups_MxGxS))
    for _ in range(2):
        peaks_and_sums = jax.lax.reduce(peaks_and_sums, start, _merge_logsumexp, (peaks_and_sums[0].ndim - 1,))
    peak_M, sum_M = peaks_and_sums
    return jnp.where(jnp.isposinf(peak_M), peak_M, peak_M + jnp.log(sum_M))


def group_size(vocab_size: int) -> int:
    """The largest multiple of 128 up to 1,024 that divides `vocab_size`, or `vocab_size` if there is none."""
    return next((size for size in range(1024, 0, -128) if vocab_size % size == 0), vocab_size)


def _merge_logsumexp(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The union of two sums of exponentials, each given as (peak, sum / exp(peak))."""
    peak_a, sum_a = a
    peak_b, sum_b = b
    peak = jnp.maximum(peak_a, peak_b)
    return peak, sum_a * jnp.exp(peak_a - peak) + sum_b * jnp.exp(peak_b - peak)
