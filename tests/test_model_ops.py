"""Functions with a custom VJP: value and gradient equal those of the definition, in both compute types."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model.ops.causal_attention import causal_attention
from jaxgpt.model.ops.dropout import dropout_mask
from jaxgpt.model.ops.gelu import gelu
from jaxgpt.model.ops.logsumexp import group_size, log_sum_exp
from jaxgpt.model.ops.matmul import dot_general, matmul, matmul_split, weight_grad
from jaxgpt.model.ops.norm import moments, norm

SHAPES = [(40, 8, 24), (40, 24, 8), (1, 8, 8)]  # tokens, inputs, outputs: the gradient is transposed if O < I


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_gradient(function: Any, *arguments: jax.Array) -> tuple[jax.Array, ...]:
    """The value, and the pullback of a fixed random cotangent."""

    def both(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        value, pull = jax.vjp(function, *arguments)
        return value, *pull(jnp.asarray(normal(9, *value.shape), value.dtype))

    return jax.jit(both)(*arguments)


@pytest.fixture(params=["cpu", "gpu"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Selects the code path of a platform: that for a GPU also runs on a CPU, only slower."""
    if request.param == "gpu":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, default, **_: default(*arrays))
    return str(request.param)


def relative_error(actual: Any, exact: Any) -> float:
    actual, exact = np.asarray(actual, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(actual - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matmul_and_its_gradients_match_numpy(shape: tuple[int, int, int], dtype: str) -> None:
    tokens, inputs, outputs = shape
    x, kernel = (jnp.asarray(a, dtype) for a in (normal(0, tokens, inputs), normal(1, inputs, outputs)))
    dy = np.asarray(jnp.asarray(normal(9, tokens, outputs), dtype), np.float64)
    wide = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    exact = (wide[0] @ wide[1], dy @ wide[1].T, wide[0].T @ dy)
    for one, other in zip(with_gradient(matmul, x, kernel), exact, strict=True):
        assert one.dtype == dtype
        assert relative_error(one, other) < (
            1e-6 if dtype == "float32" else 0.004
        )  # half a unit in bfloat16's last place


def test_dot_general_keeps_the_leading_axes() -> None:
    x, kernel = normal(0, 2, 3, 8), normal(1, 8, 5)
    actual = dot_general(jnp.float32(x), jnp.float32(kernel), (((2,), (0,)), ((), ())), precision=None)
    np.testing.assert_allclose(actual, x @ kernel, rtol=1e-4, atol=1e-5)


def lowered(platform: str, inputs: int, outputs: int) -> str:
    x, y = (jax.ShapeDtypeStruct((64, size), jnp.float32) for size in (inputs, outputs))
    traced = jax.jit(lambda x, y: weight_grad(x, y, jnp.float32)).trace(x, y)
    return str(traced.lower(lowering_platforms=(platform,)).as_text())


def test_only_a_cpu_transposes_a_narrowing_matrix_gradient() -> None:
    assert "optimization_barrier" in lowered("cpu", 32, 8)
    assert "optimization_barrier" not in lowered("cpu", 8, 32)
    assert "optimization_barrier" not in lowered("cuda", 32, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_x_times_the_normal_cdf(dtype: str) -> None:
    x = jnp.linspace(-6, 6, 2001).astype(dtype)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in np.asarray(x, np.float64)])
    actual = gelu(x)
    assert actual.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), exact, atol=1e-6, rtol=1e-6 if dtype == "float32" else 0.004
    )


def plain_attention(q_BxTxHxC: jax.Array, k_BxTxKxC: jax.Array, v_BxTxKxC: jax.Array) -> jax.Array:
    group = q_BxTxHxC.shape[2] // k_BxTxKxC.shape[2]
    k, v = (jnp.repeat(array, group, axis=2) for array in (k_BxTxKxC, v_BxTxKxC))
    scores = jnp.einsum("bthc,bshc->bhts", q_BxTxHxC, k) / math.sqrt(q_BxTxHxC.shape[-1])
    seen = jnp.tri(q_BxTxHxC.shape[1], dtype=bool)
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1), v)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("time", "kv_heads"), [(1, 4), (2, 1), (5, 2), (11, 1), (16, 2)])
def test_attention_and_its_gradient_match_the_definition(time: int, kv_heads: int, dtype: str) -> None:
    arrays = [2 * normal(i, 2, time, heads, 8) for i, heads in enumerate((4, kv_heads, kv_heads))]
    rounded = [jnp.asarray(array, dtype) for array in arrays]
    exact = with_gradient(plain_attention, *(array.astype(jnp.float32) for array in rounded))
    for one, other in zip(with_gradient(causal_attention, *rounded), exact, strict=True):
        assert one.dtype == dtype
        error = float(jnp.abs(one.astype(jnp.float32) - other).max() / jnp.abs(exact[0]).max())
        assert error < (1e-5 if dtype == "float32" else 0.06)


def plain_norm(x: Any, scale: Any, bias: Any, epsilon: float, *, subtract_mean: bool) -> Any:
    x = x - x.mean(-1, keepdims=True) if subtract_mean else x
    normed = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return normed * scale[None, None] + (0 if bias is None else bias[None, None])


@pytest.mark.parametrize("offset", [0.0, 20.0, 3000.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("subtract_mean", "biased"), [(True, False), (True, True), (False, False)])
def test_norm_and_its_gradients_match_the_definition(
    subtract_mean: bool, biased: bool, dtype: str, offset: float, platform: str
) -> None:
    x = jnp.asarray(normal(0, 2, 7, 24) * 3 + offset, dtype)
    scale, bias = jnp.float32(normal(1, 24)), jnp.float32(normal(2, 24)) if biased else None
    arguments = (x, scale, bias) if biased else (x, scale)

    def norm_of(x: jax.Array, scale: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        return norm(x, scale, bias, 1e-5, subtract_mean=subtract_mean)

    actual = with_gradient(norm_of, *arguments)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(array, np.float64)) for array in arguments]
        dy = np.asarray(jnp.asarray(normal(9, *x.shape), dtype), np.float64)
        value, pull = jax.vjp(lambda x, s, b=None: plain_norm(x, s, b, 1e-5, subtract_mean=subtract_mean), *wide)
        exact = (value, *pull(jnp.asarray(dy)))
    bound = 1e-6 + 1e-7 * offset if dtype == "float32" else 0.006  # an offset may cost only the last bits of the mean
    for one, other, like in zip(actual, exact, (x, *arguments), strict=True):
        assert one.dtype == like.dtype
        assert relative_error(one, other) < bound


def test_norm_of_nearly_constant_rows_stays_accurate(platform: str) -> None:
    """The mean of squares minus the square of the mean is 0 or negative here and would give up to 3 million."""
    rows = np.full((4, 768), [[1000.3], [1e6], [0.0], [12345.6]], np.float32)
    rows[1, 5] *= 1.01
    rows[3, 700] *= 1.01
    actual = np.asarray(norm(jnp.asarray(rows), jnp.ones(768), None, 1e-5, subtract_mean=True))
    exact = rows.astype(np.float64)
    exact -= exact.mean(1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(actual[1:], exact[1:], atol=0.02)
    assert np.abs(actual[0]).max() < 0.5  # all equal, but their mean in float32 is off by some last bits


def test_only_a_gpu_keeps_the_sums_of_a_norm_for_the_gradient() -> None:
    function = jax.jit(lambda x, scale: norm(x, scale, None, 1e-5, subtract_mean=True))
    traced = function.trace(jax.ShapeDtypeStruct((64, 32), jnp.bfloat16), jax.ShapeDtypeStruct((32,), jnp.float32))
    barriers = [
        str(traced.lower(lowering_platforms=(p,)).as_text()).count("optimization_barrier") for p in ("cpu", "cuda")
    ]
    assert barriers == [0, 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [5, 80])
def test_matmul_split_equals_splitting_the_product(tokens: int, dtype: str, platform: str) -> None:
    x, kernel = (jnp.asarray(a, dtype) for a in (normal(0, tokens, 8), normal(1, 8, 40)))
    sizes = (24, 8, 8)

    def joined(x: jax.Array, kernel: jax.Array) -> jax.Array:
        parts = matmul_split(x, kernel, sizes)
        assert [part.shape for part in parts] == [(tokens, size) for size in sizes]
        return jnp.concatenate(parts, axis=1)

    for one, other in zip(with_gradient(joined, x, kernel), with_gradient(matmul, x, kernel), strict=True):
        assert one.dtype == other.dtype
        assert relative_error(one, other) < (1e-6 if dtype == "float32" else 0.004)


def test_a_gpu_computes_one_product_per_part_for_many_rows() -> None:
    def products(platform: str, tokens: int) -> int:
        shapes = (tokens, 8), (8, 24)
        traced = jax.jit(lambda x, k: matmul_split(x, k, (8, 8, 8))).trace(
            *(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
        )
        return str(traced.lower(lowering_platforms=(platform,)).as_text()).count("stablehlo.dot_general")

    assert [products(*case) for case in (("cpu", 64), ("cuda", 64), ("cuda", 4))] == [1, 3, 1]


@pytest.mark.parametrize("count", [1, 7, 257, 640, 50257, 50304])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_sum_exp_at_any_size_and_scale(count: int, dtype: str, platform: str) -> None:
    scales = np.array([[1], [30], [3000], [1e-3], [0]])
    logits = jnp.asarray(normal(0, 5, count) * scales + np.array([[0], [-50], [2000], [-1e4], [5]]), dtype)
    wide = np.asarray(logits, np.float64)
    peak = wide.max(1, keepdims=True)
    exact = (peak + np.log(np.exp(wide - peak).sum(1, keepdims=True)))[:, 0]
    actual = log_sum_exp(logits)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, exact, rtol=3e-7, atol=3e-6)


def test_log_sum_exp_of_infinities_and_nan(platform: str) -> None:
    inf, lowest = np.inf, np.finfo(np.float32).min
    rows = [[1, inf, 2, 0], [-inf, 1, -inf, 1], [-inf] * 4, [1, np.nan, 2, 3], [lowest] * 4, [3e38, -3e38, 0, 1]]
    actual = log_sum_exp(jnp.float32(rows))
    np.testing.assert_allclose(actual, [inf, 1 + math.log(2), -inf, np.nan, lowest, 3e38], rtol=1e-6)


def test_group_size_allows_vector_loads() -> None:
    assert [group_size(count) for count in (50304, 4096, 128, 50257, 100)] == [384, 1024, 128, 50257, 100]


def draw_masks(keep_prob: float, rows: int = 8, shape: tuple[int, ...] = (256, 96), seed: int = 0) -> np.ndarray:
    return np.asarray(dropout_mask(jax.random.split(jax.random.key(seed), rows), keep_prob, shape))


@pytest.mark.parametrize("keep_prob", [0.1, 0.5, 0.9])
def test_masks_have_their_probability_along_every_axis(keep_prob: float) -> None:
    actual = draw_masks(keep_prob, rows=64)
    assert actual.shape == (64, 256, 96)
    assert actual.dtype == bool
    for axes in ((1, 2), (0, 2), (0, 1), (0, 1, 2)):
        count = math.prod(actual.shape[axis] for axis in axes)
        z = (actual.mean(axes) - keep_prob) / math.sqrt(keep_prob * (1 - keep_prob) / count)
        assert np.abs(z).max() < 4.5
        assert z.size < 10 or 0.75 < z.std() < 1.25


def test_neighboring_elements_and_keys_are_uncorrelated() -> None:
    actual = draw_masks(0.5, rows=32).reshape(32, -1)
    signs = actual * 2.0 - 1
    for lag in (1, 2, 3, 7, 32, 64, 95, 96, 97, 128, 1024, 4096):
        assert abs((signs[:, lag:] * signs[:, :-lag]).mean()) * math.sqrt(signs[:, lag:].size) < 4.5
    between = signs @ signs.T / math.sqrt(signs.shape[1])
    others = between[~np.eye(32, dtype=bool)]
    assert np.abs(others).max() < 4.8
    assert 0.85 < others.std() < 1.15
    fours = actual[:, : actual.shape[1] // 4 * 4].reshape(-1, 4) @ [1, 2, 4, 8]
    counts = np.bincount(fours, minlength=16)
    assert (((counts - counts.mean()) ** 2) / counts.mean()).sum() < 45  # chi-square with 15 degrees: 1 in 13,000


def test_keys_that_differ_by_one_bit_are_uncorrelated() -> None:
    """With the same second half, keys whose first halves differ by d use the numbers of element p at element p ^ d."""
    flips = [1 << bit for bit in range(32)]
    words = [[5, 9], [9, 5], *([5 ^ flip, 9] for flip in flips), *([5, 9 ^ flip] for flip in flips)]
    keys = jax.random.wrap_key_data(jnp.uint32(words + [[5 ^ flip, 9 ^ flip] for flip in flips]))
    signs = np.asarray(dropout_mask(keys, 0.5, (64, 96))).reshape(len(keys), -1) * 2.0 - 1
    assert np.abs(signs[1:] @ signs[0]).max() / math.sqrt(signs.shape[1]) < 4.5


def test_a_mask_depends_on_its_own_key_and_0_and_1_are_exact() -> None:
    keys = jax.random.split(jax.random.key(3), 4)
    full = np.asarray(dropout_mask(keys, 0.9, (5, 6)))
    np.testing.assert_array_equal(np.asarray(dropout_mask(keys[2:3], 0.9, (5, 6)))[0], full[2])
    assert draw_masks(1.0).all()
    assert not draw_masks(0.0).any()


@pytest.mark.parametrize("number", [0.0, 1e-30, 3e19])
def test_moments_of_constant_rows_are_finite(number: float, platform: str) -> None:
    mean_N, square_N = moments(jnp.full((2, 24), number, jnp.float32))
    np.testing.assert_allclose(mean_N, number, rtol=1e-6)
    assert np.isfinite(square_N).all()
