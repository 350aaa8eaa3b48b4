"""`python -m jaxgpt.sample RUN --prompt TEXT`: text from a trained model.

The prompt is read in one pass (prefill), and each further token takes one step of a jitted loop against the cached keys
and values. Prompts are filled up to a power of two and the cache doubles when it is full, so that a process compiles a
handful of programs whatever the lengths, and attention goes over little more than what is there. Ids that the tokenizer
does not have are never sampled. `generate` knows nothing of text.

    B rows   P prompt   S places of the cache   D width   V vocabulary
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt import config, errors
from jaxgpt.config.options import Parser
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import ConfigError, DataError, NonFiniteError
from jaxgpt.model.backend import compute_dtype
from jaxgpt.model.kv_cache import KVCache
from jaxgpt.runs import folder as runfolder
from jaxgpt.training import checkpoint, jax_setup
from jaxgpt.training.step import cast_matrices

DESCRIPTION = "Generates text with a run's model. The same seed gives the same text."
LEAST_PROMPT = 32  # places that a prompt is filled up to
LEAST_CACHE = 256  # places, unless the answer ends sooner: smaller ones would not pay for compiling more programs
CACHE_STEP = 64  # by which the cache of a short answer is rounded up
MOST_ROWS = 64  # samples at a time: each has a cache of its own
LEAST_TEMPERATURE = 1e-30  # logits over a smaller one would not be finite
NOT_FINITE = -1  # stands for a token that cannot be drawn, so that the host need not wait for each to learn of it
EARLIER = "an earlier checkpoint may be sound: --step best, or --step N"


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave all tokens in."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError("C009", f"temperature = {self.temperature}; must be 0 or more")
        if self.top_k < 0:
            raise ConfigError("C009", f"top-k = {self.top_k}; must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError("C009", f"top-p = {self.top_p}; must be above 0 and at most 1")


def generate(
    graphdef: Any,
    params: Any,
    prompt_BxP: np.ndarray,
    count: int,
    *,
    settings: config.Model,
    vocab_size: int,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    stop: int | None = None,
    first_row: int = 0,
) -> np.ndarray:
    """`count` tokens after each row of `prompt_BxP`, as [B, count]; rows are filled up with `stop` after it.

    Where prompt and answer do not fit the model's block, the latter half of a block is kept as the new prompt whenever
    it is full. Row b's draws depend on (seed, first_row + b) alone, not on how many rows there are. Raises
    `NonFiniteError` N002 where the model's logits are not finite.
    """
    block, tokens, first = settings.block_size, np.asarray(prompt_BxP, np.int32), prompt_BxP.shape[1]
    rows_B = np.arange(first_row, first_row + len(tokens))
    params = _cast(params, settings)  # once, not in every step of the loop
    how = How(graphdef, settings, vocab_size, sampling, stop)
    while tokens.shape[1] < first + count:
        context = tokens if tokens.shape[1] < block else tokens[:, -max(block // 2, 1) :]
        room = min(first + count - tokens.shape[1], max(block - context.shape[1], 1))
        key = jax.random.fold_in(jax.random.key(seed), tokens.shape[1])
        new = _continued(how, params, context, room, _row_keys(key, rows_B))
        if (new == NOT_FINITE).any():
            raise NonFiniteError("N002", "the model's logits are not finite: no token can be drawn", EARLIER)
        tokens = np.concatenate([tokens, new], axis=1)
        if stop is not None and (tokens[:, first:] == stop).any(axis=1).all():
            break
    return _filled(tokens[:, first:], count, stop)


class How(NamedTuple):
    """What stays the same from token to token: a program is compiled for each, and for each size of the cache."""

    graphdef: Any
    settings: config.Model
    vocab_size: int
    sampling: Sampling
    stop: int | None


class Decoding(NamedTuple):
    """A text in the making: the tokens at their places [B, S + 1], the newest of which is not in the cache yet."""

    tokens_BxS: jax.Array
    token_B: jax.Array
    cache: KVCache
    done_B: jax.Array


def _continued(how: How, params: Any, context_BxP: np.ndarray, count: int, keys_B: jax.Array) -> np.ndarray:
    """Up to `count` tokens after `context_BxP`, which fit into the model's block with it; fewer if all rows stop."""
    (rows, length), block = context_BxP.shape, how.settings.block_size
    padded = _bucket(length, block, LEAST_PROMPT)
    size = max(padded, min(LEAST_CACHE, block, -(-(length + count) // CACHE_STEP) * CACHE_STEP))
    if rows > 1 and (context_BxP == context_BxP[:1]).all():
        context_BxP = context_BxP[:1]  # many samples of one prompt: it is read once
    padded_BxS = np.pad(context_BxP, ((0, 0), (0, padded - length)))
    state = _begin(how, rows, size, params, padded_BxS, np.int32(length), keys_B)
    while int(state.cache.length) + 1 < length + count and not bool(state.done_B.all()):
        if int(state.cache.length) == size:
            size = _bucket(size + 1, block, LEAST_CACHE)
            state = _grow(size, state)
        state = _go_on(how, params, state, keys_B, np.int32(length), np.int32(length + count))
    tokens_BxS: np.ndarray = np.asarray(state.tokens_BxS)[:, length : int(state.cache.length) + 1]
    return tokens_BxS


def _bucket(length: int, block: int, least: int) -> int:
    """Places for `length` tokens: a power of two from `least` on, at most the block."""
    return min(block, max(least, 1 << (length - 1).bit_length()))


@partial(jax.jit, static_argnums=1)
def _cast(params: Any, settings: config.Model) -> Any:
    return cast_matrices(params, compute_dtype(settings))


@jax.jit
def _row_keys(key: jax.Array, rows_B: jax.Array) -> jax.Array:
    keys_B: jax.Array = jax.vmap(partial(jax.random.fold_in, key))(rows_B)
    return keys_B


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(
    how: How, rows: int, size: int, params: Any, context_BxS: jax.Array, length: jax.Array, keys_B: jax.Array
) -> Decoding:
    """Reads the context, whose first `length` tokens count, and draws the token after it."""
    gpt = nnx.merge(how.graphdef, params)
    x_BxD, cache = gpt.prefill(context_BxS, length)
    cache = cache.with_capacity(size)
    context_BxS = jnp.pad(context_BxS, ((0, 0), (0, size + 1 - context_BxS.shape[1])))
    x_BxD, cache, context_BxS = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])) if leaf.ndim else leaf, (x_BxD, cache, context_BxS)
    )
    return _drawn(how, gpt.logits(x_BxD), cache, context_BxS, jnp.zeros(rows, bool), keys_B, jnp.int32(0))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _go_on(how: How, params: Any, state: Decoding, keys_B: jax.Array, first: jax.Array, end: jax.Array) -> Decoding:
    """Reads and draws until the text is `end` tokens long, the cache is full or every row has stopped."""
    gpt = nnx.merge(how.graphdef, params)
    size = state.cache.k[0].shape[2]

    def unfinished(state: Decoding) -> jax.Array:
        length = state.cache.length
        return (length + 1 < end) & (length < size) & ~state.done_B.all()

    def step(state: Decoding) -> Decoding:
        x_Bx1xD, cache = gpt.hidden(state.token_B[:, None], cache=state.cache)
        logits_BxV = gpt.logits(x_Bx1xD[:, 0])
        return _drawn(how, logits_BxV, cache, state.tokens_BxS, state.done_B, keys_B, cache.length - first)

    ended: Decoding = jax.lax.while_loop(unfinished, step, state)
    return ended


@partial(jax.jit, static_argnums=0)
def _grow(size: int, state: Decoding) -> Decoding:
    """The same text with room for `size` tokens in its cache."""
    more = ((0, 0), (0, size + 1 - state.tokens_BxS.shape[1]))
    return state._replace(tokens_BxS=jnp.pad(state.tokens_BxS, more), cache=state.cache.with_capacity(size))


def _drawn(
    how: How,
    logits_BxV: jax.Array,
    cache: KVCache,
    tokens_BxS: jax.Array,
    done_B: jax.Array,
    keys_B: jax.Array,
    number: jax.Array,
) -> Decoding:
    """Draw `number` of each row, put after the tokens that the cache holds."""
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
    token_B = draw(logits_BxV[:, : how.vocab_size], keys_B, how.sampling)
    if how.stop is not None:
        token_B = jnp.where(done_B, how.stop, token_B)
        done_B = done_B | (token_B == how.stop)
    done_B = done_B | (token_B == NOT_FINITE)
    return Decoding(tokens_BxS.at[:, cache.length].set(token_B), token_B, cache, done_B)


def draw(logits_BxV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """One token per row: temperature first, then top-k, then top-p, as Hugging Face orders them.

    It is `NOT_FINITE` where the largest logit is, which a NaN among them makes so.
    """
    if sampling.temperature < LEAST_TEMPERATURE:
        token_B = jnp.argmax(logits_BxV, axis=-1)
    else:
        kept_BxV = _keep(logits_BxV.astype(jnp.float32) / sampling.temperature, sampling)
        token_B = jax.vmap(jax.random.categorical)(keys_B, kept_BxV)
    return jnp.where(jnp.isfinite(logits_BxV.max(axis=-1)), token_B, NOT_FINITE).astype(jnp.int32)


def _keep(logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """`logits_BxV` with the tokens outside top-k and top-p at minus infinity; the likeliest always stays."""
    if 0 < sampling.top_k < logits_BxV.shape[-1]:
        least_Bx1 = jax.lax.top_k(logits_BxV, sampling.top_k)[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
    if sampling.top_p < 1:
        sorted_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
        probability_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
        before_BxV = jnp.cumsum(probability_BxV, axis=-1) - probability_BxV
        least_Bx1 = jnp.min(jnp.where(before_BxV < sampling.top_p, sorted_BxV, jnp.inf), axis=-1, keepdims=True)
        logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
    return logits_BxV


def _filled(tokens_BxN: np.ndarray, count: int, stop: int | None) -> np.ndarray:
    """`tokens_BxN` cut or filled up with `stop` to `count`, and nothing but `stop` after a row's first one."""
    if stop is None:
        return tokens_BxN[:, :count]
    full = np.full((len(tokens_BxN), count), stop, tokens_BxN.dtype)
    full[:, : tokens_BxN.shape[1]] = tokens_BxN[:, :count]
    return np.where((np.cumsum(full == stop, axis=1) > 0), stop, full)


def texts(
    loaded: checkpoint.Loaded,
    prompt: str,
    *,
    count: int,
    samples: int = 1,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    stop: str | None = None,
) -> Iterator[str]:
    """`samples` continuations of `prompt` by a loaded run, each cut at end-of-text and before the text `stop`."""
    tokenizer = loaded.tokenizer
    start = tokenizer.encode(prompt) or ([tokenizer.eot] if tokenizer.eot is not None else [0])
    for first in range(0, samples, MOST_ROWS):
        tokens = generate(
            loaded.graphdef,
            loaded.params,
            np.tile(np.array(start, np.int32), (min(MOST_ROWS, samples - first), 1)),
            count,
            settings=loaded.config.model,
            vocab_size=tokenizer.vocab_size,
            sampling=sampling,
            seed=seed,
            stop=tokenizer.eot,
            first_row=first,
        )
        yield from (_cut(tokenizer, row, stop) for row in tokens)


def _cut(tokenizer: Tokenizer, row: np.ndarray, stop: str | None) -> str:
    ids = [int(token) for token in row if token != tokenizer.eot]
    text = tokenizer.decode(ids)
    return text.split(stop)[0] if stop else text


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError("D022", f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def main(argv: Sequence[str]) -> None:
    """Prints samples of a run."""
    parser = Parser("sample", DESCRIPTION, "RUN [--prompt TEXT] [options]")
    parser.add_argument("run", help="a run folder, the name of a run under runs/, or one of its checkpoints")
    parser.add_argument("--step", default="latest", help="which checkpoint: a step, latest or best (default: latest)")
    parser.add_argument("--prompt", "--start", default="", help="text to continue; FILE:PATH reads it from a file")
    parser.add_argument("--samples", "--num_samples", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument(
        "--tokens", "--max_new_tokens", type=int, default=200, metavar="N", help="tokens (default: 200)"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument("--top-k", "--top_k", type=int, default=0, help="draw among the k likeliest (default: 0, all)")
    parser.add_argument("--top-p", "--top_p", type=float, default=1.0, help="draw among the likeliest p (default: 1)")
    parser.add_argument("--seed", type=int, default=1337, help="same seed, same text (default: 1337)")
    parser.add_argument("--stop", help="text before which a sample ends")
    options = parser.parse_args(argv)
    for name, least, bits in (("samples", 1, 31), ("tokens", 1, 63), ("seed", 0, 32)):
        if not least <= (given := getattr(options, name)) < 2**bits:
            raise ConfigError("C009", f"--{name} = {given}; must be {least} or more, and below 2^{bits}")
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    prompt = _read(Path(options.prompt[5:])) if options.prompt.startswith("FILE:") else options.prompt
    jax_setup.set_up()
    loaded = checkpoint.load(*runfolder.find(options.run, options.step))
    found = texts(
        loaded,
        prompt,
        count=options.tokens,
        samples=options.samples,
        sampling=sampling,
        seed=options.seed,
        stop=options.stop,
    )
    for number, text in enumerate(found):
        print(*["-" * 40] * (number > 0), prompt + text, sep="\n")


if __name__ == "__main__":
    sys.exit(errors.run(main))
