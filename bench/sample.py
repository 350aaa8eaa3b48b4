"""Sampling: prefill and cached decoding against a loop that reads everything again for each token.

    python bench/sample.py [--config quickstart] [--batch 1 64] [--prompt 64] [--tokens 128] [--out FILE]

Random weights and prompts (the work is the same), greedy, one process, the two in turns: tokens/s over all rows, ms per
token, seconds of the prefill alone, and the seconds that the first call took beyond the later ones (compiling). The
loop without a cache fills its input up to the whole block, so that it compiles once.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt.config import Model
from jaxgpt.config.files import load_config
from jaxgpt.generation import sampler
from jaxgpt.generation.options import SamplingOptions
from jaxgpt.model import backend, gpt
from jaxgpt.training import jax_setup, step

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64, "vocab_size": 256}


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def appended(graphdef: Any, vocab_size: int, params: Any, tokens_BxT: jax.Array, length: jax.Array) -> jax.Array:
    """The tokens with the likeliest one after the first `length`, from a pass over the whole block."""
    gpt = nnx.merge(graphdef, params)
    x_BxTxD, _ = gpt.hidden(tokens_BxT)
    last_BxD = jax.lax.dynamic_index_in_dim(x_BxTxD, length - 1, 1, keepdims=False)
    return tokens_BxT.at[:, length].set(jnp.argmax(gpt.logits(last_BxD)[:, :vocab_size], axis=-1).astype(jnp.int32))


def without_cache(graphdef: Any, params: Any, prompt_BxP: np.ndarray, count: int, settings: Model) -> np.ndarray:
    """`count` greedy tokens, everything computed again for each."""
    batch, length = prompt_BxP.shape
    tokens_BxT = jnp.zeros((batch, settings.block_size), jnp.int32).at[:, :length].set(prompt_BxP)
    for place in range(length, length + count):
        tokens_BxT = appended(graphdef, settings.vocab_size, params, tokens_BxT, np.int32(place))
    return np.asarray(tokens_BxT[:, length : length + count])


def measure(settings: Model, batch: int, prompt: int, count: int, rounds: int) -> dict[str, Any]:
    """Both ways at one batch size, and whether they wrote the same."""
    graphdef = step.model_graphdef(settings)
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(gpt.GPT(settings, rngs=nnx.Rngs(0)))))()
    cast = jax.jit(lambda params: step.cast_matrices(params, backend.compute_dtype(settings)))(params)
    prompts = np.random.default_rng(0).integers(0, settings.vocab_size, (batch, prompt), dtype=np.int32)
    how: dict[str, Any] = {"settings": settings, "vocab_size": settings.vocab_size, "sampling": SamplingOptions(0.0)}
    sides: dict[str, Callable[[], np.ndarray]] = {
        "cached": lambda: sampler.generate_tokens(graphdef, params, prompts, count, **how),
        "prefill": lambda: sampler.generate_tokens(graphdef, params, prompts, 1, **how),
        "no cache": lambda: without_cache(graphdef, cast, prompts, count, settings),
    }
    first, said = {}, {}
    for name, side in sides.items():
        started = time.perf_counter()
        said[name] = side()
        first[name] = time.perf_counter() - started
    took = common.time_interleaved(sides, rounds)
    found: dict[str, Any] = {"batch": batch, "prompt": prompt, "tokens": count}
    found["same_tokens"] = float(np.mean(said["cached"] == said["no cache"]))
    for name, seconds in took.items():
        each = common.spread(seconds)
        tokens = 1 if name == "prefill" else count
        found[name] = {
            "seconds": each,
            "ms_per_token": 1e3 * each["median"] / tokens,
            "tokens_per_second": batch * tokens / each["median"],
            "compile_s": first[name] - each["median"],
        }
    pairs = zip(took["no cache"], took["cached"], strict=True)
    found["speedup"] = common.spread([slow / fast for slow, fast in pairs])
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart", help="a config (default: quickstart)")
    parser.add_argument("--batch", type=common.positive_int, nargs="+", default=[1, 64], help="rows (default: 1 64)")
    parser.add_argument("--prompt", type=common.positive_int, default=64, help="tokens of the prompt (default: 64)")
    parser.add_argument(
        "--tokens", type=common.positive_int, default=128, help="tokens that are written (default: 128)"
    )
    parser.add_argument("--rounds", type=common.positive_int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--tiny", action="store_true", help="a two-layer model: shows that the script runs anywhere")
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    options = parser.parse_args(argv)
    common.check_output_path(options.out)
    jax_setup.configure_jax()
    about = common.describe_environment()
    settings = backend.resolve_auto(
        load_config(options.config).replace({"model": TINY} if options.tiny else {}).model, about["platform"]
    )
    if options.tiny:
        options.prompt, options.tokens, options.rounds = 8, 24, 2
    if options.prompt + options.tokens > settings.block_size:
        parser.error(f"--prompt and --tokens are more than the block of {settings.block_size}")
    found: dict[str, Any] = {"about": about, "config": options.config, "dtype": settings.dtype, "batches": []}
    for batch in options.batch:
        one = measure(settings, batch, options.prompt, options.tokens, options.rounds)
        found["batches"].append(one)
        rows = [
            (name, one[name]["tokens_per_second"], one[name]["ms_per_token"], one[name]["compile_s"])
            for name in ("cached", "no cache", "prefill")
        ]
        speed = one["speedup"]
        print(
            f"batch {batch}: with the cache {speed['median']:.1f} times as fast ({speed['p10']:.1f}–{speed['p90']:.1f})"
        )
        print(common.table(rows, ("", "tokens/s", "ms/token", "compile s")), flush=True)
    common.write_json(options.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(common.run(main))
