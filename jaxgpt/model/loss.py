"""Cross-entropy of a linear head without the full logits, and with its gradient made on the way forward.

N tokens times V logits are by far the largest array of a small GPT (16 x 1,024 x 50,304 in float32: 3.3 GB). Here a
scan goes over chunks of tokens; each chunk's logits become losses and, when a gradient is wanted, at once the
gradients of x and head. So nothing of size N x V ever exists and no logits are computed twice.

    N tokens   M tokens of a chunk   D width   V vocabulary
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.model import ops


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def mean_loss(x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array, chunk: int) -> jax.Array:
    """The mean over tokens of -log softmax(x head^T)[target], a float32 scalar in nats.

    `x_NxD` and `head_VxD` share a compute type, in which the logits are rounded too, as other trainers have them: a GPU
    spends as long on reading and writing them as on all their products. Sums, exponentials, log-sum-exp and the head's
    gradient are float32.
    """
    return jnp.mean(losses(x_NxD, head_VxD, targets_N, chunk))


def losses(x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array, chunk: int) -> jax.Array:
    """-log softmax(x head^T)[target] of each token, float32 [N]. Not meant to be differentiated."""

    def of_chunk(_: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        x_MxD, targets_M = xs
        logits_MxV = _logits(x_MxD, head_VxD, jnp.float32)
        return None, ops.log_sum_exp(logits_MxV) - _picked(logits_MxV, targets_M)

    count = len(targets_N)
    _, losses_CxM = jax.lax.scan(of_chunk, None, _chunks(x_NxD, targets_N, chunk))
    return losses_CxM.reshape(-1)[:count]


def _forward(
    x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array, chunk: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    def of_chunk(
        carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        loss, dhead_VxD = carry
        x_MxD, targets_M, weight_M = xs
        logits_MxV = _logits(x_MxD, head_VxD, x_MxD.dtype)
        lse_M = ops.log_sum_exp(logits_MxV)
        loss += jnp.sum(weight_M * (lse_M - _picked(logits_MxV, targets_M)))
        one_MxV = targets_M[:, None] == jnp.arange(logits_MxV.shape[1], dtype=targets_M.dtype)[None, :]
        chance_MxV = jnp.exp(logits_MxV.astype(jnp.float32) - lse_M[:, None])
        slope_MxV = ((chance_MxV - one_MxV.astype(jnp.float32)) * weight_M[:, None]).astype(x_MxD.dtype)
        dhead_VxD += ops.outer_sum(slope_MxV, x_MxD, jnp.float32)
        return (loss, dhead_VxD), jnp.einsum("mv,vd->md", slope_MxV, head_VxD)

    count = len(targets_N)
    x_CxMxD, targets_CxM = _chunks(x_NxD, targets_N, chunk)
    weights_CxM = jnp.where(jnp.arange(targets_CxM.size) < count, 1 / count, 0.0).reshape(targets_CxM.shape)
    start = (jnp.float32(0), jnp.zeros(head_VxD.shape, jnp.float32))
    (loss, dhead_VxD), dx_CxMxD = jax.lax.scan(of_chunk, start, (x_CxMxD, targets_CxM, weights_CxM))
    return loss, (dx_CxMxD.reshape(-1, x_NxD.shape[1])[:count], dhead_VxD)


def _backward(
    chunk: int, gradients: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    """The gradients are those of the mean already: all that is left is the cotangent, which is 1 in training."""
    dx_NxD, dhead_VxD = gradients
    compute_type = dx_NxD.dtype  # the head's too
    return dx_NxD * cotangent.astype(compute_type), (dhead_VxD * cotangent).astype(compute_type), None


mean_loss.defvjp(_forward, _backward)


def _logits(x_MxD: jax.Array, head_VxD: jax.Array, dtype: Any) -> jax.Array:
    return jnp.einsum("md,vd->mv", x_MxD, head_VxD, preferred_element_type=dtype)


def _picked(logits_MxV: jax.Array, targets_M: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits_MxV, targets_M[:, None], axis=-1)[:, 0].astype(jnp.float32)


def _chunks(x_NxD: jax.Array, targets_N: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """The tokens in as few chunks of at most `chunk` as they need, all of one size; zeros fill up the last."""
    count = -(-len(targets_N) // chunk)
    missing = -len(targets_N) % count
    x_NxD = jnp.pad(x_NxD, ((0, missing), (0, 0)))
    targets_N = jnp.pad(targets_N, (0, missing))
    return x_NxD.reshape(count, -1, x_NxD.shape[1]), targets_N.reshape(count, -1)
