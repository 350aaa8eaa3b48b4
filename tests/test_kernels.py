"""Operations with a gradient of their own: value and gradient are those of the definition, in both compute types."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import kernels

SHAPES = [(40, 8, 24), (40, 24, 8), (1, 8, 8)]  # tokens, inputs, outputs: the gradient is turned around if O < I


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_gradient(function: Any, *arguments: jax.Array) -> tuple[jax.Array, ...]:
    """The value, and the pullback of a fixed random cotangent."""

    def both(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        value, pull = jax.vjp(function, *arguments)
        return value, *pull(jnp.asarray(normal(9, *value.shape), value.dtype))

    return jax.jit(both)(*arguments)


def distance(found: Any, exact: Any) -> float:
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_and_its_gradients_are_matrix_products(shape: tuple[int, int, int], dtype: str) -> None:
    tokens, inputs, outputs = shape
    x, kernel = (jnp.asarray(a, dtype) for a in (normal(0, tokens, inputs), normal(1, inputs, outputs)))
    dy = np.asarray(jnp.asarray(normal(9, tokens, outputs), dtype), np.float64)
    wide = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    exact = (wide[0] @ wide[1], dy @ wide[1].T, wide[0].T @ dy)
    for one, other in zip(with_gradient(kernels.product, x, kernel), exact, strict=True):
        assert one.dtype == dtype
        assert distance(one, other) < (1e-6 if dtype == "float32" else 0.004)  # half a unit in bfloat16's last place


def test_a_linear_layers_product_keeps_all_axes_but_the_last() -> None:
    x, kernel = normal(0, 2, 3, 8), normal(1, 8, 5)
    found = kernels.dot_general(jnp.float32(x), jnp.float32(kernel), (((2,), (0,)), ((), ())), precision=None)
    np.testing.assert_allclose(found, x @ kernel, rtol=1e-4, atol=1e-5)


def lowered(platform: str, inputs: int, outputs: int) -> str:
    x, y = (jax.ShapeDtypeStruct((64, size), jnp.float32) for size in (inputs, outputs))
    traced = jax.jit(lambda x, y: kernels.outer_sum(x, y, jnp.float32)).trace(x, y)
    return str(traced.lower(lowering_platforms=(platform,)).as_text())


def test_only_a_cpus_gradient_of_a_narrowing_matrix_is_turned_around() -> None:
    assert "optimization_barrier" in lowered("cpu", 32, 8)
    assert "optimization_barrier" not in lowered("cpu", 8, 32)
    assert "optimization_barrier" not in lowered("cuda", 32, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_x_times_the_normal_distribution_as_far_as_the_type_can_tell(dtype: str) -> None:
    x = jnp.linspace(-6, 6, 2001).astype(dtype)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in np.asarray(x, np.float64)])
    found = kernels.gelu(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(found, np.float64), exact, atol=1e-6, rtol=1e-6 if dtype == "float32" else 0.004
    )


def plain_attention(q_BxTxHxC: jax.Array, k_BxTxKxC: jax.Array, v_BxTxKxC: jax.Array) -> jax.Array:
    group = q_BxTxHxC.shape[2] // k_BxTxKxC.shape[2]
    k, v = (jnp.repeat(array, group, axis=2) for array in (k_BxTxKxC, v_BxTxKxC))
    scores = jnp.einsum("bthc,bshc->bhts", q_BxTxHxC, k) / math.sqrt(q_BxTxHxC.shape[-1])
    seen = jnp.tri(q_BxTxHxC.shape[1], dtype=bool)
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1), v)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("time", "kv_heads"), [(1, 4), (2, 1), (5, 2), (11, 1), (16, 2)])
def test_attention_and_its_gradient_are_those_of_the_definition(time: int, kv_heads: int, dtype: str) -> None:
    arrays = [2 * normal(i, 2, time, heads, 8) for i, heads in enumerate((4, kv_heads, kv_heads))]
    rounded = [jnp.asarray(array, dtype) for array in arrays]
    exact = with_gradient(plain_attention, *(array.astype(jnp.float32) for array in rounded))
    for one, other in zip(with_gradient(kernels.attend, *rounded), exact, strict=True):
        assert one.dtype == dtype
        error = float(jnp.abs(one.astype(jnp.float32) - other).max() / jnp.abs(exact[0]).max())
        assert error < (1e-5 if dtype == "float32" else 0.06)
