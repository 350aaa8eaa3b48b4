"""Cross-entropy of a linear head without the full logits, with the gradient computed in the forward pass.

N tokens times V logits are by far the largest array of a small GPT (16 x 1,024 x 50,304 in float32: 3.3 GB). Here a
scan goes over chunks of tokens. Each chunk's logits become losses and, when a gradient is needed, immediately the
gradients of x and head. So nothing of size N x V ever exists, and no logits are computed twice.

    N tokens   M tokens of a chunk   C chunks   D width   V vocabulary
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.model.ops.logsumexp import log_sum_exp
from jaxgpt.model.ops.matmul import weight_grad

LossAndHeadGrad = tuple[jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def mean_loss(
    x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array, chunk: int, scale: jax.Array | None = None
) -> jax.Array:
    """The mean over tokens of -log softmax(x head^T)[target], a float32 scalar in nats.

    With `scale`, the gradient is that of `scale` times the loss; the value is not multiplied.

    `x_NxD` and `head_VxD` share a compute type, and logits are rounded to it too, as in other trainers: a GPU spends as
    long on reading and writing them as on all their products. Sums, exponentials, log-sum-exp and the head's gradient
    are float32.
    """
    return jnp.mean(token_losses(x_NxD, head_VxD, targets_N, chunk))


def token_losses(x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array, chunk: int) -> jax.Array:
    """-log softmax(x head^T)[target] of each token, float32 [N]. For evaluation; not differentiable."""

    def chunk_step(_: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        x_MxD, targets_M = xs
        logits_MxV = _logits(x_MxD, head_VxD, jnp.float32)
        return None, log_sum_exp(logits_MxV) - _target_logits(logits_MxV, targets_M)

    count = len(targets_N)
    _, losses_CxM = jax.lax.scan(chunk_step, None, _chunks(x_NxD, targets_N, chunk))
    return losses_CxM.reshape(-1)[:count]


def _forward(
    x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array, chunk: int, scale: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The mean loss, and its gradients with respect to x and head."""

    def chunk_step(
        carry: LossAndHeadGrad, xs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[LossAndHeadGrad, jax.Array]:
        loss, dhead_VxD = carry
        x_MxD, targets_M, weights_M = xs
        logits_MxV = _logits(x_MxD, head_VxD, x_MxD.dtype)
        lse_M = log_sum_exp(logits_MxV)
        loss += jnp.sum(weights_M * (lse_M - _target_logits(logits_MxV, targets_M)))
        one_hot_MxV = targets_M[:, None] == jnp.arange(logits_MxV.shape[1], dtype=targets_M.dtype)[None, :]
        probs_MxV = jnp.exp(logits_MxV.astype(jnp.float32) - lse_M[:, None])
        scales_M = weights_M if scale is None else weights_M * scale
        grad_MxV = ((probs_MxV - one_hot_MxV.astype(jnp.float32)) * scales_M[:, None]).astype(x_MxD.dtype)
        dhead_VxD += weight_grad(grad_MxV, x_MxD, jnp.float32)
        return (loss, dhead_VxD), jnp.einsum("mv,vd->md", grad_MxV, head_VxD)

    count = len(targets_N)
    x_CxMxD, targets_CxM = _chunks(x_NxD, targets_N, chunk)
    weights_CxM = jnp.where(jnp.arange(targets_CxM.size) < count, 1 / count, 0.0).reshape(targets_CxM.shape)
    start = (jnp.float32(0), jnp.zeros(head_VxD.shape, jnp.float32))
    (loss, dhead_VxD), dx_CxMxD = jax.lax.scan(chunk_step, start, (x_CxMxD, targets_CxM, weights_CxM))
    return loss, (dx_CxMxD.reshape(-1, x_NxD.shape[1])[:count], dhead_VxD)


def _backward(
    chunk: int, gradients: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    """Scales the gradients of the forward pass by the cotangent, which is 1 in training."""
    dx_NxD, dhead_VxD = gradients
    compute_type = dx_NxD.dtype  # the head's too
    return dx_NxD * cotangent.astype(compute_type), (dhead_VxD * cotangent).astype(compute_type), None, None


mean_loss.defvjp(_forward, _backward)


def _logits(x_MxD: jax.Array, head_VxD: jax.Array, dtype: Any) -> jax.Array:
    return jnp.einsum("md,vd->mv", x_MxD, head_VxD, preferred_element_type=dtype)


def _target_logits(logits_MxV: jax.Array, targets_M: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits_MxV, targets_M[:, None], axis=-1)[:, 0].astype(jnp.float32)


def _chunks(x_NxD: jax.Array, targets_N: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """The tokens in the fewest equal chunks of at most `chunk` tokens; zeros pad the last one."""
    count = -(-len(targets_N) // chunk)
    padding = -len(targets_N) % count
    x_NxD = jnp.pad(x_NxD, ((0, padding), (0, 0)))
    targets_N = jnp.pad(targets_N, (0, padding))
    return x_NxD.reshape(count, -1, x_NxD.shape[1]), targets_N.reshape(count, -1)
