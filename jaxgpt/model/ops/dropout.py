"""Dropout whose masks depend on one random key per sequence.

B sequences
"""

import math

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, rngs_B: jax.Array | None) -> jax.Array:
    """`x` [B, ...] with a fraction `rate` of its elements zeroed and the rest scaled up; `x` itself without keys.

    The mask of a sequence depends on its own key alone, so it is the same in any micro-batch and on any device.
    """
    if rngs_B is None or rate == 0:
        return x
    mask = dropout_mask(rngs_B, 1 - rate, x.shape[1:])
    # Scaled in float32: the bfloat16 nearest to 0.9 would enlarge every branch by 0.2 %.
    return jnp.where(mask, x.astype(jnp.float32) / (1 - rate), 0.0).astype(x.dtype)


def dropout_mask(rngs_B: jax.Array, keep_prob: float, shape: tuple[int, ...]) -> jax.Array:
    """A boolean mask [B, *shape], True with probability `keep_prob`, at most 2^32 elements per sequence.

    Each element's index is hashed twice, with half of the sequence's key before and half after. These are about 20
    integer operations, which hide behind the memory traffic of the fused kernel. Threefry takes about 80 and would not.
    """
    words_Bx2 = jax.random.key_data(rngs_B)
    first, second = (words_Bx2[:, i].reshape(-1, *(1,) * len(shape)) for i in (0, -1))
    indices = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(1, *shape)
    threshold = jnp.uint32(min(round(keep_prob * 2**32), 2**32 - 1))
    mask: jax.Array = _hash(_hash(indices ^ first) ^ second) < threshold
    return mask


def _hash(x: jax.Array) -> jax.Array:
    """A permutation of uint32 with low bias: lowbias32 of Chris Wellons's hash prospector (2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
