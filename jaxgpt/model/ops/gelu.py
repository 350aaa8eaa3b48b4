"""The exact GELU."""

import math

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Phi(x), computed in float32 with erf.

    `jax.nn.gelu` uses erfc, which costs twice as much on a CPU. Its accurate tail does not matter here.
    """
    x_f32 = x.astype(jnp.float32)
    return (0.5 * x_f32 * (1 + jax.lax.erf(x_f32 * math.sqrt(0.5)))).astype(x.dtype)
