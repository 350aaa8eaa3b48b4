"""The training step: tokens/s, ms, MFU, memory, compile time and data stall, for configs and micro-batches.

    python bench/step.py --configs fineweb40m,gpt2_124m --micro-batch 4 8 16 32 --out bench/results/step-NAME.json
    python bench/step.py --set model.attention=xla --set model.remat=blocks
    python bench/step.py --fit --memory 12 16 24                 the largest micro-batch, by trial
    python bench/step.py --tiny                                  the same code in a minute on a CPU

Each micro-batch is accumulated so often that a step keeps the config's tokens. Each cell runs in a child process, so
that its peak memory is its own and a full device ends that cell alone. A cell times, interleaved: steps fed by the real
loader, steps on the same blocks already on the device, and the steps of each --set. --set takes config fields and
xla_NAME=VALUE (compiler options), several joined by commas. One that XLA refuses or that does not fit is reported, and
the others continue.

MFU is tokens/s × (6 N + 12 L H T) / peak: `config.model_size.flops_per_token`, nanoGPT's convention, over the dense
bf16 rate in `budget.devices`. `live_bytes` is what XLA counts for the compiled program (arguments, results that are not
donated, temporaries); `peak_bytes_in_use` is the peak of the device's allocator in a cell without --set. Neither
includes what JAX reserves at its start. Compile times are measured with a new compilation cache, first empty and then
filled; each --set is compiled in a child process, because XLA keeps autotuning results for the life of a process. With
--memory on a GPU, a trial may use that much memory, 0 what JAX takes by default; on a CPU `live_bytes` is compared with
it. One device is used, even if there are more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
from sides import SharedState, Side, Variant, compilation_cache_in, compile_times, parse_variant

from jaxgpt.budget.devices import peak_flops
from jaxgpt.budget.memory import JAX_MEMORY_FRACTION
from jaxgpt.config import Config
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.data import dataset
from jaxgpt.training import batches as data
from jaxgpt.training import jax_setup
from jaxgpt.training.mesh import batch_sharding

GIB = 2**30
TINY: dict[str, Any] = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "loss_chunk": 64},
    "data": {"micro_batch": 2, "accum": 2},
}
FULL = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "error[C022]")
MAX_MICRO_BATCH = 1024
COMPILED = "compiled.json"  # beside a program: {"compile_cold_s"} or {"error"}


def with_micro_batch(config: Config, micro_batch: int) -> Config:
    """`config` with that micro-batch and the nearest number of tokens per step that whole accumulations allow."""
    accum = max(1, round(config.data.micro_batch * config.data.accum / micro_batch))
    return config.replace({"data": {"micro_batch": micro_batch, "accum": accum}})


def timed_config(base: Config, folder: Path, options: argparse.Namespace) -> Config:
    """The config on the tokens of `folder` and one device, with the number of steps that are timed."""
    run = {"steps": max(2, options.rounds * options.updates)}
    data = {"path": str(folder)}
    return base.replace({"data": data, "optim": {"warmup_steps": 1}, "run": run, "mesh": {"data_parallel": 1}})


def measure_cell(config: Config, sets: Mapping[str, Path], folder: Path, rounds: int, updates: int) -> dict[str, Any]:
    """All measurements of one config at one micro-batch; `sets` maps each --set to the folder of its program."""
    pool: dict[str, SharedState] = {}
    first = Side(Variant("base", config), pool)
    resident = blocks_on_device(first, folder)
    compiled: dict[str, dict[str, Any]] = {"base": compile_times(first)}
    first.run(resident[:1])
    sides = {"base": first}
    for text, programs in sets.items():
        compiled[text] = json.loads((programs / COMPILED).read_text())
        if "error" not in compiled[text]:
            try:
                side = sides[text] = Side(parse_variant(config, text), pool)
                compiled[text]["compile_warm_s"] = load_program(side, programs, resident[:1])
            except jax.errors.JaxRuntimeError as error:
                del sides[text]
                compiled[text] = {"error": " ".join(str(error).split())[:300]}
    for side in sides.values():  # recreates the state, if a failed side has lost it, before timing
        side.run(resident[:1])
    seconds_of = common.time_interleaved(timed_functions(sides, resident, folder, updates), rounds)
    memory = (jax.devices()[0].memory_stats() or {}) if not sets else {}
    return {
        "micro_batch": config.data.micro_batch,
        "accum": config.data.accum,
        "tokens_per_step": config.tokens_per_step,
        "config": first.config.to_dict(),
        "attention": first.config.model.attention,
        "cudnn_attention_calls": first.program.as_text().count("__cudnn$fmha"),
        "peak_bytes_in_use": memory.get("peak_bytes_in_use"),
        "stall": ratio(seconds_of["loader"], seconds_of["base"]),
        "sides": {
            name: figures(sides.get(name, first), seconds, updates)
            | compiled.get(name, {})
            | {"ratio": ratio(seconds, seconds_of["base"])}
            for name, seconds in seconds_of.items()
        },
        "failed": {name: outcome["error"] for name, outcome in compiled.items() if "error" in outcome},
    }


def load_program(side: Side, programs: Path, blocks: Sequence[jax.Array]) -> float:
    """Seconds to load the program that a child process compiled; then runs one step on each block."""
    with compilation_cache_in(str(programs)):
        seconds = side.compile()
    side.run(blocks)
    return seconds


def timed_functions(
    sides: dict[str, Side], resident: list[jax.Array], folder: Path, updates: int
) -> dict[str, Callable[[], Any]]:
    """What is timed: the base and each --set on blocks on the device, and the base fed by the loader."""
    position = dict.fromkeys([*sides, "loader"], 0)
    base = sides["base"]
    split = dataset.open_folder(folder).train
    loader = data.train_batches(base.config, split, base.mesh, 0, common.GPT2_SIZE)
    stream = iter(loader)

    def next_blocks(name: str) -> list[jax.Array]:
        start = position[name]
        position[name] = start + updates
        return [resident[number % len(resident)] for number in range(start, start + updates)]

    functions: dict[str, Callable[[], Any]] = {
        name: lambda name=name, side=side: side.run(next_blocks(name)) for name, side in sides.items()
    }
    return functions | {"loader": lambda: base.run(next(stream) for _ in range(updates))}


def blocks_on_device(side: Side, folder: Path, limit: int = 32) -> list[jax.Array]:
    """Copies of the loader's first blocks on the device."""
    split = dataset.open_folder(folder).train
    with data.train_batches(side.config, split, side.mesh, 0, common.GPT2_SIZE) as batches:
        copies = [np.array(block) for block, _ in zip(batches, range(limit), strict=False)]
    return [jax.device_put(copy, batch_sharding(side.mesh)).block_until_ready() for copy in copies]


def figures(side: Side, seconds: Sequence[float], updates: int) -> dict[str, Any]:
    """ms per step, tokens/s, MFU and memory of one side."""
    each = [taken / updates for taken in seconds]
    rate = side.config.tokens_per_step / float(np.median(each))
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "ms_per_step": common.spread([1e3 * one for one in each]),
        "tokens_per_second": rate,
        "mfu": rate * flops_per_token(side.config.model) / peak if peak else None,
        "memory": side.memory(),
    }


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, Any]:
    """The ratios of each round: median with spread."""
    return common.spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def run_cell(
    options: argparse.Namespace, config: str, micro_batch: int, sets: Sequence[str], memory_fraction: float
) -> dict[str, Any]:
    """Measures one cell in a child process: its figures, or `{"error": …}` with `full` if memory ran out."""
    words = ["--configs", config, "--micro-batch", str(micro_batch), "--tokens", str(options.tokens)]
    words += ["--rounds", str(options.rounds), "--updates", str(options.updates)]
    words += ["--tiny"] if options.tiny else []
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{memory_fraction:.4f}"} if memory_fraction else {}
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(sets):
            compile_in_child(words, text, program_folder(folder, number))
        out = Path(folder) / "cell.json"
        set_options = [word for text in sets for word in ("--set", text)]
        done = common.run_child([__file__, "--cell", folder, *words, *set_options, "--out", str(out)], **environment)
        if done.returncode == 0:
            figures: dict[str, Any] = json.loads(out.read_text())
            return figures
    return {
        "micro_batch": micro_batch,
        "full": any(word in done.stderr for word in FULL) or done.returncode == -9,
        "error": stderr_tail(done),
    }


def program_folder(cell_folder: str, number: int) -> Path:
    """The folder of the compiled program of that --set."""
    return Path(cell_folder) / f"programs-{number}"


def compile_in_child(words: Sequence[str], text: str, programs: Path) -> None:
    """Compiles a --set in a child process, and writes the seconds or the error beside its program."""
    file = programs / COMPILED
    done = common.run_child([__file__, "--compile", str(programs), *words, "--set", text, "--out", str(file)])
    if done.returncode:
        common.check_output_path(file)
        common.write_json(file, {"error": stderr_tail(done)})


def stderr_tail(done: subprocess.CompletedProcess[str]) -> str:
    last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-3:]
    return " ".join(last)[-500:] or f"status {done.returncode}"


def largest_fitting(fits: Callable[[int], bool], limit: int = MAX_MICRO_BATCH) -> int:
    """The largest number up to `limit` that fits, by doubling and then bisection; 0 if none fits.

    Every number below one that fits must fit too.
    """
    below = 0
    above = 1
    while above <= limit and fits(above):
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if middle <= limit and fits(middle) else (below, middle)
    return below


def fit(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The largest micro-batch of each config and remat policy within each of --memory (GiB), or JAX's default."""
    combinations = product(options.configs.split(","), options.memory or [0.0], ("none", "attention", "blocks"))
    for config, gib, policy in combinations:
        seen: dict[int, dict[str, Any]] = {}

        def fits(size: int, config: str = config, gib: float = gib, policy: str = policy, seen: Any = seen) -> bool:
            answer = run_cell(options, f"{config}:model.remat={policy}", size, (), options.memory_fraction(gib))
            if "error" in answer and not answer["full"]:
                raise SystemExit(f"micro-batch {size}: {answer['error']}")
            seen[size] = {"live_bytes": None} if "error" in answer else answer["sides"]["base"]["memory"]
            live = seen[size]["live_bytes"]
            return live is not None and (not gib or options.on_gpu or live <= gib * GIB)

        size = largest_fitting(fits, options.max_micro_batch)
        room = f"{gib:g} GiB" if gib else "JAX's default"
        print(f"{config}: {policy:<9} {room:<13} {size}", flush=True)
        yield {"config": config, "gib": gib or None, "remat": policy, "micro_batch": size, "tried": seen}


def sweep(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every config at every micro-batch."""
    for config, size in product(options.configs.split(","), options.micro_batch):
        answer = run_cell(options, config, size, options.set, 0.0) | {"name": config}
        print(format_cell(answer), flush=True)
        yield answer


def format_cell(answer: dict[str, Any]) -> str:
    """A cell as a table with a row for each side."""
    if "error" in answer:
        return f"{answer['name']}, micro-batch {answer['micro_batch']}: {answer['error']}"
    rows = []
    for name, side in answer["sides"].items():
        ms = side["ms_per_step"]
        rate, live = side["tokens_per_second"], side["memory"]["live_bytes"] / GIB
        times = (side.get("compile_cold_s"), side.get("compile_warm_s"))
        rows.append(
            (name, ms["median"], ms["p10"], ms["p90"], rate, side["mfu"], live, *times, side["ratio"]["median"])
        )
    header = ("side", "ms/step", "p10", "p90", "tokens/s", "MFU", "live GiB", "compile s", "cached s", "ratio")
    peak = answer["peak_bytes_in_use"]
    title = f"{answer['name']}, {answer['micro_batch']} × {answer['accum']}, attention {answer['attention']}"
    title += f", peak {peak / GIB:.2f} GiB" if peak else ""
    failed = [f"\n{name} does not run: {error}" for name, error in answer["failed"].items()]
    return f"{title}\n{common.table(rows, header)}{''.join(failed)}"


def config_by_name(text: str) -> Config:
    """A config by name, with the changes after a colon: `fineweb40m:model.remat=blocks`."""
    name, _, changes = text.partition(":")
    config = load_config(name)
    return parse_variant(config, changes).config if changes else config


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--configs", default="fineweb40m", help="names or files, joined by commas (default: fineweb40m)")
    add("--micro-batch", type=common.positive_int, nargs="+", help="sequences of a micro-batch (default: 4 8 16 32)")
    add("--set", action="append", default=[], metavar="KEY=VALUE,…", help="a further side; may be given several times")
    add("--rounds", type=common.positive_int, help="turns of each side (default: 10)")
    add("--updates", type=common.positive_int, help="steps timed in a turn (default: 3)")
    add(
        "--tokens",
        type=common.positive_int,
        help="random tokens in the file (default: 100 million; 200,000 with --tiny)",
    )
    add("--fit", action="store_true", help="find the largest micro-batch of each remat policy instead")
    add("--memory", type=float, nargs="*", default=[], metavar="GIB", help="with --fit: GiB (0: what JAX takes)")
    limit_help = f"with --fit: the largest micro-batch to try (default: {MAX_MICRO_BATCH})"
    add("--most", dest="max_micro_batch", type=common.positive_int, default=MAX_MICRO_BATCH, help=limit_help)
    add("--tiny", action="store_true", help="a one-layer model, to check that the script runs")
    add("--out", type=Path, help="JSON file for the raw figures")
    add("--cell", metavar="FOLDER", help=argparse.SUPPRESS)
    add("--compile", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (2 if options.tiny else 10)
    options.updates = options.updates or (1 if options.tiny else 3)
    options.micro_batch = options.micro_batch or ([2] if options.tiny else [4, 8, 16, 32])
    options.tokens = options.tokens or (200_000 if options.tiny else 100_000_000)
    if options.fit:
        options.rounds, options.updates = 1, 2
    if any(not 0 <= gib < float("inf") for gib in options.memory):
        parser.error("--memory takes GiB of 0 or more")
    return options


def measure_one_cell(options: argparse.Namespace) -> dict[str, Any]:
    """The first config at the first micro-batch, in this process."""
    jax_setup.configure_jax()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common.random_tokens(folder, options.tokens)
        sets = {text: program_folder(options.cell, number) for number, text in enumerate(options.set)}
        return measure_cell(first_config(options, folder), sets, folder, options.rounds, options.updates)


def compile_one_set(options: argparse.Namespace) -> dict[str, Any]:
    """The seconds to compile the one --set; its program stays in the folder."""
    jax_setup.configure_jax()
    variant = parse_variant(first_config(options, Path("nowhere")), options.set[0])
    with compilation_cache_in(options.compile):
        return {"compile_cold_s": Side(variant, {}).compile()}


def first_config(options: argparse.Namespace, folder: Path) -> Config:
    config = config_by_name(options.configs)
    config = with_micro_batch(config.replace(TINY) if options.tiny else config, options.micro_batch[0])
    return timed_config(config, folder, options)


def main(argv: Sequence[str]) -> int:
    options = parse_arguments(argv)
    common.check_output_path(options.out)
    if options.cell or options.compile:
        common.write_json(options.out, measure_one_cell(options) if options.cell else compile_one_set(options))
        return 0
    for text in options.configs.split(","):
        for one in ["", *options.set]:
            parse_variant(config_by_name(text), one) if one else config_by_name(
                text
            )  # reports mistakes before an hour of work
    results: dict[str, Any] = {"about": common.describe_environment_in_child(), "command": ["bench/step.py", *argv]}
    options.on_gpu = results["about"]["platform"] == "gpu"
    default_fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", JAX_MEMORY_FRACTION))
    device_gib = (results["about"]["bytes_limit"] or 0) / default_fraction / GIB
    options.memory = [gib for gib in options.memory if not options.on_gpu or gib <= device_gib]
    options.memory_fraction = lambda gib: gib / device_gib if options.on_gpu and gib else 0.0
    answers: list[dict[str, Any]] = []
    results["fit" if options.fit else "cells"] = answers
    for answer in (fit if options.fit else sweep)(options):
        answers.append(answer)
        common.write_json(options.out, results)  # after each, so that nothing measured is lost
    return int(any("error" in one or one.get("failed") for one in answers))


if __name__ == "__main__":
    sys.exit(common.run(main))
