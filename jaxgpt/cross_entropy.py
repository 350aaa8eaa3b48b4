"""Cross-entropy of a linear head without the full logits, and with its gradient made on the way forward.

N tokens times V logits are by far the largest array of a small GPT (16 x 1,024 x 50,304 in float32: 3.3 GB). Here a
scan goes over chunks of tokens; each chunk's logits become losses and, when a gradient is wanted, at once the
gradients of x and head. So nothing of size N x V ever exists and no logits are computed twice.

    N tokens   M tokens of a chunk   D width   V vocabulary
"""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def mean_loss(x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array, chunk: int) -> jax.Array:
    """The mean over tokens of -log softmax(x head^T)[target], a float32 scalar in nats.

    `x_NxD` and `head_VxD` share a compute type; logits, log-sum-exp and the head's gradient are float32.
    """
    return jnp.mean(losses(x_NxD, head_VxD, targets_N, chunk))


def losses(x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array, chunk: int) -> jax.Array:
    """-log softmax(x head^T)[target] of each token, float32 [N]. Not meant to be differentiated."""

    def of_chunk(_: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        x_MxD, targets_M = xs
        logits_MxV = _logits(x_MxD, head_VxD)
        return None, jax.nn.logsumexp(logits_MxV, axis=-1) - _picked(logits_MxV, targets_M)

    count = len(targets_N)
    _, losses_CxM = jax.lax.scan(of_chunk, None, _chunks(x_NxD, targets_N, chunk))
    return losses_CxM.reshape(-1)[:count]


def _forward(
    x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array, chunk: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    count = len(targets_N)

    def of_chunk(
        carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        total, dhead_VxD = carry
        x_MxD, targets_M, weight_M = xs
        logits_MxV = _logits(x_MxD, head_VxD)
        lse_M = jax.nn.logsumexp(logits_MxV, axis=-1)
        total += jnp.sum(weight_M * (lse_M - _picked(logits_MxV, targets_M)))
        one_MxV = targets_M[:, None] == jnp.arange(logits_MxV.shape[1], dtype=targets_M.dtype)[None, :]
        slope_MxV = (jnp.exp(logits_MxV - lse_M[:, None]) - one_MxV.astype(jnp.float32)) * weight_M[:, None]
        slope_MxV = slope_MxV.astype(x_MxD.dtype)
        dhead_VxD += jnp.einsum("mv,md->vd", slope_MxV, x_MxD, preferred_element_type=jnp.float32)
        return (total, dhead_VxD), jnp.einsum("mv,vd->md", slope_MxV, head_VxD)

    chunks = _chunks(x_NxD, targets_N, chunk)
    weights_CxM = (jnp.arange(chunks[1].size) < count).astype(jnp.float32).reshape(chunks[1].shape)
    start = (jnp.float32(0), jnp.zeros(head_VxD.shape, jnp.float32))
    (total, dhead_VxD), dx_CxMxD = jax.lax.scan(of_chunk, start, (*chunks, weights_CxM))
    return total / count, (dx_CxMxD.reshape(-1, x_NxD.shape[1])[:count], dhead_VxD)


def _backward(
    chunk: int, gradients: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    """The sum's gradients, scaled to the mean's: dividing here keeps the small slopes clear of bfloat16's underflow."""
    dx_NxD, dhead_VxD = gradients
    scale = cotangent / len(dx_NxD)
    head_type = dx_NxD.dtype  # x and head share their type
    return (dx_NxD.astype(jnp.float32) * scale).astype(dx_NxD.dtype), (dhead_VxD * scale).astype(head_type), None


mean_loss.defvjp(_forward, _backward)


def _logits(x_MxD: jax.Array, head_VxD: jax.Array) -> jax.Array:
    return jnp.einsum("md,vd->mv", x_MxD, head_VxD, preferred_element_type=jnp.float32)


def _picked(logits_MxV: jax.Array, targets_M: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits_MxV, targets_M[:, None], axis=-1)[:, 0]


def _chunks(x_NxD: jax.Array, targets_N: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """The tokens in chunks of `chunk`, the last one filled up with zeros."""
    chunk = min(chunk, len(targets_N))
    missing = -len(targets_N) % chunk
    x_NxD = jnp.pad(x_NxD, ((0, missing), (0, 0)))
    targets_N = jnp.pad(targets_N, (0, missing))
    return x_NxD.reshape(-1, chunk, x_NxD.shape[1]), targets_N.reshape(-1, chunk)
