"""Sampling: prefill and decoding with a KV cache, compared with a loop that recomputes everything for each token.

    python bench/sample.py [--config quickstart] [--batch 1 64] [--prompt 64] [--tokens 128] [--out FILE]

Random weights and prompts (the work is the same), greedy, interleaved in one process: tokens/s over all rows, ms per
token, seconds of the prefill alone, and the extra seconds of the first call (compiling). The loop without a cache pads
its input to the block size, so that it compiles once.
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
def append_token(graphdef: Any, vocab_size: int, params: Any, tokens_BxT: jax.Array, length: jax.Array) -> jax.Array:
    """The tokens with the most likely one written after the first `length`, by a pass over the whole block."""
    gpt = nnx.merge(graphdef, params)
    x_BxTxD, _ = gpt.hidden(tokens_BxT)
    last_BxD = jax.lax.dynamic_index_in_dim(x_BxTxD, length - 1, 1, keepdims=False)
    return tokens_BxT.at[:, length].set(jnp.argmax(gpt.logits(last_BxD)[:, :vocab_size], axis=-1).astype(jnp.int32))


def without_cache(graphdef: Any, params: Any, prompt_BxP: np.ndarray, count: int, settings: Model) -> np.ndarray:
    """`count` greedy tokens, recomputing everything for each."""
    batch, length = prompt_BxP.shape
    tokens_BxT = jnp.zeros((batch, settings.block_size), jnp.int32).at[:, :length].set(prompt_BxP)
    for position in range(length, length + count):
        tokens_BxT = append_token(graphdef, settings.vocab_size, params, tokens_BxT, np.int32(position))
    return np.asarray(tokens_BxT[:, length : length + count])


def measure(settings: Model, batch: int, prompt: int, count: int, rounds: int) -> dict[str, Any]:
    """Times of both methods at one batch size, and the fraction of equal tokens."""
    graphdef = step.model_graphdef(settings)
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(gpt.GPT(settings, rngs=nnx.Rngs(0)))))()
    cast = jax.jit(lambda params: step.cast_matrices(params, backend.compute_dtype(settings)))(params)
    prompts = np.random.default_rng(0).integers(0, settings.vocab_size, (batch, prompt), dtype=np.int32)
    arguments: dict[str, Any] = {
        "settings": settings,
        "vocab_size": settings.vocab_size,
        "sampling": SamplingOptions(0.0),
    }
    sides: dict[str, Callable[[], np.ndarray]] = {
        "cached": lambda: sampler.generate_tokens(graphdef, params, prompts, count, **arguments),
        "prefill": lambda: sampler.generate_tokens(graphdef, params, prompts, 1, **arguments),
        "no cache": lambda: without_cache(graphdef, cast, prompts, count, settings),
    }
    first_seconds = {}
    tokens_of = {}
    for name, side in sides.items():
        started = time.perf_counter()
        tokens_of[name] = side()
        first_seconds[name] = time.perf_counter() - started
    seconds_of = common.time_interleaved(sides, rounds)
    results: dict[str, Any] = {"batch": batch, "prompt": prompt, "tokens": count}
    results["same_tokens"] = float(np.mean(tokens_of["cached"] == tokens_of["no cache"]))
    for name, seconds in seconds_of.items():
        each = common.spread(seconds)
        tokens = 1 if name == "prefill" else count
        results[name] = {
            "seconds": each,
            "ms_per_token": 1e3 * each["median"] / tokens,
            "tokens_per_second": batch * tokens / each["median"],
            "compile_s": first_seconds[name] - each["median"],
        }
    pairs = zip(seconds_of["no cache"], seconds_of["cached"], strict=True)
    results["speedup"] = common.spread([slow / fast for slow, fast in pairs])
    return results


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart", help="a config (default: quickstart)")
    parser.add_argument("--batch", type=common.positive_int, nargs="+", default=[1, 64], help="rows (default: 1 64)")
    parser.add_argument("--prompt", type=common.positive_int, default=64, help="tokens of the prompt (default: 64)")
    parser.add_argument("--tokens", type=common.positive_int, default=128, help="tokens to generate (default: 128)")
    parser.add_argument("--rounds", type=common.positive_int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--tiny", action="store_true", help="a two-layer model, to check that the script runs")
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
    results: dict[str, Any] = {"about": about, "config": options.config, "dtype": settings.dtype, "batches": []}
    for batch in options.batch:
        one = measure(settings, batch, options.prompt, options.tokens, options.rounds)
        results["batches"].append(one)
        rows = [
            (name, one[name]["tokens_per_second"], one[name]["ms_per_token"], one[name]["compile_s"])
            for name in ("cached", "no cache", "prefill")
        ]
        speed = one["speedup"]
        print(
            f"batch {batch}: with the cache {speed['median']:.1f} times as fast ({speed['p10']:.1f}–{speed['p90']:.1f})"
        )
        print(common.table(rows, ("", "tokens/s", "ms/token", "compile s")), flush=True)
    common.write_json(options.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(common.run(main))
