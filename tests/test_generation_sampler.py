"""SamplingOptions: greedy text against a loop without a cache, and which tokens are drawn, how often and until when."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt.config import Config, Model
from jaxgpt.errors import ConfigError, NonFiniteError
from jaxgpt.generation import sampler
from jaxgpt.generation.options import SamplingOptions
from jaxgpt.generation.sampler import _mask_unlikely, draw_tokens, generate_tokens
from jaxgpt.model import gpt
from jaxgpt.training import step
from jaxgpt.training.loaded_model import LoadedModel

GPT2 = Model(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=64, bias=True, dtype="float32", attention="xla")
MODERN = dataclasses.replace(GPT2, architecture="modern", bias=False, n_kv_head=2, tie_embeddings=False)
SHALLOW = dataclasses.replace(GPT2, n_layer=1)
FIXED = dataclasses.replace(GPT2, n_layer=1, n_embd=4, vocab_size=8, tie_embeddings=False)
GREEDY = SamplingOptions(temperature=0.0)
PLAIN = SamplingOptions(temperature=1.0)
both_architectures = pytest.mark.parametrize("settings", [GPT2, MODERN], ids=["gpt2", "modern"])


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """Half the time to compile, and the same computations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def lively(settings: Model) -> step.Params:
    """Initial parameters with matrices five times as large, so that the next token depends on all before it."""
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(gpt.GPT(settings, rngs=nnx.Rngs(0)))))()
    return jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim >= 2 else leaf, params)


def always(logits: Any) -> step.Params:
    """Parameters of `FIXED` that give the same eight logits whatever they read."""
    params, first = lively(FIXED), jnp.array([1.0, 0, 0, 0])
    params["norm"] = {"scale": jnp.zeros(4), "bias": first}
    params["output"] = jnp.outer(jnp.array(logits, jnp.float32), first)
    return params


def continued(settings: Model, params: step.Params, prompt: Any, count: int, **options: Any) -> np.ndarray:
    options = {"vocab_size": settings.vocab_size, "sampling": PLAIN, **options}
    return generate_tokens(step.model_graphdef(settings), params, np.array(prompt), count, settings=settings, **options)


@partial(jax.jit, static_argnums=0)
def logits_of_all(settings: Model, params: step.Params, tokens_BxT: jax.Array) -> jax.Array:
    return nnx.merge(step.model_graphdef(settings), params)(tokens_BxT)


def slow_greedy(settings: Model, params: step.Params, prompt_BxP: np.ndarray, count: int) -> np.ndarray:
    """Every token from a full pass over what the model may see; a full block becomes its second half."""
    block, tokens, start = settings.block_size, prompt_BxP, 0
    for _ in range(count):
        if tokens.shape[1] - start >= block:
            start = tokens.shape[1] - block // 2
        seen = tokens[:, start:]
        filled = np.pad(seen, ((0, 0), (0, block - seen.shape[1])))
        logits_BxV = logits_of_all(settings, params, filled)[:, seen.shape[1] - 1]
        tokens = np.concatenate([tokens, np.argmax(logits_BxV, axis=-1)[:, None]], axis=1)
    return tokens[:, prompt_BxP.shape[1] :]


@both_architectures
@pytest.mark.parametrize(("prompt", "count"), [(5, 27), (16, 3)])
def test_greedy_text_is_the_argmax_of_full_passes(settings: Model, prompt: int, count: int) -> None:
    params, prompts = lively(settings), np.random.default_rng(0).integers(0, 64, (2, prompt))
    actual = continued(settings, params, prompts, count, sampling=GREEDY)
    np.testing.assert_array_equal(actual, slow_greedy(settings, params, prompts, count))


def slow_sampled(
    settings: Model, params: step.Params, prompt_BxP: np.ndarray, count: int, seed: int, sampling: SamplingOptions
) -> np.ndarray:
    """Draws with the keys of (seed, row, number) from full passes over everything before, without a cache."""
    tokens, first = prompt_BxP, prompt_BxP.shape[1]
    key = jax.random.fold_in(jax.random.key(seed), first)
    for number in range(count):
        filled = np.pad(tokens, ((0, 0), (0, settings.block_size - tokens.shape[1])))
        logits_BxV = logits_of_all(settings, params, filled)[:, tokens.shape[1] - 1]
        keys = [jax.random.fold_in(jax.random.fold_in(key, row), number) for row in range(len(tokens))]
        new_B = draw_tokens(logits_BxV[:, :60], jnp.stack(keys), sampling)
        tokens = np.concatenate([tokens, np.asarray(new_B)[:, None]], axis=1)
    return tokens[:, first:]


@both_architectures
@pytest.mark.parametrize("same", [True, False], ids=["one prompt", "several"])
def test_drawn_text_is_that_of_full_passes(settings: Model, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MIN_CACHE", 4)
    monkeypatch.setattr(sampler, "MIN_PROMPT", 4)
    sizes, grow = [], sampler._grow_cache
    monkeypatch.setattr(sampler, "_grow_cache", lambda size, state: sizes.append(size) or grow(size, state))
    settings, sampling = dataclasses.replace(settings, block_size=24), SamplingOptions(0.9, top_k=20)
    params, prompts = lively(settings), np.random.default_rng(1).integers(0, 60, (3, 5))
    prompts = np.tile(prompts[:1], (3, 1)) if same else prompts
    actual = continued(settings, params, prompts, 19, vocab_size=60, sampling=sampling, seed=7)
    np.testing.assert_array_equal(actual, slow_sampled(settings, params, prompts, 19, 7, sampling))
    assert sizes == [16, 24]


def test_texts_of_many_lengths_compile_two_programs() -> None:
    settings = dataclasses.replace(SHALLOW, block_size=32, n_embd=16)
    params = lively(settings)
    before = sampler._prefill._cache_size(), sampler._decode._cache_size()
    for length in (2, 9, 31):
        for count in (1, 32 - length):
            assert continued(settings, params, [[1] * length], count).shape == (1, count)
    assert (sampler._prefill._cache_size() - before[0], sampler._decode._cache_size() - before[1]) == (1, 1)


def test_shared_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, begin = [], sampler._prefill
    monkeypatch.setattr(sampler, "_prefill", lambda *given: read.append(len(given[4])) or begin(*given))
    params = lively(SHALLOW)
    continued(SHALLOW, params, [[1, 2, 3]] * 4, 2)
    continued(SHALLOW, params, [[1, 2, 3], [1, 2, 4]], 2)
    assert read == [1, 2]


def test_token_missing_from_the_tokenizer_is_never_sampled() -> None:
    params = always([0, 1, 2, 0, 0, 9, 9, 9])
    assert (continued(FIXED, params, [[0]], 10, vocab_size=5, sampling=GREEDY) == 2).all()
    tokens = continued(FIXED, params, [[0]] * 50, 10, vocab_size=5)
    assert set(np.unique(tokens)) == set(range(5))
    few = continued(FIXED, params, [[0]] * 50, 10, vocab_size=5, sampling=SamplingOptions(1.0, top_k=2))
    assert set(np.unique(few)) == {1, 2}


def test_seed_determines_the_text() -> None:
    params = lively(SHALLOW)
    first, again, other = (continued(SHALLOW, params, [[1, 2, 3]] * 2, 13, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_row_does_not_depend_on_the_number_of_rows() -> None:
    params = lively(SHALLOW)
    two, three = (continued(SHALLOW, params, [[1, 2, 3]] * rows, 13) for rows in (2, 3))
    np.testing.assert_array_equal(two, three[:2])
    assert (three[1] != three[2]).mean() > 0.5


def test_row_is_padded_after_its_stop_token() -> None:
    params, stop, count = always(np.zeros(8)), 3, 15 + 8  # a block, and the half that follows it
    free = continued(FIXED, params, [[stop]] * 6, count, seed=1)
    ended = continued(FIXED, params, [[stop]] * 6, count, seed=1, stop=stop)
    for row, unstopped in zip(ended, free, strict=True):
        length = list(unstopped).index(stop)
        np.testing.assert_array_equal(row, [*unstopped[:length], *[stop] * (count - length)])
    lengths = [list(row).index(stop) for row in ended]
    assert min(lengths) < 15 < max(lengths)


def test_nothing_is_drawn_after_the_last_row_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping, draws = always([0, 0, 0, 50, 0, 0, 0, 0]), []

    def counted(*arguments: Any) -> jax.Array:
        jax.debug.callback(lambda: draws.append(1))
        return draw_tokens(*arguments)

    monkeypatch.setattr(sampler, "draw_tokens", counted)
    actual = continued(FIXED, stopping, [[0]] * 2, 100, stop=3, vocab_size=7)
    jax.effects_barrier()
    assert (actual == 3).all()
    assert len(draws) == 1


def chi_square(tokens: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * tokens.size
    return float(((np.bincount(tokens.ravel(), minlength=len(expected)) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_each_temperature(temperature: float) -> None:
    logits = np.linspace(-1, 1, 8)
    tokens = continued(FIXED, always(logits), [[0]] * 300, 15, sampling=SamplingOptions(temperature))
    powers = np.exp(logits / temperature)
    assert chi_square(tokens, powers / powers.sum()) < 24.3  # one in a thousand at 7 degrees of freedom
    assert chi_square(tokens, np.full(8, 1 / 8)) > 24.3


def slow_keep(logits: np.ndarray, top_k: int, top_p: float) -> set[int]:
    """The top_k likeliest; of those the fewest likeliest whose probabilities, among them, sum up to top_p."""
    ranked = sorted(range(len(logits)), key=lambda v: -logits[v])[: top_k or None]
    powers = np.exp(np.float64(logits[ranked]))
    total, allowed = 0.0, set()
    for token, probability in zip(ranked, powers / powers.sum(), strict=True):
        if total < top_p:
            allowed.add(token)
        total += probability
    return allowed


@pytest.mark.parametrize("top_k", [0, 1, 5, 20, 99])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1.0])
def test_top_k_and_top_p_match_a_slow_reference(top_k: int, top_p: float) -> None:
    logits_BxV = 2 * np.random.default_rng(0).normal(size=(10, 20)).astype(np.float32)
    masked_BxV = np.asarray(_mask_unlikely(jnp.asarray(logits_BxV), SamplingOptions(1.0, top_k, top_p)))
    for row, allowed in zip(logits_BxV, masked_BxV, strict=True):
        assert set(np.flatnonzero(np.isfinite(allowed))) == slow_keep(row, top_k, top_p)
        np.testing.assert_array_equal(allowed[np.isfinite(allowed)], row[np.isfinite(allowed)])


def test_temperature_comes_before_top_p() -> None:
    """At temperature 1 two tokens hold 0.8 of the probability; at temperature 3 it takes all three."""
    logits_BxV, keys_B = jnp.log(jnp.array([[0.6, 0.3, 0.1]] * 500)), jax.random.split(jax.random.key(0), 500)
    assert set(np.unique(draw_tokens(logits_BxV, keys_B, SamplingOptions(1.0, top_p=0.8)))) == {0, 1}
    assert set(np.unique(draw_tokens(logits_BxV, keys_B, SamplingOptions(3.0, top_p=0.8)))) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 1e-30, 1e-38, 1e-44, 5e-324])
def test_tiny_temperature_takes_the_most_likely_token(temperature: float) -> None:
    logits_BxV = jax.random.normal(jax.random.key(0), (50, 20))
    actual = draw_tokens(logits_BxV, jax.random.split(jax.random.key(1), 50), SamplingOptions(temperature))
    np.testing.assert_array_equal(actual, np.argmax(logits_BxV, axis=-1))
    assert actual.dtype == jnp.int32


@pytest.mark.parametrize("sampling", [GREEDY, PLAIN, SamplingOptions(1.0, top_p=0.9)], ids=["greedy", "plain", "top-p"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nonfinite_logits_are_an_error(sampling: SamplingOptions, wrong: float) -> None:
    with pytest.raises(NonFiniteError, match="N002"):
        continued(FIXED, always([0, 1, wrong, 0, 0, 0, 0, 0]), [[0]] * 2, 3, sampling=sampling)


def test_samples_do_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, inner = [], sampler.generate_tokens
    monkeypatch.setattr(sampler, "generate_tokens", lambda *a, **how: sizes.append(len(a[2])) or inner(*a, **how))
    settings = dataclasses.replace(SHALLOW, vocab_size=256)
    graph, tokenizer = step.model_graphdef(settings), Bytes()
    loaded = LoadedModel(Config(model=settings), graph, lively(settings), tokenizer, None, 1)  # type: ignore[arg-type]
    at_once = list(sampler.generate_texts(loaded, "ab", count=20, samples=4, sampling=PLAIN))
    monkeypatch.setattr(sampler, "MAX_ROWS", 2)
    assert list(sampler.generate_texts(loaded, "ab", count=20, samples=4, sampling=PLAIN)) == at_once
    assert sizes == [4, 2, 2]
    assert len(set(at_once)) == 4


class Bytes:
    """A tokenizer whose tokens are bytes."""

    eot, vocab_size = None, 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("latin-1"))

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("latin-1")


@pytest.mark.parametrize("stop", [None, "e", "quite another"])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_streamed_text_is_the_same_text(count: int, stop: str | None) -> None:
    settings = dataclasses.replace(SHALLOW, vocab_size=256)
    graph, tokenizer = step.model_graphdef(settings), Bytes()
    loaded = LoadedModel(Config(model=settings), graph, lively(settings), tokenizer, None, 1)  # type: ignore[arg-type]
    pieces = list(sampler.stream_text(loaded, "ab", count=count, sampling=PLAIN, stop=stop))
    at_once = next(sampler.generate_texts(loaded, "ab", count=count, sampling=PLAIN, stop=stop))
    assert "".join(pieces) == at_once
    if count == 40 and stop is None:
        assert len(pieces) > 3


class Utf8(Bytes):
    """A tokenizer whose tokens are the bytes of UTF-8."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_half_a_character_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.frombuffer("aé→z".encode(), np.uint8)
    monkeypatch.setattr(sampler, "stream_tokens", lambda *_, **__: iter(row[:, None, None]))
    loaded = LoadedModel(Config(), None, None, Utf8(), None, 1)  # type: ignore[arg-type]
    assert list(sampler.stream_text(loaded, "a", count=9)) == ["a", "é", "→", "z"]


def test_a_part_of_the_stop_text_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.frombuffer("xaéz".encode(), np.uint8)
    monkeypatch.setattr(sampler, "stream_tokens", lambda *_, **__: iter(row[:, None, None]))
    loaded = LoadedModel(Config(), None, None, Utf8(), None, 1)  # type: ignore[arg-type]
    assert "".join(sampler.stream_text(loaded, "a", count=9, stop="aé")) == "x"


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="C009"):
        SamplingOptions(**wrong)
