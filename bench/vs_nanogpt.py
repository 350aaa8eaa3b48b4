"""The full train step of jaxgpt compared with nanoGPT's, on the same machine in interleaved rounds.

    python bench/vs_nanogpt.py --nanogpt PATH [--config NAME] [--eager] [--compiled] [--sdpa cudnn|default]
                               [--also flax] [--rounds 12] [--updates 5] [--cores N] [--cpu-time] [--json FILE]
                               [--any.field VALUE …]

PATH is a checkout of nanoGPT: its model.py is imported, and its `configure_optimizers`, loss, clipping and autocast are
used like in its train.py, with the size, precision, batch, accumulation and dropout of the config. Both train on the
same random tokens (Zipf), which are on the device beforehand, and do full steps: forward, backward, clip, AdamW.

Each side is a child process, controlled through pipes: only one works at a time. Each turn follows a pause, in which
the threads of the other side fall asleep, and begins with a step that is not timed. A round is one turn of every side.
Speed is nanoGPT's median seconds divided by jaxgpt's; the interval is the middle 80 % of 2,000 bootstrap resamples.

On a busy machine, `--cores 1 --cpu-time` compares the processor time of one thread each, which excludes waiting for a
core.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rivals import Order, Turn, check

from jaxgpt.config import Config
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.options import Parser
from jaxgpt.errors import ConfigError

PAUSE = 0.1  # seconds between turns; OpenMP threads spin for some milliseconds after their work
RESAMPLINGS = 2000
SMALL_MODEL = (  # without --config: 4 layers, width 128, 4 x 256 tokens
    "--config quickstart --model.architecture gpt2 --model.n-layer 4 --model.n-embd 128 --model.block-size 256 "
    "--model.vocab-size 4096 --data.micro-batch 4 --data.accum 1 --optim.optimizer adamw"
)


class SideError(ConfigError):
    """A side of the comparison ended early (C063)."""


class Side:
    """A side that runs in its own process."""

    def __init__(self, name: str, order: Order) -> None:
        self.name = name
        self.turns: list[Turn] = []
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("rivals.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # the sides share the device's memory
        )
        self.versions: dict[str, str] = self._ask(json.dumps(dataclasses.asdict(order)))["versions"]

    def turn(self, updates: int) -> None:
        self.turns.append(Turn(*self._ask(str(updates))))

    def close(self) -> None:
        """Ends the process and waits for it."""
        with contextlib.suppress(BrokenPipeError):  # it has already ended
            self._process.communicate()
        self._log.close()

    @property
    def seconds(self) -> np.ndarray:
        return np.array([turn.seconds for turn in self.turns])

    @property
    def cpu_seconds(self) -> np.ndarray:
        return np.array([turn.cpu_seconds for turn in self.turns])

    def _ask(self, line: str) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failed() from None
        reply = self._process.stdout.readline()
        if not reply:
            raise self._failed()
        answer = json.loads(reply)
        if "error" in answer:
            raise ConfigError(*answer["error"])
        return answer

    def _failed(self) -> "SideError":
        """The error with the last line of the process's output."""
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().split("\n")
        last_line = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return SideError("C063", f"{self.name} ended with status {self._process.returncode}: {last_line}", "--debug")


def orders(options: argparse.Namespace, config: Config) -> dict[str, Order]:
    """The sides to measure, by name, jaxgpt first."""
    plain = config.to_dict()
    sides = {"jaxgpt": Order("jaxgpt", plain)}
    both = not (options.eager or options.compiled)
    for name, wanted in (("eager", options.eager or both), ("compiled", options.compiled or both)):
        for sdpa in options.sdpa or ["default"]:
            if wanted:
                suffix = "" if sdpa == "default" else f" {sdpa}"
                folder = str(options.nanogpt.resolve())
                sides[f"nanogpt {name}{suffix}"] = Order("nanogpt", plain, folder, name == "compiled", sdpa)
    for name in options.also:
        sides[name] = Order(name, plain)
    return {name: dataclasses.replace(order, cores=options.cores) for name, order in sides.items()}


def run_sides(orders: dict[str, Order], rounds: int, updates: int) -> tuple[list[Side], dict[str, str]]:
    """Builds every side and runs the rounds; returns the sides that succeeded, and the errors of the others."""
    sides: list[Side] = []
    failed: dict[str, str] = {}
    try:
        for name, order in track(orders.items(), "building", console=Console(stderr=True), transient=True):
            with record_failure(failed, name):
                sides.append(Side(name, order))
        for _ in track(range(rounds), "rounds", console=Console(stderr=True), transient=True):
            for side in sides:
                if side.name not in failed:
                    time.sleep(PAUSE)
                    with record_failure(failed, side.name):
                        side.turn(updates)
        return [side for side in sides if side.name not in failed], failed
    finally:
        for side in sides:
            side.close()


@contextlib.contextmanager
def record_failure(failed: dict[str, str], name: str) -> Iterator[None]:
    """Records why another side ended (C063), such as out of memory; an error of jaxgpt's side is raised."""
    try:
        yield
    except SideError as error:
        if name == "jaxgpt":
            raise
        failed[name] = error.message


def interval(baseline: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The middle 80 % of the ratio of medians, other over baseline, over resampled rounds."""
    picks = np.random.default_rng(0).integers(0, len(baseline), (RESAMPLINGS, len(baseline)))
    ratios = np.median(other[picks], axis=1) / np.median(baseline[picks], axis=1)
    low, high = np.quantile(ratios, (0.1, 0.9))
    return float(low), float(high)


def figures(sides: list[Side], tokens: int, cpu_time: bool) -> list[dict[str, Any]]:
    """The figures of each side and the speed of the first one relative to it, by wall or processor time."""
    seconds_of = [side.cpu_seconds if cpu_time else side.seconds for side in sides]
    return [
        {
            "name": side.name,
            "ms": 1e3 * float(np.median(seconds)),
            "ms_p10_p90": [1e3 * float(np.quantile(seconds, q)) for q in (0.1, 0.9)],
            "tokens_per_second": tokens / float(np.median(seconds)),
            "ours_times_as_fast": float(np.median(seconds) / np.median(seconds_of[0])),
            "interval_80": interval(seconds_of[0], seconds),
            "last_loss": side.turns[-1].loss,
            "versions": side.versions,
            "seconds": side.seconds.tolist(),
            "cpu_seconds": side.cpu_seconds.tolist(),
        }
        for side, seconds in zip(sides, seconds_of, strict=True)
    ]


def print_table(rows: list[dict[str, Any]], config: Config, cpu_time: bool) -> None:
    m, d = config.model, config.data
    print(f"{m.n_layer} layers, width {m.n_embd}, {m.n_head} heads, vocabulary {m.vocab_size:,}; a step of", end=" ")
    print(f"{d.accum} x {d.micro_batch} x {m.block_size} tokens; on {rows[0]['versions']['device']}")
    table = Table("", "ms of processor time" if cpu_time else "ms", "p10-p90", "tokens/s", "jaxgpt is", "80 %", "loss")
    for row in rows:
        low, high = row["interval_80"]
        spread = "-".join(f"{ms:,.1f}" for ms in row["ms_p10_p90"])
        rate, loss = f"{row['tokens_per_second']:,.0f}", f"{row['last_loss']:.3f}"
        ratio = f"{row['ours_times_as_fast']:.2f}x"
        table.add_row(row["name"], f"{row['ms']:,.1f}", spread, rate, ratio, f"{low:.2f}-{high:.2f}", loss)
    Console().print(table)


def parse_arguments(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    parser = Parser("vs_nanogpt", (__doc__ or "").split("\n\n")[0], "--nanogpt PATH [options]")
    parser.prog = "python bench/vs_nanogpt.py"
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="PATH", help="a checkout of nanoGPT")
    parser.add_argument("--eager", action="store_true", help="nanoGPT without torch.compile (default: both)")
    parser.add_argument("--compiled", action="store_true", help="nanoGPT with torch.compile (default: both)")
    parser.add_argument("--sdpa", action="append", choices=["default", "cudnn"], help="PyTorch's attention kernel")
    parser.add_argument("--also", action="append", default=[], choices=["flax"], help="a further side")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each side (default: 12)")
    parser.add_argument("--updates", type=int, default=5, help="steps timed in a turn (default: 5)")
    parser.add_argument("--cores", type=int, default=0, help="cores that each side may use (default: all)")
    parser.add_argument("--cpu-time", action="store_true", help="compare processor time instead of wall time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the raw figures")
    config, options = parse_config(parser, argv if "--config" in argv else [*SMALL_MODEL.split(), *argv])
    for name in ("rounds", "updates"):
        if getattr(options, name) < 1:
            raise ConfigError("C009", f"--{name} = {getattr(options, name)}; must be 1 or more")
    available = len(os.sched_getaffinity(0))
    if not 0 <= options.cores <= available:
        raise ConfigError("C009", f"--cores = {options.cores}; must be 1 to {available}, or 0 for all")
    return config, options


def main(argv: Sequence[str]) -> int:
    config, options = parse_arguments(argv)
    common.check_output_path(options.json)
    wanted = orders(options, config)
    for order in wanted.values():
        if order.kind == "nanogpt":
            check(order)
    sides, failed = run_sides(wanted, options.rounds, options.updates)
    rows = figures(sides, config.tokens_per_step, options.cpu_time)
    print_table(rows, config, options.cpu_time)
    for name, error in failed.items():
        print(f"{name} does not run: {error}")
    if options.json:
        about: dict[str, Any] = {"cores": options.cores or len(os.sched_getaffinity(0)), "cpu_time": options.cpu_time}
        about["python"] = platform.python_version()
        about |= {"machine": platform.machine(), "date": time.strftime("%Y-%m-%d")}
        result = {"about": about, "config": config.to_dict(), "sides": rows, "failed": failed}
        common.write_json(options.json, result)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(common.run(main))
