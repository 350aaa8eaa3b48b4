"""The loader compared with nanoGPT's `get_batch`: same machine, same files, same run.

    python bench/loader.py [--tokens 100_000_000] [--steps 200] [--rounds 5] [--json FILE]

Writes random tokens to a temporary folder and measures, for one step of 524,288 tokens (32 micro-batches of 16
sequences of 1,024): the processor time of all threads, the tokens per second and thread that this allows, how long
`next()` waits while a consumer computes for `--compute` ms per step, the time from nothing to the first batch, and the
time to resume in the middle of an epoch. Both read from the page cache. The rounds alternate; medians are printed.

nanoGPT's side is its `get_batch` in numpy, called once per micro-batch as in its training loop: the file is mapped each
time, and 16 slices are copied to int64 and stacked, for x and for y. (pin_memory would come on top.) It samples with
replacement; the loader is measured in that order ("random") and in its own ("epoch"), and checks every id as well.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

from jaxgpt._loader import Dataset, Loader, ShardWriter

BLOCK, MICRO_BATCH, ACCUM, VOCAB = 1024, 16, 32, 50_257
STEP_TOKENS = BLOCK * MICRO_BATCH * ACCUM
Batches = Iterator[Any]
Open = Callable[[int], Batches]


def nanogpt(path: Path) -> Open:
    """nanoGPT's train.py, `get_batch`, without torch."""
    rng = np.random.default_rng(0)

    def get_batch() -> tuple[np.ndarray, np.ndarray]:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        starts = rng.integers(0, len(data) - BLOCK, MICRO_BATCH)
        x = np.stack([data[i : i + BLOCK].astype(np.int64) for i in starts])
        y = np.stack([data[i + 1 : i + 1 + BLOCK].astype(np.int64) for i in starts])
        return x, y

    def batches(step: int) -> Batches:
        # nanoGPT has no position to resume from: it continues with other random numbers
        while True:
            yield [get_batch() for _ in range(ACCUM)]

    return batches


def jaxgpt(path: Path, order: str) -> Open:
    def batches(step: int) -> Batches:
        shape = {"block": BLOCK, "micro_batch": MICRO_BATCH, "accum": ACCUM}
        loader = Loader(Dataset([path]), order=order, start_step=step, vocab_size=VOCAB, **shape)
        return map(np.asarray, loader)

    return batches


def make_shards(folder: Path, tokens: int) -> tuple[Path, Path]:
    """The same random tokens as a shard and as nanoGPT's headerless file."""
    rng, shard, plain = np.random.default_rng(0), folder / "000.bin", folder / "train.bin"
    with ShardWriter(shard) as writer, plain.open("wb") as file:
        for done in range(0, tokens, 10_000_000):
            part = rng.integers(0, VOCAB, min(10_000_000, tokens - done), dtype=np.uint16)
            writer.append(part)
            file.write(part)
        writer.finish()
    return shard, plain


def cpu_per_step(batches: Batches, steps: int) -> float:
    """Processor seconds of all threads, user and system."""
    next(batches)
    begin = time.process_time()
    for _ in range(steps):
        next(batches)
    return (time.process_time() - begin) / steps


def waits(batches: Batches, steps: int, compute: float) -> list[float]:
    """How long each `next()` takes while the consumer is busy elsewhere (as a GPU's is) in between."""
    seconds = []
    for _ in range(steps):
        time.sleep(compute)
        begin = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - begin)
    return seconds


def first_batch(open_at: Open, step: int) -> float:
    begin = time.perf_counter()
    next(open_at(step))
    return time.perf_counter() - begin


def measure(open_at: Open, options: argparse.Namespace) -> dict[str, float]:
    middle = options.tokens // STEP_TOKENS // 2
    cpu = cpu_per_step(open_at(0), options.steps)
    waited = np.array(waits(open_at(0), options.steps, options.compute / 1000)) * 1e3
    return {
        "CPU ms per step": cpu * 1e3,
        "M tokens/s per thread": STEP_TOKENS / cpu / 1e6,
        "p50 wait of next(), ms": float(np.percentile(waited, 50)),
        "p99 wait of next(), ms": float(np.percentile(waited, 99)),
        "start to first batch, ms": first_batch(open_at, 0) * 1e3,
        "resume at half an epoch, ms": first_batch(open_at, middle) * 1e3,
    }


def compare(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name:
        shard, plain = make_shards(Path(name), options.tokens)
        sides = {"nanoGPT": nanogpt(plain), "random": jaxgpt(shard, "random"), "epoch": jaxgpt(shard, "epoch")}
        rounds = [{side: measure(open_at, options) for side, open_at in sides.items()} for _ in range(options.rounds)]
    figures = rounds[0]["epoch"].keys()
    return {
        figure: {side: statistics.median(one[side][figure] for one in rounds) for side in sides} for figure in figures
    }


def table(results: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':<30}{'nanoGPT':>12}{'random':>12}{'epoch':>12}"]
    for figure, sides in results.items():
        note = "  (nanoGPT cannot: it draws new ones)" if figure.startswith("resume") else ""
        lines.append(f"{figure:<30}" + "".join(f"{value:>12.3f}" for value in sides.values()) + note)
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compute", type=float, default=20.0, help="ms that the consumer is busy per step")
    parser.add_argument("--json", type=Path, help="also write the figures to this new file")
    options = parser.parse_args(argv)
    common.check_output_path(options.json)
    results = compare(options)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.tokens:,} tokens")
    print(table(results))
    if options.json:
        settings = {name: getattr(options, name) for name in ("tokens", "steps", "rounds", "compute")}
        common.write_json(options.json, {"settings": settings, "results": results})


if __name__ == "__main__":
    sys.exit(common.run(main))
