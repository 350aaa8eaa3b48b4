"""LayerNorm and RMSNorm with a custom VJP, and the row statistics they need.

N tokens   D width
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Residuals = tuple[Any, ...]
Moments = tuple[jax.Array, jax.Array, jax.Array]  # count, mean, sum of squared deviations


def norm(
    x_xD: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, epsilon: float, *, subtract_mean: bool
) -> jax.Array:
    """LayerNorm (Ba et al. 2016) over the last axis, or RMSNorm (Zhang & Sennrich 2019) without `subtract_mean`.

    Sums are float32 whatever the type of `x`. The result has the type of `x`.
    """
    y_NxD = _norm(x_xD.reshape(-1, x_xD.shape[-1]), scale_D, bias_D, epsilon, subtract_mean)
    return y_NxD.reshape(x_xD.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _norm(
    x_NxD: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, epsilon: float, subtract_mean: bool
) -> jax.Array:
    return _norm_forward(x_NxD, scale_D, bias_D, epsilon, subtract_mean)[0]


def _norm_forward(
    x_NxD: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, epsilon: float, subtract_mean: bool
) -> tuple[jax.Array, Residuals]:
    x_f32_NxD = x_NxD.astype(jnp.float32)
    if subtract_mean:
        mean_N, variance_N = moments(x_f32_NxD)
    else:
        mean_N = jnp.zeros(len(x_NxD))
        variance_N = mean_square(x_f32_NxD)
    rstd_N = jax.lax.rsqrt(variance_N + epsilon)
    y_NxD = (x_f32_NxD - mean_N[:, None]) * rstd_N[:, None] * scale_D[None]
    y_NxD = y_NxD if bias_D is None else y_NxD + bias_D[None]
    return y_NxD.astype(x_NxD.dtype), (x_NxD, mean_N, rstd_N, scale_D, bias_D)


def _norm_backward(
    _epsilon: float, subtract_mean: bool, residuals: Residuals, dy_NxD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x_NxD, mean_N, rstd_N, scale_D, bias_D = residuals
    dy_f32_NxD = dy_NxD.astype(jnp.float32)
    xhat_NxD = (x_NxD.astype(jnp.float32) - mean_N[:, None]) * rstd_N[:, None]
    grad_NxD = dy_f32_NxD * scale_D[None]
    mean_grad_xhat_N = jnp.mean(grad_NxD * xhat_NxD, axis=1)
    mean_grad_N = jnp.mean(grad_NxD, axis=1) if subtract_mean else jnp.zeros_like(mean_grad_xhat_N)
    dx_NxD = (grad_NxD - mean_grad_N[:, None] - xhat_NxD * mean_grad_xhat_N[:, None]) * rstd_N[:, None]
    dscale_D = jnp.sum(dy_f32_NxD * xhat_NxD, axis=0).astype(scale_D.dtype)
    dbias_D = None if bias_D is None else jnp.sum(dy_f32_NxD, axis=0).astype(bias_D.dtype)
    return dx_NxD.astype(x_NxD.dtype), dscale_D, dbias_D


_norm.defvjp(_norm_forward, _norm_backward)


def moments(x_NxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean and the variance of each row, [N] each, of float32 rows.

    A GPU computes both in one pass, in the kernel that makes the row, and keeps them for the backward pass. The barrier
    enforces this: if they were recomputed there, they would end a fusion, and the gradient of the scale would be
    written out in float32. A CPU fuses better without it.
    """

    def two_pass(x_NxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean_N = jnp.mean(x_NxD, axis=1)
        return mean_N, jnp.mean(jnp.square(x_NxD - mean_N[:, None]), axis=1)

    def one_pass(x_NxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        single_samples = (jnp.ones_like(x_NxD), x_NxD, jnp.zeros_like(x_NxD))
        _, *mean_and_square = jax.lax.reduce(single_samples, (jnp.float32(0),) * 3, _merge_moments, (1,))
        mean_N, square_N = jax.lax.optimization_barrier(mean_and_square)
        return mean_N, square_N / x_NxD.shape[1]

    mean_and_variance: tuple[jax.Array, jax.Array] = jax.lax.platform_dependent(x_NxD, cpu=two_pass, default=one_pass)
    return mean_and_variance


def _merge_moments(a: Moments, b: Moments) -> Moments:
    """Count, mean and sum of squared deviations of the union of two samples (Chan et al. 1983).

    Unlike the mean of squares minus the square of the mean, it stays accurate if the mean is large beside the spread.
    """
    count_a, mean_a, square_a = a
    count_b, mean_b, square_b = b
    count = count_a + count_b
    fraction_b = jnp.where(count > 0, count_b / count, 0.0)
    delta = mean_b - mean_a
    return count, mean_a + delta * fraction_b, square_a + square_b + delta * (delta * (count_a * fraction_b))


def mean_square(x_NxD: jax.Array) -> jax.Array:
    """The mean square of each row, [N], which a GPU keeps for the backward pass (see `moments`)."""
    square_N = jnp.mean(jnp.square(x_NxD), axis=1)
    kept_N: jax.Array = jax.lax.platform_dependent(
        square_N, cpu=lambda square_N: square_N, default=jax.lax.optimization_barrier
    )
    return kept_N
