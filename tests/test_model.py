"""The network: its size, its start, what a position may see, and that each way through it gives the same numbers."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import oracle
from jax.extend.core import jaxprs_in_params

from jaxgpt.config import Config, Model, model_size
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError
from jaxgpt.model import gpt
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py"))
GPT2 = Model(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=64, bias=True, dtype="float32", attention="xla")
GPT2_TANH = dataclasses.replace(GPT2, activation="gelu_tanh", bias=False, n_inner=48)
MODERN = dataclasses.replace(GPT2, architecture="modern", bias=False, n_kv_head=2, head_dim=16, tie_embeddings=False)
SOFTMAX = ("reduce_max", "exp", "reduce_sum", "div")
both_architectures = pytest.mark.parametrize("settings", [GPT2, MODERN], ids=["gpt2", "modern"])


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """Half the time to compile, and the same computations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def initial(settings: Model) -> step.Params:
    return jax.jit(lambda: nnx.to_pure_dict(nnx.state(gpt.GPT(settings, rngs=nnx.Rngs(0)))))()


def lively(settings: Model) -> step.Params:
    """Initial parameters with matrices five times as large, so that attention is far from uniform."""
    return jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim >= 2 else leaf, initial(settings))


@partial(jax.jit, static_argnums=0)
def logits(settings: Model, params: step.Params, tokens_BxT: jax.Array, keys_B: Any = None) -> jax.Array:
    return nnx.merge(step.graph(settings), params)(tokens_BxT, keys_B=keys_B)


@partial(jax.jit, static_argnums=0)
def read_on(settings: Model, params: step.Params, tokens_BxT: jax.Array, cache: gpt.KVCache) -> Any:
    """The logits after tokens that follow those in a cache, and the cache that holds both."""
    network = nnx.merge(step.graph(settings), params)
    x_BxTxD, cache = network.hidden(tokens_BxT, cache=cache)
    return network.logits(x_BxTxD), cache


def some_tokens(settings: Model, batch: int = 2) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (batch, settings.block_size), 0, settings.vocab_size)


def abstract_parameters(cfg: Config) -> step.Params:
    return jax.eval_shape(partial(step.init_state, cfg, optim.make(cfg.optim, cfg.run.steps))).params


def size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", NAMES)
def test_budget_counts_every_configs_parameters(name: str) -> None:
    cfg = load_config(name)
    cfg = cfg.replace({"model": {"dtype": "float32", "attention": "xla"}})
    params = abstract_parameters(cfg)
    positions = cfg.model.block_size * cfg.model.n_embd if cfg.model.architecture == "gpt2" else 0
    assert size(params.get("positions", {})) == positions
    assert size(params) == model_size.parameters(cfg.model) + positions
    outside = size(params["tokens"]) + size(params.get("output", {})) + positions
    assert size(params) - outside == model_size.non_embedding_parameters(cfg.model)


@both_architectures
def test_budget_counts_biases_grouped_heads_and_an_untied_head(settings: Model) -> None:
    positions = settings.block_size * settings.n_embd if settings.architecture == "gpt2" else 0
    assert size(abstract_parameters(Config(model=settings))) == model_size.parameters(settings) + positions


def test_the_reference_run_has_40_56_million_parameters_and_300_megaflops_a_token() -> None:
    reference, modern = load_config("fineweb40m").model, load_config("fineweb40m_modern").model
    width, layers, block, vocabulary = 384, 12, 1024, 50304
    blocks = layers * (12 * width * width + 2 * width) + width
    assert model_size.non_embedding_parameters(reference) == blocks == 21_243_264
    assert model_size.parameters(reference) == blocks + vocabulary * width == 40_560_000
    assert model_size.flops_per_token(reference) == 6 * 40_560_000 + 12 * layers * width * block == 299_983_104
    assert model_size.parameters(modern) == pytest.approx(40_560_000, rel=0.01)


@both_architectures
def test_no_position_feels_a_later_one(settings: Model) -> None:
    """The slope of every position's logits along every position's embedding is zero exactly where it must be."""
    settings = dataclasses.replace(settings, vocab_size=256)
    prose_T, ids_T = jnp.array([*b"None sees later."]), jnp.arange(settings.block_size)
    params = lively(settings)
    table_VxD = params["tokens"]["embedding"]

    def outlook(x_TxD: jax.Array) -> jax.Array:
        """The sum of each position's logits, for ids that have these embeddings and logits that do not use them."""
        tokens = {"embedding": table_VxD.at[ids_T].set(x_TxD)}
        return logits(settings, {**params, "tokens": tokens}, ids_T[None])[0, :, len(ids_T) :].sum(axis=-1)

    slopes_TxTxD = jax.jacobian(outlook)(table_VxD[prose_T])
    np.testing.assert_array_equal(np.abs(slopes_TxTxD).max(axis=-1) > 0, np.tri(len(ids_T), dtype=bool))


@pytest.mark.parametrize("settings", [GPT2, GPT2_TANH, MODERN], ids=["gpt2", "gpt2 with tanh", "modern"])
def test_logits_are_those_of_a_network_written_apart(settings: Model) -> None:
    params, tokens_BxT = lively(settings), some_tokens(settings)
    expected = oracle.logits(params, dataclasses.asdict(settings), np.asarray(tokens_BxT))
    np.testing.assert_allclose(logits(settings, params, tokens_BxT), expected, atol=1e-5 * np.abs(expected).max())


@both_architectures
@pytest.mark.parametrize("chunks", [(16,), (1,) * 16, (5, 1, 1, 4, 5)], ids=["at once", "singly", "mixed"])
def test_reading_with_a_cache_gives_the_logits_of_reading_without_one(settings: Model, chunks: tuple[int, ...]) -> None:
    params, tokens_BxT = lively(settings), some_tokens(settings)
    cache, found = gpt.KVCache.create(settings, 2, settings.block_size + 3), []
    for chunk_BxT in np.split(np.asarray(tokens_BxT), np.cumsum(chunks)[:-1], axis=1):
        logits_BxTxV, cache = read_on(settings, params, chunk_BxT, cache)
        found.append(logits_BxTxV)
    assert int(cache.length) == settings.block_size
    expected = logits(settings, params, tokens_BxT)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-5 * np.abs(expected).max())


@both_architectures
def test_initialisation_is_nanogpts(settings: Model) -> None:
    settings = dataclasses.replace(settings, n_embd=128, head_dim=32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(initial(settings)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name.endswith(("scale", "bias")):
            assert (leaf == (1 if name.endswith("scale") else 0)).all(), name
        else:
            residual = name.endswith(("out.kernel", "down.kernel"))
            std = 0.02 / math.sqrt(2 * settings.n_layer) if residual else 0.02
            assert abs(float(jnp.std(leaf)) / std - 1) < 5 / math.sqrt(2 * leaf.size), name  # five standard errors
            assert abs(float(jnp.mean(leaf))) < 5 * std / math.sqrt(leaf.size), name


def test_no_two_matrices_start_alike() -> None:
    leaves = [leaf.ravel()[:100] for leaf in jax.tree.leaves(initial(MODERN)) if leaf.ndim >= 2]
    correlations = np.corrcoef(np.stack(leaves)) - np.eye(len(leaves))
    assert np.abs(correlations).max() < 0.5  # five standard errors of 100 pairs


@both_architectures
def test_the_exact_attention_path_is_the_plain_one_but_for_its_dropout(settings: Model) -> None:
    settings = dataclasses.replace(settings, n_layer=1)
    params, tokens_BxT, keys_B = lively(settings), some_tokens(settings), jax.random.split(jax.random.key(0))
    tiny, half = (dataclasses.replace(settings, attention_dropout=rate) for rate in (1e-9, 0.5))
    plain = logits(settings, params, tokens_BxT)
    np.testing.assert_allclose(logits(tiny, params, tokens_BxT, keys_B), plain, atol=1e-5)
    np.testing.assert_array_equal(logits(half, params, tokens_BxT), plain)
    assert not np.allclose(logits(half, params, tokens_BxT, keys_B), plain, atol=1e-2)


def test_attention_dropout_keeps_the_mean_of_its_output() -> None:
    settings = dataclasses.replace(MODERN, attention_dropout=0.5)
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 8, heads, 16)) for i, heads in enumerate((4, 2, 2)))
    attend = lambda keys_B: gpt.attend(q, k, v, settings, keys_B)  # noqa: E731
    draws = jax.jit(jax.vmap(attend))(jax.random.split(jax.random.key(9), (1000, 1)))
    error = jnp.std(draws, axis=0) / math.sqrt(len(draws))
    assert (jnp.abs(jnp.mean(draws, axis=0) - attend(None)) < 6 * error).all()  # six standard errors


def test_grouped_heads_are_repeated_heads() -> None:
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 8, heads, 16)) for i, heads in enumerate((4, 2, 2)))
    attend = jax.jit(lambda k, v: gpt.attend(q, k, v, MODERN, None))
    np.testing.assert_allclose(attend(k, v), attend(*(np.repeat(array, 2, axis=2) for array in (k, v))), atol=1e-6)


@partial(jax.jit, static_argnums=0)
def value_and_pullback(function: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
    value, pull = jax.vjp(function, q, k, v)
    return value, *pull(q)


@pytest.mark.parametrize(("time", "dtype"), [(1, "float32"), (3, "float32"), (5, "float32"), (8, "bfloat16")])
def test_attention_in_parts_is_jaxs_own_at_every_length(time: int, dtype: str) -> None:
    heads = enumerate((4, 2, 2))
    q, k, v = (jax.random.normal(jax.random.key(i), (2, time, count, 16), jnp.dtype(dtype)) for i, count in heads)
    found = value_and_pullback(partial(gpt.attend, settings=MODERN, keys_B=None), q, k, v)
    jaxs = partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
    for one, other in zip(found, value_and_pullback(jaxs, q, k, v), strict=True):
        assert one.dtype == other.dtype == q.dtype
        tolerance = 1e-5 if dtype == "float32" else 0.05
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), atol=tolerance)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_scores_and_their_softmax_are_float32_in_bfloat16_attention() -> None:
    q, k, v = (jnp.zeros((2, 8, heads, 16), jnp.bfloat16) for heads in (4, 2, 2))
    attend = partial(gpt.attend, settings=MODERN, keys_B=None)
    found = list(equations(jax.make_jaxpr(attend)(q, k, v).jaxpr))
    types = {name: {each.invars[0].aval.dtype for each in found if each.primitive.name == name} for name in SOFTMAX}
    assert types == {name: {jnp.dtype("float32")} for name in SOFTMAX}


def rotated_scores(first_place: int) -> jax.Array:
    """q k^T of eight positions from `first_place` on."""
    q, k = (jax.random.normal(jax.random.key(i), (1, 8, 1, 16)) for i in range(2))
    q, k = (gpt.rotate(array, first_place + jnp.arange(8), 10_000.0) for array in (q, k))
    return jnp.einsum("bthc,bshc->ts", q, k)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    np.testing.assert_allclose(rotated_scores(0), rotated_scores(500), atol=1e-3)  # float32 angles of about 500
    q = jnp.ones((1, 8, 1, 16))
    turned = gpt.rotate(q, jnp.arange(8), 10_000.0)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(turned[:, 0], q[:, 0])
    assert not np.allclose(turned[:, 1], turned[:, 2], atol=0.1)


@both_architectures
def test_bfloat16_logits_come_in_float32_and_near_float32s(settings: Model) -> None:
    half, tokens_BxT = dataclasses.replace(settings, dtype="bfloat16"), some_tokens(settings)
    params = lively(settings)
    found, exact = logits(half, params, tokens_BxT), logits(settings, params, tokens_BxT)
    assert found.dtype == jnp.float32
    assert float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)) < 0.03


def test_an_older_gpu_than_ampere_has_no_cudnn_attention() -> None:
    assert gpt.resolve(Model(), "gpu", "7.5").attention == "xla"
    assert gpt.resolve(Model(), "gpu", "8.0").attention == "cudnn"
    with pytest.raises(ConfigError, match="compute capability 8"):
        gpt.resolve(Model(attention="cudnn"), "gpu", "7.5")


def resolved(platform: str, **changes: Any) -> tuple[str, str]:
    settings = gpt.resolve(Model(**changes), platform)
    return settings.dtype, settings.attention


def test_auto_is_bfloat16_and_cudnn_on_a_gpu_and_float32_and_xla_on_a_cpu() -> None:
    assert resolved("gpu") == ("bfloat16", "cudnn")
    assert resolved("cpu") == ("float32", "xla")
    assert resolved("gpu", dtype="float32") == ("float32", "xla")
    assert resolved("gpu", attention="xla") == ("bfloat16", "xla")
    assert resolved("cpu", dtype="bfloat16") == ("bfloat16", "xla")
    assert resolved("gpu", head_dim=136) == resolved("gpu", head_dim=20) == ("bfloat16", "xla")
    assert resolved("gpu", head_dim=128, attention="cudnn") == ("bfloat16", "cudnn")


@pytest.mark.parametrize(
    ("platform", "changes", "reason"),
    [
        ("cpu", {}, "the device is a cpu"),
        ("gpu", {"dtype": "float32"}, "bfloat16, not float32"),
        ("gpu", {"head_dim": 20}, "head size 20"),
        ("gpu", {"head_dim": 136}, "head size 136"),
    ],
)
def test_cudnn_is_refused_with_the_reason_where_it_cannot_run(
    platform: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        gpt.resolve(Model(attention="cudnn", **changes), platform)
    assert "C023" in str(caught.value)
