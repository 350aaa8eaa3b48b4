"""The training step: tokens/s, ms, MFU, memory, compile time and data stall, for configs and micro-batches.

    python bench/step.py --configs fineweb40m,gpt2_124m --micro-batch 4 8 16 32 --out bench/results/step-NAME.json
    python bench/step.py --set model.attention=xla --set model.remat=blocks
    python bench/step.py --fit --memory 12 16 24                 the largest micro-batch, by trial
    python bench/step.py --tiny                                  the same road in a minute on a CPU

A micro-batch takes as many accumulations as keep the tokens of the config's step. Each cell runs in a process of its
own, so that its peak memory is its own and a device that is full ends that cell alone. In a cell, steps that the real
loader feeds, steps on the same blocks already on the device, and the steps of each --set are timed in turns; --set
takes fields of the config and xla_NAME=VALUE (compiler options), several joined by commas. One that XLA refuses or that
does not fit is noted, and the others go on.

MFU is tokens/s × (6 N + 12 L H T) / peak: `budget.flops.flops_per_token`, nanoGPT's convention, over the dense bf16
rate in `budget.devices`. `live_bytes` is the compiled program's own account (arguments, results that are not donated,
temporaries); `peak_bytes_in_use` what the device's allocator handed out at most, in a cell without --set. Neither is
what JAX reserves at its start. The compile times are of a fresh cache folder, first without and then with its entry;
each --set is compiled in a process of its own, because XLA keeps what its autotuner found for as long as one lives.
With --memory on a GPU, a trial may use so much of it, 0 what JAX takes by itself; on a CPU `live_bytes` is held against
it. One device is used, however many there are.
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
from sides import Held, Side, Variant, cache_in, compile_times, variant

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
MOST = 1024
COMPILED = "compiled.json"  # beside a program: {"compile_cold_s"} or {"error"}


def sized(config: Config, micro_batch: int) -> Config:
    """`config` with that micro-batch and the same tokens per step, as nearly as whole accumulations allow."""
    accum = max(1, round(config.data.micro_batch * config.data.accum / micro_batch))
    return config.replace({"data": {"micro_batch": micro_batch, "accum": accum}})


def prepared(base: Config, folder: Path, options: argparse.Namespace) -> Config:
    """The config on the tokens of `folder` and one device, as long as it is timed."""
    run, data = {"steps": max(2, options.rounds * options.updates)}, {"path": str(folder)}
    return base.replace({"data": data, "optim": {"warmup_steps": 1}, "run": run, "mesh": {"data_parallel": 1}})


def cell(config: Config, sets: Mapping[str, Path], folder: Path, rounds: int, updates: int) -> dict[str, Any]:
    """Everything that is measured of one config at one micro-batch; `sets` with the folders of their programs."""
    pool: dict[str, Held] = {}
    first = Side(Variant("base", config), pool)
    resident = on_device(first, folder)
    compiled: dict[str, dict[str, Any]] = {"base": compile_times(first)}
    first.run(resident[:1])
    sides = {"base": first}
    for text, programs in sets.items():
        compiled[text] = json.loads((programs / COMPILED).read_text())
        if "error" not in compiled[text]:
            try:
                side = sides[text] = Side(variant(config, text), pool)
                compiled[text]["compile_warm_s"] = taken_up(side, programs, resident[:1])
            except jax.errors.JaxRuntimeError as error:
                del sides[text]
                compiled[text] = {"error": " ".join(str(error).split())[:300]}
    for side in sides.values():  # one that failed took the state with it: it is made anew before the clock starts
        side.run(resident[:1])
    took = common.time_interleaved(works(sides, resident, folder, updates), rounds)
    memory = (jax.devices()[0].memory_stats() or {}) if not sets else {}
    return {
        "micro_batch": config.data.micro_batch,
        "accum": config.data.accum,
        "tokens_per_step": config.tokens_per_step,
        "config": first.config.to_dict(),
        "attention": first.config.model.attention,
        "cudnn_attention_calls": first.program.as_text().count("__cudnn$fmha"),
        "peak_bytes_in_use": memory.get("peak_bytes_in_use"),
        "stall": ratio(took["loader"], took["base"]),
        "sides": {
            name: figures(sides.get(name, first), seconds, updates)
            | compiled.get(name, {})
            | {"ratio": ratio(seconds, took["base"])}
            for name, seconds in took.items()
        },
        "failed": {name: found["error"] for name, found in compiled.items() if "error" in found},
    }


def taken_up(side: Side, programs: Path, blocks: Sequence[jax.Array]) -> float:
    """Seconds to load the program that another process compiled; the side then does a step on each block."""
    with cache_in(str(programs)):
        seconds = side.compile()
    side.run(blocks)
    return seconds


def works(
    sides: dict[str, Side], resident: list[jax.Array], folder: Path, updates: int
) -> dict[str, Callable[[], Any]]:
    """What is timed in turns: the base and each set on blocks on the device, and the base behind the loader."""
    position = dict.fromkeys([*sides, "loader"], 0)
    base = sides["base"]
    split = dataset.open_folder(folder).train
    loader = data.train_batches(base.config, split, base.mesh, 0, common.GPT2_SIZE)
    stream = iter(loader)

    def chosen(name: str) -> list[jax.Array]:
        start = position[name]
        position[name] = start + updates
        return [resident[number % len(resident)] for number in range(start, start + updates)]

    found: dict[str, Callable[[], Any]] = {
        name: lambda name=name, side=side: side.run(chosen(name)) for name, side in sides.items()
    }
    return found | {"loader": lambda: base.run(next(stream) for _ in range(updates))}


def on_device(side: Side, folder: Path, most: int = 32) -> list[jax.Array]:
    """The loader's first blocks, copied, on the device."""
    split = dataset.open_folder(folder).train
    with data.train_batches(side.config, split, side.mesh, 0, common.GPT2_SIZE) as batches:
        copies = [np.array(block) for block, _ in zip(batches, range(most), strict=False)]
    return [jax.device_put(copy, batch_sharding(side.mesh)).block_until_ready() for copy in copies]


def figures(side: Side, seconds: Sequence[float], updates: int) -> dict[str, Any]:
    """Of one side: ms per step, tokens/s, MFU and memory."""
    each = [taken / updates for taken in seconds]
    rate = side.config.tokens_per_step / float(np.median(each))
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "ms_per_step": common.spread([1e3 * one for one in each]),
        "tokens_per_second": rate,
        "mfu": rate * flops_per_token(side.config.model) / peak if peak else None,
        "memory": side.memory(),
    }


def ratio(these: Sequence[float], those: Sequence[float]) -> dict[str, Any]:
    """These over those, round by round: median with spread."""
    return common.spread([one / other for one, other in zip(these, those, strict=True)])


def trial(
    options: argparse.Namespace, config: str, micro_batch: int, sets: Sequence[str], share: float
) -> dict[str, Any]:
    """One cell in a process of its own: its figures, or `{"error": …}`, with `full` if the memory was too small."""
    words = ["--configs", config, "--micro-batch", str(micro_batch), "--tokens", str(options.tokens)]
    words += ["--rounds", str(options.rounds), "--updates", str(options.updates)]
    words += ["--tiny"] if options.tiny else []
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.4f}"} if share else {}
    with tempfile.TemporaryDirectory() as place:
        for number, text in enumerate(sets):
            compile_apart(words, text, programs_of(place, number))
        out = Path(place) / "cell.json"
        given = [word for text in sets for word in ("--set", text)]
        done = common.run_child([__file__, "--cell", place, *words, *given, "--out", str(out)], **environment)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(out.read_text())
            return found
    return {
        "micro_batch": micro_batch,
        "full": any(word in done.stderr for word in FULL) or done.returncode == -9,
        "error": last_words(done),
    }


def programs_of(place: str, number: int) -> Path:
    """Where the program of that --set is kept for its cell."""
    return Path(place) / f"programs-{number}"


def compile_apart(words: Sequence[str], text: str, programs: Path) -> None:
    """Compiles a --set in a process of its own; how long it took, or why it failed, stands beside its program."""
    file = programs / COMPILED
    done = common.run_child([__file__, "--compile", str(programs), *words, "--set", text, "--out", str(file)])
    if done.returncode:
        common.check_output_path(file)
        common.write_json(file, {"error": last_words(done)})


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-3:]
    return " ".join(last)[-500:] or f"status {done.returncode}"


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest number up to `most` that fits, if all below one that fits do: doubled, then halved in; 0 if none."""
    below, above = 0, 1
    while above <= most and fits(above):
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if middle <= most and fits(middle) else (below, middle)
    return below


def fit(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The largest micro-batch of each config and remat policy within each of --memory (GiB), or what JAX takes."""
    cases = product(options.configs.split(","), options.memory or [0.0], ("none", "attention", "blocks"))
    for config, gib, policy in cases:
        seen: dict[int, dict[str, Any]] = {}

        def fits(size: int, config: str = config, gib: float = gib, policy: str = policy, seen: Any = seen) -> bool:
            answer = trial(options, f"{config}:model.remat={policy}", size, (), options.share(gib))
            if "error" in answer and not answer["full"]:
                raise SystemExit(f"micro-batch {size}: {answer['error']}")
            seen[size] = {"live_bytes": None} if "error" in answer else answer["sides"]["base"]["memory"]
            live = seen[size]["live_bytes"]
            return live is not None and (not gib or options.on_gpu or live <= gib * GIB)

        size = largest(fits, options.most)
        room = f"{gib:g} GiB" if gib else "JAX's share"
        print(f"{config}: {policy:<9} {room:<13} {size}", flush=True)
        yield {"config": config, "gib": gib or None, "remat": policy, "micro_batch": size, "tried": seen}


def sweep(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every config at every micro-batch."""
    for config, size in product(options.configs.split(","), options.micro_batch):
        answer = trial(options, config, size, options.set, 0.0) | {"name": config}
        print(said(answer), flush=True)
        yield answer


def said(answer: dict[str, Any]) -> str:
    """A cell as a table: a row for each side."""
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


def named(text: str) -> Config:
    """A config by name, changed by what follows a colon: `fineweb40m:model.remat=blocks`."""
    name, _, changes = text.partition(":")
    config = load_config(name)
    return variant(config, changes).config if changes else config


def parsed(argv: Sequence[str]) -> argparse.Namespace:
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
    add(
        "--most",
        type=common.positive_int,
        default=MOST,
        help=f"with --fit: the largest micro-batch to try (default: {MOST})",
    )
    add("--tiny", action="store_true", help="a one-layer model: shows that the script runs anywhere")
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


def one_cell(options: argparse.Namespace) -> dict[str, Any]:
    """The first config at the first micro-batch, in this process."""
    jax_setup.configure_jax()
    with tempfile.TemporaryDirectory() as place:
        common.random_tokens(Path(place), options.tokens)
        sets = {text: programs_of(options.cell, number) for number, text in enumerate(options.set)}
        return cell(first_config(options, Path(place)), sets, Path(place), options.rounds, options.updates)


def one_program(options: argparse.Namespace) -> dict[str, Any]:
    """The seconds that the one --set takes to compile; its program is left in the folder."""
    jax_setup.configure_jax()
    wanted = variant(first_config(options, Path("nowhere")), options.set[0])
    with cache_in(options.compile):
        return {"compile_cold_s": Side(wanted, {}).compile()}


def first_config(options: argparse.Namespace, folder: Path) -> Config:
    config = named(options.configs)
    config = sized(config.replace(TINY) if options.tiny else config, options.micro_batch[0])
    return prepared(config, folder, options)


def main(argv: Sequence[str]) -> int:
    options = parsed(argv)
    common.check_output_path(options.out)
    if options.cell or options.compile:
        common.write_json(options.out, one_cell(options) if options.cell else one_program(options))
        return 0
    for text in options.configs.split(","):
        for one in ["", *options.set]:
            variant(named(text), one) if one else named(text)  # a mistake is told before an hour of work
    found: dict[str, Any] = {"about": common.describe_environment_in_child(), "command": ["bench/step.py", *argv]}
    options.on_gpu = found["about"]["platform"] == "gpu"
    given = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", JAX_MEMORY_FRACTION))
    whole = (found["about"]["bytes_limit"] or 0) / given / GIB
    options.memory = [gib for gib in options.memory if not options.on_gpu or gib <= whole]
    options.share = lambda gib: gib / whole if options.on_gpu and gib else 0.0
    answers: list[dict[str, Any]] = []
    found["fit" if options.fit else "cells"] = answers
    for answer in (fit if options.fit else sweep)(options):
        answers.append(answer)
        common.write_json(options.out, found)  # after each: what is measured is kept, whatever comes
    return int(any("error" in one or one.get("failed") for one in answers))


if __name__ == "__main__":
    sys.exit(common.run(main))
