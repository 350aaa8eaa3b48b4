"""The network: size, initialization, causality, and equal logits from the oracle and the KV cache."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import oracle

from jaxgpt.config import Config, Model, model_size
from jaxgpt.config.files import built_in_configs, load_config
from jaxgpt.model.backend import compute_dtype
from jaxgpt.model.gpt import GPT
from jaxgpt.model.kv_cache import KVCache
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step

pytestmark = pytest.mark.usefixtures("fast_compilation")

CONFIG_NAMES = built_in_configs()
GPT2 = Model(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=64, bias=True, dtype="float32", attention="xla")
GPT2_TANH = dataclasses.replace(GPT2, activation="gelu_tanh", bias=False, n_inner=48)
MODERN = dataclasses.replace(GPT2, architecture="modern", bias=False, n_kv_head=2, head_dim=16, tie_embeddings=False)
both_architectures = pytest.mark.parametrize("settings", [GPT2, MODERN], ids=["gpt2", "modern"])


def init_params(settings: Model) -> step.Params:
    return jax.jit(lambda: nnx.to_pure_dict(nnx.state(GPT(settings, rngs=nnx.Rngs(0)))))()


def params_with_large_matrices(settings: Model) -> step.Params:
    """Initial parameters with matrices five times as large, so that attention is far from uniform."""
    return jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim >= 2 else leaf, init_params(settings))


def empty_cache(settings: Model, batch: int, size: int) -> KVCache:
    layer = jnp.zeros((batch, settings.kv_heads, size, settings.head_size), compute_dtype(settings))
    layers = (layer,) * settings.n_layer
    return KVCache(layers, layers, jnp.int32(0))


@partial(jax.jit, static_argnums=0)
def logits(settings: Model, params: step.Params, tokens_BxT: jax.Array, rngs_B: Any = None) -> jax.Array:
    return nnx.merge(step.model_graphdef(settings), params)(tokens_BxT, rngs_B=rngs_B)


@partial(jax.jit, static_argnums=0)
def extend_cache(settings: Model, params: step.Params, tokens_BxT: jax.Array, cache: KVCache) -> Any:
    """The logits after tokens that follow those in a cache, and the cache that holds both."""
    network = nnx.merge(step.model_graphdef(settings), params)
    x_BxTxD, cache = network.hidden(tokens_BxT, cache=cache)
    return network.logits(x_BxTxD), cache


def random_tokens(settings: Model, batch: int = 2) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (batch, settings.block_size), 0, settings.vocab_size)


def abstract_parameters(config: Config) -> step.Params:
    return jax.eval_shape(partial(step.init_state, config, optim.make_optimizer(config))).params


def size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_parameter_count_of_every_config(name: str) -> None:
    config = load_config(name)
    config = config.replace({"model": {"dtype": "float32", "attention": "xla"}})
    params = abstract_parameters(config)
    positions = config.model.block_size * config.model.n_embd if config.model.architecture == "gpt2" else 0
    assert size(params.get("positions", {})) == positions
    assert size(params) == model_size.parameters(config.model) + positions
    outside = size(params["tokens"]) + size(params.get("output", {})) + positions
    assert size(params) - outside == model_size.non_embedding_parameters(config.model)


@both_architectures
def test_parameter_count_with_biases_gqa_and_untied_head(settings: Model) -> None:
    positions = settings.block_size * settings.n_embd if settings.architecture == "gpt2" else 0
    assert size(abstract_parameters(Config(model=settings))) == model_size.parameters(settings) + positions


def test_parameters_and_flops_of_the_reference_config() -> None:
    reference, modern = load_config("fineweb40m").model, load_config("fineweb40m_modern").model
    width, layers, block, vocabulary = 384, 12, 1024, 50304
    blocks = layers * (12 * width * width + 2 * width) + width
    assert model_size.non_embedding_parameters(reference) == blocks == 21_243_264
    assert model_size.parameters(reference) == blocks + vocabulary * width == 40_560_000
    assert model_size.flops_per_token(reference) == 6 * 40_560_000 + 12 * layers * width * block == 299_983_104
    assert model_size.parameters(modern) == pytest.approx(40_560_000, rel=0.01)


@both_architectures
def test_attention_is_causal(settings: Model) -> None:
    """The gradient of the logits at t with respect to the embedding at s is zero exactly where s > t."""
    settings = dataclasses.replace(settings, vocab_size=256)
    text_T, ids_T = jnp.array([*b"None sees later."]), jnp.arange(settings.block_size)
    params = params_with_large_matrices(settings)
    table_VxD = params["tokens"]["embedding"]

    def summed_logits(x_TxD: jax.Array) -> jax.Array:
        """The sum of the logits at each position, without those of the ids whose embeddings are given."""
        tokens = {"embedding": table_VxD.at[ids_T].set(x_TxD)}
        return logits(settings, {**params, "tokens": tokens}, ids_T[None])[0, :, len(ids_T) :].sum(axis=-1)

    grads_TxTxD = jax.jacobian(summed_logits)(table_VxD[text_T])
    np.testing.assert_array_equal(np.abs(grads_TxTxD).max(axis=-1) > 0, np.tri(len(ids_T), dtype=bool))


@pytest.mark.parametrize("settings", [GPT2, GPT2_TANH, MODERN], ids=["gpt2", "gpt2 with tanh", "modern"])
def test_logits_match_the_oracle(settings: Model) -> None:
    params, tokens_BxT = params_with_large_matrices(settings), random_tokens(settings)
    expected = oracle.logits(params, dataclasses.asdict(settings), np.asarray(tokens_BxT))
    np.testing.assert_allclose(logits(settings, params, tokens_BxT), expected, atol=1e-5 * np.abs(expected).max())


@both_architectures
@pytest.mark.parametrize("chunks", [(16,), (1,) * 16, (5, 1, 1, 4, 5)], ids=["all", "single tokens", "mixed"])
def test_kv_cache_does_not_change_logits(settings: Model, chunks: tuple[int, ...]) -> None:
    params, tokens_BxT = params_with_large_matrices(settings), random_tokens(settings)
    cache = empty_cache(settings, 2, settings.block_size + 3)
    outputs = []
    for chunk_BxT in np.split(np.asarray(tokens_BxT), np.cumsum(chunks)[:-1], axis=1):
        logits_BxTxV, cache = extend_cache(settings, params, chunk_BxT, cache)
        outputs.append(logits_BxTxV)
    assert int(cache.length) == settings.block_size
    expected = logits(settings, params, tokens_BxT)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, atol=1e-5 * np.abs(expected).max())


@both_architectures
def test_initialization_is_nanogpts(settings: Model) -> None:
    settings = dataclasses.replace(settings, n_embd=128, head_dim=32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(init_params(settings)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name.endswith(("scale", "bias")):
            assert (leaf == (1 if name.endswith("scale") else 0)).all(), name
        else:
            residual = name.endswith(("out.kernel", "down.kernel"))
            std = 0.02 / math.sqrt(2 * settings.n_layer) if residual else 0.02
            assert abs(float(jnp.std(leaf)) / std - 1) < 5 / math.sqrt(2 * leaf.size), name  # five standard errors
            assert abs(float(jnp.mean(leaf))) < 5 * std / math.sqrt(leaf.size), name


def test_initial_matrices_are_uncorrelated() -> None:
    leaves = [leaf.ravel()[:100] for leaf in jax.tree.leaves(init_params(MODERN)) if leaf.ndim >= 2]
    correlations = np.corrcoef(np.stack(leaves)) - np.eye(len(leaves))
    assert np.abs(correlations).max() < 0.5  # five standard errors of 100 pairs


@both_architectures
def test_attention_dropout_changes_only_training_logits(settings: Model) -> None:
    settings = dataclasses.replace(settings, n_layer=1)
    params, tokens_BxT, rngs_B = (
        params_with_large_matrices(settings),
        random_tokens(settings),
        jax.random.split(jax.random.key(0)),
    )
    tiny, half = (dataclasses.replace(settings, attention_dropout=rate) for rate in (1e-9, 0.5))
    plain = logits(settings, params, tokens_BxT)
    np.testing.assert_allclose(logits(tiny, params, tokens_BxT, rngs_B), plain, atol=1e-5)
    np.testing.assert_array_equal(logits(half, params, tokens_BxT), plain)
    assert not np.allclose(logits(half, params, tokens_BxT, rngs_B), plain, atol=1e-2)


@both_architectures
def test_bfloat16_logits_are_float32_and_close_to_exact(settings: Model) -> None:
    half, tokens_BxT = dataclasses.replace(settings, dtype="bfloat16"), random_tokens(settings)
    params = params_with_large_matrices(settings)
    actual, exact = logits(half, params, tokens_BxT), logits(settings, params, tokens_BxT)
    assert actual.dtype == jnp.float32
    assert float(jnp.linalg.norm(actual - exact) / jnp.linalg.norm(exact)) < 0.03
