"""`python -m jaxgpt.sample RUN --prompt TEXT`: text from a trained model.

The prompt is read in one pass (prefill) and each further token in one step against the cached keys and values, all in
one jitted loop. Ids that the tokenizer does not have are never sampled. `generate` knows nothing of text.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt import checkpoint, config, errors, model, runfolder, runtime
from jaxgpt.errors import ConfigError
from jaxgpt.overrides import Parser
from jaxgpt.tokenizer import Tokenizer


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
) -> np.ndarray:
    """`count` tokens after each row of `prompt_BxP`, as [B, count]; rows are filled up with `stop` after it.

    Where prompt and answer do not fit the model's block, the latter half of a block is kept as the new prompt whenever
    it is full. Row b's draws depend on (seed, b) alone, not on how many rows there are.
    """
    block, tokens, first = settings.block_size, np.asarray(prompt_BxP, np.int32), prompt_BxP.shape[1]
    draw = partial(_generate, graphdef, settings, vocab_size, sampling, stop)
    while tokens.shape[1] < first + count:
        context = tokens if tokens.shape[1] < block else tokens[:, -max(block // 2, 1) :]
        room = min(first + count - tokens.shape[1], max(block - context.shape[1], 1))
        key = jax.random.fold_in(jax.random.key(seed), tokens.shape[1])
        new = np.asarray(draw(room, params, context, key))
        tokens = np.concatenate([tokens, new], axis=1)
        if stop is not None and (tokens[:, first:] == stop).any(axis=1).all():
            break
    return _filled(tokens[:, first:], count, stop)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _generate(
    graphdef: Any,
    settings: config.Model,
    vocab_size: int,
    sampling: Sampling,
    stop: int | None,
    count: int,
    params: Any,
    prompt_BxP: jax.Array,
    key: jax.Array,
) -> jax.Array:
    gpt = nnx.merge(graphdef, params)
    batch, length = prompt_BxP.shape
    keys_B = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch))
    cache = model.KVCache.create(settings, batch, length + count)
    x_BxPxD, cache = gpt.hidden(prompt_BxP, cache=cache)

    def unfinished(carry: Any) -> Any:
        i, *_, done_B = carry
        return (i < count) & ~done_B.all()

    def step(carry: Any) -> Any:
        i, x_BxD, cache, out_BxN, done_B = carry
        logits_BxV = gpt.logits(x_BxD)[:, :vocab_size]
        token_B = draw(logits_BxV, jax.vmap(jax.random.fold_in, (0, None))(keys_B, i), sampling)
        if stop is not None:
            token_B = jnp.where(done_B, stop, token_B)
            done_B = done_B | (token_B == stop)
        x_Bx1xD, cache = gpt.hidden(token_B[:, None], cache=cache)
        return i + 1, x_Bx1xD[:, -1], cache, out_BxN.at[:, i].set(token_B), done_B

    out_BxN = jnp.full((batch, count), 0 if stop is None else stop, jnp.int32)
    start = (jnp.int32(0), x_BxPxD[:, -1], cache, out_BxN, jnp.zeros(batch, bool))
    return jax.lax.while_loop(unfinished, step, start)[3]


def draw(logits_BxV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """One token per row: temperature first, then top-k, then top-p, as Hugging Face orders them."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    kept_BxV = _keep(logits_BxV.astype(jnp.float32) / sampling.temperature, sampling)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BxV).astype(jnp.int32)


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
) -> list[str]:
    """`samples` continuations of `prompt` by a loaded run, each cut at end-of-text and before the text `stop`."""
    tokenizer = loaded.tokenizer
    start = tokenizer.encode(prompt) or ([tokenizer.eot] if tokenizer.eot is not None else [0])
    tokens = generate(
        loaded.graphdef,
        loaded.params,
        np.tile(np.array(start, np.int32), (samples, 1)),
        count,
        settings=loaded.config.model,
        vocab_size=tokenizer.vocab_size,
        sampling=sampling,
        seed=seed,
        stop=tokenizer.eot,
    )
    return [_cut(tokenizer, row, stop) for row in tokens]


def _cut(tokenizer: Tokenizer, row: np.ndarray, stop: str | None) -> str:
    ids = [int(token) for token in row if token != tokenizer.eot]
    text = tokenizer.decode(ids)
    return text.split(stop)[0] if stop else text


def main(argv: Sequence[str]) -> None:
    """Prints samples of a run."""
    parser = Parser("sample", (__doc__ or "").split("\n\n")[1], "RUN [--prompt TEXT] [options]")
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
    for name in ("samples", "tokens"):
        if getattr(options, name) < 1:
            raise ConfigError("C009", f"--{name} = {getattr(options, name)}; must be 1 or more")
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    prompt = Path(options.prompt[5:]).read_text() if options.prompt.startswith("FILE:") else options.prompt
    runtime.set_up()
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
    print(*[prompt + text for text in found], sep="\n" + "-" * 40 + "\n")


if __name__ == "__main__":
    sys.exit(errors.run(main))
