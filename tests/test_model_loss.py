"""The chunked loss equals log-softmax of all logits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jaxprs import equations

from jaxgpt.model.loss import mean_loss, token_losses

pytestmark = pytest.mark.usefixtures("fast_compilation")

N, D, V = 22, 8, 40


def random_problem(count: int = N, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden vectors, a head and targets whose logits spread over some nats."""
    keys = jax.random.split(jax.random.key(0), 3)
    x_NxD, head_VxD = jax.random.normal(keys[0], (count, D)), jax.random.normal(keys[1], (V, D))
    return x_NxD.astype(dtype), head_VxD.astype(dtype), jax.random.randint(keys[2], (count,), 0, V)


def plain_losses(x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array) -> jax.Array:
    logits_NxV = x_NxD.astype(jnp.float32) @ head_VxD.astype(jnp.float32).T
    return -jax.nn.log_softmax(logits_NxV)[jnp.arange(len(targets_N)), targets_N]


def plain_mean(x_NxD: jax.Array, head_VxD: jax.Array, targets_N: jax.Array) -> jax.Array:
    return jnp.mean(plain_losses(x_NxD, head_VxD, targets_N))


def chunked_mean(chunk: int) -> Any:
    return lambda *arrays: mean_loss(*arrays, chunk)


def value_and_gradients(loss: Any, *arguments: jax.Array) -> list[np.ndarray]:
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arguments)
    return [np.asarray(array, np.float32) for array in (value, *gradients)]


def assert_close(actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    """Each array differs by at most `tolerance` of its counterpart's largest element."""
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("chunk", [1, 7, 11, N, 100], ids=lambda chunk: f"chunk {chunk} of {N}")
def test_loss_and_gradients_match_log_softmax_for_every_chunk(chunk: int) -> None:
    arguments = random_problem()
    actual = value_and_gradients(chunked_mean(chunk), *arguments)
    assert_close(actual, value_and_gradients(plain_mean, *arguments), 1e-5)
    assert_close([token_losses(*arguments, chunk)], [plain_losses(*arguments)], 1e-5)


def test_a_single_token() -> None:
    arguments = random_problem(count=1)
    actual = value_and_gradients(chunked_mean(4), *arguments)
    assert_close(actual, value_and_gradients(plain_mean, *arguments), 1e-5)


def test_bfloat16_rounds_logits_in_training_only() -> None:
    arguments = random_problem(dtype=jnp.bfloat16)
    actual = value_and_gradients(chunked_mean(7), *arguments)
    exact = value_and_gradients(plain_mean, *(array.astype(jnp.float32) for array in arguments[:2]), arguments[2])
    assert_close(actual[:1], exact[:1], 1e-3)
    assert_close(actual[1:], exact[1:], 1e-2)
    assert_close([jnp.mean(token_losses(*arguments, 7))], exact[:1], 1e-5)


def test_gradients_scale_with_the_cotangent_and_keep_their_types() -> None:
    x_NxD, head_VxD, targets_N = random_problem(dtype=jnp.bfloat16)
    _, pull = jax.vjp(lambda x, head: mean_loss(x, head, targets_N, 7), x_NxD, head_VxD)
    once, fourfold = pull(jnp.float32(1)), pull(jnp.float32(4))
    for one, four in zip(once, fourfold, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(4 * np.asarray(one, np.float32), np.asarray(four, np.float32))


@pytest.mark.parametrize("chunk", [4, 5, 21])
def test_padding_of_the_last_chunk_changes_nothing(chunk: int) -> None:
    arguments = random_problem(count=23)
    unpadded = value_and_gradients(chunked_mean(23), *arguments)
    assert_close(value_and_gradients(chunked_mean(chunk), *arguments), unpadded, 1e-6)


def test_huge_logits_stay_finite() -> None:
    x_NxD, head_VxD, targets_N = random_problem()
    actual = value_and_gradients(chunked_mean(7), 1e4 * x_NxD, head_VxD, targets_N)
    assert all(np.isfinite(array).all() for array in actual)


def equations_of_gradient(chunk: int, dtype: Any = jnp.float32) -> list[Any]:
    function = jax.value_and_grad(chunked_mean(chunk), (0, 1))
    return list(equations(jax.make_jaxpr(function)(*random_problem(dtype=dtype)).jaxpr))


def largest_array(chunk: int) -> int:
    return max(math.prod(variable.aval.shape) for each in equations_of_gradient(chunk) for variable in each.outvars)


def test_the_logits_of_all_tokens_never_exist_together() -> None:
    assert largest_array(chunk=N) == N * V
    assert largest_array(chunk=7) == V * max(7, D)  # a chunk's logits, or the head's gradient


def test_head_gradient_is_float32_and_logits_the_compute_type() -> None:
    products = [each for each in equations_of_gradient(11, jnp.bfloat16) if each.primitive.name == "dot_general"]
    types = {product.outvars[0].aval.shape: product.outvars[0].aval.dtype for product in products}
    # The gradient of the head appears twice: direct, and transposed for a CPU.
    head_grads = {(V, D): jnp.float32, (D, V): jnp.float32}
    assert types == {(11, V): jnp.bfloat16, (11, D): jnp.bfloat16, **head_grads}
