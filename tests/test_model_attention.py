"""Causal attention and RoPE: each implementation equals the definition."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jaxprs import equations

from jaxgpt.config import Model
from jaxgpt.model.attention import attend
from jaxgpt.model.gpt import apply_rope

pytestmark = pytest.mark.usefixtures("fast_compilation")

MODERN = Model(n_head=4, n_kv_head=2, n_embd=32, head_dim=16, architecture="modern", dtype="float32", attention="xla")
SOFTMAX = ("reduce_max", "exp", "reduce_sum", "div")


def test_attention_dropout_preserves_the_mean() -> None:
    settings = dataclasses.replace(MODERN, attention_dropout=0.5)
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 8, heads, 16)) for i, heads in enumerate((4, 2, 2)))
    attend_with = partial(attend, q, k, v, settings)
    draws = jax.jit(jax.vmap(attend_with))(jax.random.split(jax.random.key(9), (1000, 1)))
    error = jnp.std(draws, axis=0) / math.sqrt(len(draws))
    assert (jnp.abs(jnp.mean(draws, axis=0) - attend_with(None)) < 6 * error).all()  # six standard errors


def test_grouped_query_attention_repeats_heads() -> None:
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 8, heads, 16)) for i, heads in enumerate((4, 2, 2)))
    attend_to = jax.jit(lambda k, v: attend(q, k, v, MODERN, None))
    repeated = [np.repeat(array, 2, axis=2) for array in (k, v)]
    np.testing.assert_allclose(attend_to(k, v), attend_to(*repeated), atol=1e-6)


@partial(jax.jit, static_argnums=0)
def value_and_pullback(function: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
    value, pull = jax.vjp(function, q, k, v)
    return value, *pull(q)


@pytest.mark.parametrize(("time", "dtype"), [(1, "float32"), (3, "float32"), (5, "float32"), (8, "bfloat16")])
def test_chunked_attention_matches_jax_at_every_length(time: int, dtype: str) -> None:
    heads = enumerate((4, 2, 2))
    q, k, v = (jax.random.normal(jax.random.key(i), (2, time, count, 16), jnp.dtype(dtype)) for i, count in heads)
    actual = value_and_pullback(partial(attend, config=MODERN, rngs_B=None), q, k, v)
    reference = partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
    for one, other in zip(actual, value_and_pullback(reference, q, k, v), strict=True):
        assert one.dtype == other.dtype == q.dtype
        tolerance = 1e-5 if dtype == "float32" else 0.05
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), atol=tolerance)


def test_softmax_is_float32_in_bfloat16_attention() -> None:
    q, k, v = (jnp.zeros((2, 8, heads, 16), jnp.bfloat16) for heads in (4, 2, 2))
    causal = partial(attend, config=MODERN, rngs_B=None)
    all_equations = list(equations(jax.make_jaxpr(causal)(q, k, v).jaxpr))
    types = {
        name: {each.invars[0].aval.dtype for each in all_equations if each.primitive.name == name} for name in SOFTMAX
    }
    assert types == {name: {jnp.dtype("float32")} for name in SOFTMAX}


def rope_scores(first_position: int) -> jax.Array:
    """q k^T of eight positions starting at `first_position`."""
    q, k = (jax.random.normal(jax.random.key(i), (1, 8, 1, 16)) for i in range(2))
    q, k = (apply_rope(array, first_position + jnp.arange(8), 10_000.0) for array in (q, k))
    return jnp.einsum("bthc,bshc->ts", q, k)


def test_rope_scores_depend_on_distance_alone() -> None:
    np.testing.assert_allclose(rope_scores(0), rope_scores(500), atol=1e-3)  # float32 angles of about 500
    q = jnp.ones((1, 8, 1, 16))
    rotated = apply_rope(q, jnp.arange(8), 10_000.0)
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(rotated[:, 0], q[:, 0])
    assert not np.allclose(rotated[:, 1], rotated[:, 2], atol=0.1)
