"""Attention kernels, forward and backward: their error against the definition and their interleaved times.

    python bench/attention.py [--batch 16] [--time 1024] [--heads 12 6] [--sizes 32 64] [--rounds 10] [--out FILE]
    python bench/attention.py --tiny                             the same code in seconds on a CPU

The shapes are those of the reference run, with its heads of 32 and with half as many of 64. Sides: `cudnn`, `xla`
(both `jax.nn.dot_product_attention`), `jaxgpt` (`causal_attention`, for devices without cuDNN), `pallas` (JAX's own
Triton kernel) and `tokamax-triton`, `tokamax-mosaic_gpu` (`pip install tokamax`). A side that cannot run here is listed
with the reason. `error` is the distance of output and gradients from float32's, relative; the exit status is 1 where a
kernel that `train` uses (`cudnn` on a GPU, `jaxgpt`) is off by more than 2 % in bfloat16, 0.001 % in float32. TFLOP/s
count the causal half, two products forward and five backward; ratios are the first side's time over a side's. tokamax
needs an older typeguard than tyro, so install it into a separate environment; this benchmark does not need tyro.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import ConfigError
from jaxgpt.model.ops.causal_attention import causal_attention

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
TOKAMAX = ("triton", "mosaic_gpu")
MAX_ERROR = {"bfloat16": 0.02, "float32": 1e-5}


def sides() -> dict[str, Attention]:
    """Implementations of causal attention of [B, T, H, C] arrays; compilation shows which run on this device."""
    implementations: dict[str, Attention] = {
        name: partial(jax.nn.dot_product_attention, is_causal=True, implementation=name) for name in ("cudnn", "xla")
    }
    implementations |= {"jaxgpt": causal_attention, "pallas": pallas}
    if importlib.util.find_spec("tokamax"):
        implementations |= {f"tokamax-{name}": partial(tokamax, implementation=name) for name in TOKAMAX}
    return implementations


def pallas(q_BxTxHxC: jax.Array, k_BxTxHxC: jax.Array, v_BxTxHxC: jax.Array) -> jax.Array:
    """The flash attention of JAX's Pallas, in Triton, with its default block sizes (backward 32 by 32)."""
    from jax.experimental.pallas.ops.gpu import attention

    scale = 1 / math.sqrt(q_BxTxHxC.shape[-1])
    y: jax.Array = attention.mha(q_BxTxHxC, k_BxTxHxC, v_BxTxHxC, segment_ids=None, sm_scale=scale, causal=True)
    return y


def tokamax(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str) -> jax.Array:
    """A kernel of the tokamax library."""
    import tokamax as library
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # otherwise it parses the command line of this program
    y: jax.Array = library.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
    return y


def with_gradients(attention: Attention) -> Callable[..., tuple[jax.Array, ...]]:
    """A jitted function that returns the output and the gradients for a cotangent."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(attention, q, k, v)
        return y, *pull(dy)

    return jax.jit(run)


def random_arrays(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, ...]:
    """q, k, v and a cotangent of normal numbers, the same for every side."""
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(4))


def max_relative_error(actual: Sequence[jax.Array], exact: Sequence[jax.Array]) -> float:
    """The largest relative error of an array."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(actual, exact, strict=True)]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def measure_shape(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Times, rate and error of every side on one shape [B, T, H, C], or why a side does not run."""
    inputs = random_arrays(shape, jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32)
    definition = with_gradients(partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla"))
    with jax.default_matmul_precision("highest"):  # a GPU would use TF32 by default
        exact = definition(*(array.astype(jnp.float32) for array in inputs))
    results: dict[str, Any] = {}
    running: dict[str, Callable[[], Any]] = {}
    for name, attention in sides().items():
        function = with_gradients(attention)
        try:
            results[name] = {"error": max_relative_error(function(*inputs), exact)}
        except Exception as error:  # each library raises its own errors
            results[name] = {"does_not_run": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            continue
        running[name] = lambda function=function: jax.block_until_ready(function(*inputs))
    seconds_of = common.time_interleaved(running, rounds)
    batch, time, heads, size = shape
    flops = 7 * 2 * batch * heads * size * time**2 / 2
    for name, seconds in seconds_of.items():
        ratios = [first / own for first, own in zip(next(iter(seconds_of.values())), seconds, strict=True)]
        results[name] |= {
            "ms": common.spread([1e3 * each for each in seconds]),
            "tflops": flops / float(np.median(seconds)) / 1e12,
            "ratio": common.spread(ratios),
        }
    return results


def has_errors(results: dict[str, Any]) -> bool:
    """Whether a kernel that `train` uses on this device does not run or is too inaccurate."""
    on_gpu = jax.default_backend() == "gpu"
    tolerance = MAX_ERROR["bfloat16" if on_gpu else "float32"]
    names = ("jaxgpt", "cudnn") if on_gpu else ("jaxgpt",)
    return any(not results[name].get("error", np.inf) <= tolerance for name in names)


def format_results(shape: Sequence[int], results: dict[str, Any]) -> str:
    """A table of one shape, followed by the sides that did not run and why."""
    ran = {name: side for name, side in results.items() if "ms" in side}
    rows = [
        [
            name,
            side["ms"]["median"],
            side["ms"]["p10"],
            side["ms"]["p90"],
            side["tflops"],
            side["ratio"]["median"],
            side["error"],
        ]
        for name, side in ran.items()
    ]
    lines = [f"\nbatch {shape[0]}, {shape[1]} tokens, {shape[2]} heads of {shape[3]}"]
    lines += [common.table(rows, ["side", "ms", "p10", "p90", "TFLOP/s", "ratio", "error"])]
    lines += [f"{name} does not run: {side['does_not_run']}" for name, side in results.items() if name not in ran]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=common.positive_int, default=16, help="sequences (default: 16)")
    parser.add_argument("--time", type=common.positive_int, default=1024, help="tokens of each (default: 1024)")
    parser.add_argument(
        "--heads", type=common.positive_int, nargs="+", default=[12, 6], help="of each shape (default: 12 6)"
    )
    parser.add_argument(
        "--sizes", type=common.positive_int, nargs="+", default=[32, 64], help="of a head (default: 32 64)"
    )
    parser.add_argument("--rounds", type=common.positive_int, default=10, help="turns of each side (default: 10)")
    parser.add_argument("--tiny", action="store_true", help="2 x 64 tokens, 2 rounds")
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    args = parser.parse_args(argv)
    if args.tiny:
        args.batch, args.time, args.rounds = 2, 64, 2
    if len(args.heads) != len(args.sizes):
        raise ConfigError("C009", "as many --heads as --sizes", "--heads 12 6 --sizes 32 64")
    common.check_output_path(args.out)
    results: dict[str, Any] = {"about": common.describe_environment(), "cases": []}
    for heads, size in zip(args.heads, args.sizes, strict=True):
        shape = (args.batch, args.time, heads, size)
        answer = measure_shape(shape, args.rounds)
        results["cases"].append({"shape": shape, "sides": answer})
        print(format_results(shape, answer), flush=True)
        common.write_json(args.out, results)
    return int(any(has_errors(one["sides"]) for one in results["cases"]))


if __name__ == "__main__":
    sys.exit(common.run(main))
