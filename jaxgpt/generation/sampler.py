"""Generates text with a trained model.

The prompt is read in one pass (prefill); each further token takes one step of a jitted loop against the KV cache.
Prompts are padded to a power of two and the cache doubles when it is full, so that a process compiles a handful of
programs for all lengths, and attention reads little more than the tokens that exist. Ids that the tokenizer does not
have are never sampled.

    B rows   P prompt   S capacity of the cache   D width   V vocabulary
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt import config
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import NonFiniteError
from jaxgpt.generation.options import SamplingOptions
from jaxgpt.model.backend import compute_dtype
from jaxgpt.model.kv_cache import KVCache
from jaxgpt.training.loaded_model import LoadedModel
from jaxgpt.training.step import cast_matrices

MIN_PROMPT = 32  # tokens that a prompt is padded to
MIN_CACHE = 256  # positions, unless the text ends sooner: a smaller cache would not pay for compiling more programs
CACHE_STEP = 64  # the cache of a short text is rounded up to a multiple
PIECE_TOKENS = 8  # that appear at a time while a text is streamed
MAX_ROWS = 64  # samples at a time: each has its own cache
MIN_TEMPERATURE = 1e-30  # logits divided by a smaller one would not be finite
NOT_FINITE_TOKEN = -1  # marks a token that cannot be drawn, so that the host does not wait for each token
DEFAULT_SAMPLING = SamplingOptions()
EARLIER_CHECKPOINT = "use an earlier checkpoint: --step best, or --step N"


def generate_tokens(
    graphdef: Any,
    params: Any,
    prompt_BxP: np.ndarray,
    count: int,
    *,
    settings: config.Model,
    vocab_size: int,
    sampling: SamplingOptions = DEFAULT_SAMPLING,
    seed: int = 0,
    stop: int | None = None,
    first_row: int = 0,
) -> np.ndarray:
    """`count` tokens after each row of `prompt_BxP`, as [B, count]; a row is padded with `stop` after its first `stop`.

    Whenever the text fills the model's block, the second half of the block becomes the new prompt. The draws of row b
    depend on (seed, first_row + b) alone, not on the number of rows. Raises `NonFiniteError` N002 if the model's logits
    are not finite.
    """
    spec = DecodeSpec(graphdef, settings, vocab_size, sampling, stop)
    pieces = list(stream_tokens(spec, params, prompt_BxP, count, seed=seed, first_row=first_row, piece=count))
    return _pad_after_stop(np.concatenate([*pieces, np.zeros((len(prompt_BxP), 0), np.int32)], axis=1), count, stop)


def stream_tokens(
    spec: "DecodeSpec",
    params: Any,
    prompt_BxP: np.ndarray,
    count: int,
    *,
    seed: int,
    first_row: int = 0,
    piece: int = PIECE_TOKENS,
) -> Iterator[np.ndarray]:
    """The tokens of `generate_tokens`, at most `piece` columns at a time, until every row has stopped."""
    block = spec.settings.block_size
    tokens = np.asarray(prompt_BxP, np.int32)
    prompt_length = tokens.shape[1]
    rows_B = np.arange(first_row, first_row + len(tokens))
    params = _cast(params, spec.settings)  # once, not in every step of the loop
    while tokens.shape[1] < prompt_length + count:
        context = tokens if tokens.shape[1] < block else tokens[:, -max(block // 2, 1) :]
        room = min(prompt_length + count - tokens.shape[1], max(block - context.shape[1], 1))
        key = jax.random.fold_in(jax.random.key(seed), tokens.shape[1])
        for new in _extend(spec, params, context, room, _row_rngs(key, rows_B), piece):
            if (new == NOT_FINITE_TOKEN).any():
                message = "the model's logits are not finite: no token can be drawn"
                raise NonFiniteError("N002", message, EARLIER_CHECKPOINT)
            tokens = np.concatenate([tokens, new], axis=1)
            yield new
        if spec.stop is not None and (tokens[:, prompt_length:] == spec.stop).any(axis=1).all():
            return


class DecodeSpec(NamedTuple):
    """What does not change from token to token: one program is compiled for each spec and cache capacity."""

    graphdef: Any
    settings: config.Model
    vocab_size: int
    sampling: SamplingOptions
    stop: int | None


class DecodeState(NamedTuple):
    """Texts in progress: all tokens [B, S + 1], and the newest `token_B`, which the cache does not have yet."""

    tokens_BxS: jax.Array
    token_B: jax.Array
    cache: KVCache
    done_B: jax.Array


def _extend(
    spec: DecodeSpec, params: Any, context_BxP: np.ndarray, count: int, rngs_B: jax.Array, piece: int
) -> Iterator[np.ndarray]:
    """Up to `count` tokens after `context_BxP`, fewer if all rows stop; both must fit into the model's block.

    The first piece is one token, which the prefill draws; the others have at most `piece`.
    """
    rows, length = context_BxP.shape
    block = spec.settings.block_size
    padded = _bucket_size(length, block, MIN_PROMPT)
    size = max(padded, min(MIN_CACHE, block, -(-(length + count) // CACHE_STEP) * CACHE_STEP))
    if rows > 1 and (context_BxP == context_BxP[:1]).all():
        context_BxP = context_BxP[:1]  # many samples of one prompt: one prefill
    padded_BxS = np.pad(context_BxP, ((0, 0), (0, padded - length)))
    state = _prefill(spec, rows, size, params, padded_BxS, np.int32(length), rngs_B)
    yield np.asarray(state.token_B)[:, None]
    while (made := int(state.cache.length) + 1) < length + count and not bool(state.done_B.all()):
        if made - 1 == size:
            size = _bucket_size(size + 1, block, MIN_CACHE)
            state = _grow_cache(size, state)
        end = min(made + piece, length + count)
        state = _decode(spec, params, state, rngs_B, np.int32(length), np.int32(end))
        yield np.asarray(state.tokens_BxS)[:, made : int(state.cache.length) + 1]


def _bucket_size(length: int, block: int, minimum: int) -> int:
    """The smallest power of two that is at least `length` and `minimum`; at most the block."""
    return min(block, max(minimum, 1 << (length - 1).bit_length()))


@partial(jax.jit, static_argnums=1)
def _cast(params: Any, settings: config.Model) -> Any:
    return cast_matrices(params, compute_dtype(settings))


@jax.jit
def _row_rngs(key: jax.Array, rows_B: jax.Array) -> jax.Array:
    rngs_B: jax.Array = jax.vmap(partial(jax.random.fold_in, key))(rows_B)
    return rngs_B


@partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(
    spec: DecodeSpec, rows: int, size: int, params: Any, context_BxS: jax.Array, length: jax.Array, rngs_B: jax.Array
) -> DecodeState:
    """Reads the first `length` tokens of the padded context into a cache of `size`, and draws the token after them."""
    gpt = nnx.merge(spec.graphdef, params)
    x_BxD, cache = gpt.prefill(context_BxS, length)
    cache = cache.with_capacity(size)
    context_BxS = jnp.pad(context_BxS, ((0, 0), (0, size + 1 - context_BxS.shape[1])))
    x_BxD, cache, context_BxS = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])) if leaf.ndim else leaf, (x_BxD, cache, context_BxS)
    )
    return _append_draw(spec, gpt.logits(x_BxD), cache, context_BxS, jnp.zeros(rows, bool), rngs_B, jnp.int32(0))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _decode(
    spec: DecodeSpec, params: Any, state: DecodeState, rngs_B: jax.Array, first: jax.Array, end: jax.Array
) -> DecodeState:
    """Draws tokens until the text has `end` tokens, the cache is full or every row has stopped."""
    gpt = nnx.merge(spec.graphdef, params)
    size = state.cache.k[0].shape[2]

    def unfinished(state: DecodeState) -> jax.Array:
        length = state.cache.length
        return (length + 1 < end) & (length < size) & ~state.done_B.all()

    def step(state: DecodeState) -> DecodeState:
        x_Bx1xD, cache = gpt.hidden(state.token_B[:, None], cache=state.cache)
        logits_BxV = gpt.logits(x_Bx1xD[:, 0])
        return _append_draw(spec, logits_BxV, cache, state.tokens_BxS, state.done_B, rngs_B, cache.length - first)

    final: DecodeState = jax.lax.while_loop(unfinished, step, state)
    return final


@partial(jax.jit, static_argnums=0)
def _grow_cache(size: int, state: DecodeState) -> DecodeState:
    """`state` with a cache for `size` tokens."""
    more = ((0, 0), (0, size + 1 - state.tokens_BxS.shape[1]))
    return state._replace(tokens_BxS=jnp.pad(state.tokens_BxS, more), cache=state.cache.with_capacity(size))


def _append_draw(
    spec: DecodeSpec,
    logits_BxV: jax.Array,
    cache: KVCache,
    tokens_BxS: jax.Array,
    done_B: jax.Array,
    rngs_B: jax.Array,
    number: jax.Array,
) -> DecodeState:
    """Appends draw `number` of each row to the tokens that are in the cache."""
    rngs_B = jax.vmap(jax.random.fold_in, (0, None))(rngs_B, number)
    token_B = draw_tokens(logits_BxV[:, : spec.vocab_size], rngs_B, spec.sampling)
    if spec.stop is not None:
        token_B = jnp.where(done_B, spec.stop, token_B)
        done_B = done_B | (token_B == spec.stop)
    done_B = done_B | (token_B == NOT_FINITE_TOKEN)
    return DecodeState(tokens_BxS.at[:, cache.length].set(token_B), token_B, cache, done_B)


def draw_tokens(logits_BxV: jax.Array, rngs_B: jax.Array, sampling: SamplingOptions) -> jax.Array:
    """One token per row: temperature first, then top-k, then top-p, in Hugging Face's order.

    `NOT_FINITE_TOKEN` for a row whose largest logit is not finite, as one with a NaN.
    """
    if sampling.temperature < MIN_TEMPERATURE:
        token_B = jnp.argmax(logits_BxV, axis=-1)
    else:
        kept_BxV = _mask_unlikely(logits_BxV.astype(jnp.float32) / sampling.temperature, sampling)
        token_B = jax.vmap(jax.random.categorical)(rngs_B, kept_BxV)
    return jnp.where(jnp.isfinite(logits_BxV.max(axis=-1)), token_B, NOT_FINITE_TOKEN).astype(jnp.int32)


def _mask_unlikely(logits_BxV: jax.Array, sampling: SamplingOptions) -> jax.Array:
    """`logits_BxV` with minus infinity for the tokens outside top-k and top-p; the most likely one always stays."""
    if 0 < sampling.top_k < logits_BxV.shape[-1]:
        threshold_Bx1 = jax.lax.top_k(logits_BxV, sampling.top_k)[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < threshold_Bx1, -jnp.inf, logits_BxV)
    if sampling.top_p < 1:
        sorted_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
        probability_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
        before_BxV = jnp.cumsum(probability_BxV, axis=-1) - probability_BxV
        threshold_Bx1 = jnp.min(jnp.where(before_BxV < sampling.top_p, sorted_BxV, jnp.inf), axis=-1, keepdims=True)
        logits_BxV = jnp.where(logits_BxV < threshold_Bx1, -jnp.inf, logits_BxV)
    return logits_BxV


def _pad_after_stop(tokens_BxN: np.ndarray, count: int, stop: int | None) -> np.ndarray:
    """`tokens_BxN` cut or padded to `count` columns, with `stop` everywhere after a row's first `stop`."""
    if stop is None:
        return tokens_BxN[:, :count]
    full = np.full((len(tokens_BxN), count), stop, tokens_BxN.dtype)
    full[:, : tokens_BxN.shape[1]] = tokens_BxN[:, :count]
    return np.where((np.cumsum(full == stop, axis=1) > 0), stop, full)


def generate_texts(
    model: LoadedModel,
    prompt: str,
    *,
    count: int,
    samples: int = 1,
    sampling: SamplingOptions = DEFAULT_SAMPLING,
    seed: int = 0,
    stop: str | None = None,
) -> Iterator[str]:
    """`samples` continuations of `prompt`, each cut at the end-of-text token and before the text `stop`."""
    tokenizer = model.tokenizer
    start = tokenizer.encode(prompt) or [tokenizer.eot or 0]
    for first in range(0, samples, MAX_ROWS):
        tokens = generate_tokens(
            model.graphdef,
            model.params,
            np.tile(np.array(start, np.int32), (min(MAX_ROWS, samples - first), 1)),
            count,
            settings=model.config.model,
            vocab_size=tokenizer.vocab_size,
            sampling=sampling,
            seed=seed,
            stop=tokenizer.eot,
            first_row=first,
        )
        yield from (_decode_row(tokenizer, row, stop) for row in tokens)


def stream_text(
    model: LoadedModel,
    prompt: str,
    *,
    count: int,
    sampling: SamplingOptions = DEFAULT_SAMPLING,
    seed: int = 0,
    stop: str | None = None,
) -> Iterator[str]:
    """The first text of `generate_texts` in pieces, each as soon as later tokens cannot change it."""
    tokenizer = model.tokenizer
    start = np.array([tokenizer.encode(prompt) or [tokenizer.eot or 0]], np.int32)
    spec = DecodeSpec(model.graphdef, model.config.model, tokenizer.vocab_size, sampling, tokenizer.eot)
    row = np.zeros(0, np.int32)
    shown = ""
    for piece in stream_tokens(spec, model.params, start, count, seed=seed):
        row = np.concatenate([row, piece[0]])
        text = _decode_row(tokenizer, row, stop)
        is_over = bool(stop) and len(text) < len(_decode_row(tokenizer, row, None))
        settled = text if is_over else text[: len(text) - _unsettled(text, stop)]
        if len(settled) > len(shown):
            yield settled[len(shown) :]
            shown = settled
        if is_over:
            return
    if len(text := _decode_row(tokenizer, row, stop)) > len(shown):
        yield text[len(shown) :]


def _unsettled(text: str, stop: str | None) -> int:
    """How many characters at the end of `text` may still change: an unfinished one, or a part of `stop`."""
    unfinished = len(text) - len(text.rstrip("\ufffd"))
    return unfinished + max(len(stop or "") - 1, 0)


def _decode_row(tokenizer: Tokenizer, row: np.ndarray, stop: str | None) -> str:
    ids = [int(token) for token in row if token != tokenizer.eot]
    text = tokenizer.decode(ids)
    return text.split(stop)[0] if stop else text
