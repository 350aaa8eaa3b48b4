"""Shared by the benchmarks: random tokens, facts about the machine, interleaved timing, tables and files.

    python bench/common.py      the device and versions, as JSON

Alternatives that are compared run interleaved in one process, and medians are reported with the tenth and ninetieth
percentile, because clocks and other load drift.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt import errors
from jaxgpt.errors import ConfigError
from jaxgpt.utils import files

GPT2_SIZE = 50257
ROOT = Path(__file__).parents[1]
OTHER_NAME = "choose another name: existing files are not overwritten"


def random_tokens(folder: Path, count: int) -> None:
    """Writes uniformly random GPT-2 ids in nanoGPT's layout. (Zeros would not do: matrix units are faster on them.)"""
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(0).integers(0, GPT2_SIZE, count, dtype=np.uint16)
    ids.tofile(folder / "train.bin")
    ids[::-1].tofile(folder / "val.bin")  # other text: train refuses to validate on its training data


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a benchmark and returns its exit status; errors are printed as by jaxgpt's own commands."""
    status: list[int | None] = []
    return errors.run(lambda arguments: status.append(main(arguments)), argv) or status[0] or 0


def positive_int(text: str) -> int:
    """Parses a command-line number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def describe_environment() -> dict[str, Any]:
    """Device, versions and commit. Loads JAX; raises `ConfigError` C020 if it sees no device."""
    import jax
    import jaxlib

    import jaxgpt
    from jaxgpt import config
    from jaxgpt.training import mesh

    device = mesh.make_mesh(config.Mesh(data_parallel=1), 1).devices.flat[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "bytes_limit": (device.memory_stats() or {}).get("bytes_limit"),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
        "jaxgpt": jaxgpt.__version__,
        "commit": git_commit(),
    }


def describe_environment_in_child() -> dict[str, Any]:
    """`describe_environment` from a child process, which then frees the device; exits if JAX does not start."""
    done = run_child([__file__])
    if done.returncode:
        print(done.stderr.strip() or "JAX does not start; python -m jaxgpt.doctor says why", file=sys.stderr)
        raise SystemExit(done.returncode)
    environment: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return environment


def git_commit() -> str | None:
    """The commit of the checkout, with `+` if files are modified."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def time_interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call of each side, interleaved over `rounds`; a side must return when its work is done."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            started = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, tenth and ninetieth percentile, and the values themselves."""
    low, high = (float(np.quantile(values, q)) for q in (0.1, 0.9))
    return {"median": statistics.median(values), "p10": low, "p90": high, "values": list(values)}


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Rows as text with aligned columns."""
    cells = [[*header], *([format_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def format_cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def check_output_path(path: Path | None) -> None:
    """Creates the folder of an output file before any work is done.

    Raises `ConfigError` C041 if the file exists, and `OSError` if it cannot be written.
    """
    if not path:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise ConfigError("C041", f"'{path}' exists already", OTHER_NAME)
    path.touch()
    path.unlink()


def write_json(path: Path | None, data: Any) -> None:
    """Writes `data` as JSON to `path`, atomically; does nothing without a path."""
    if path:
        files.write_text(path, json.dumps(data, indent=2) + "\n")


def run_child(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a benchmark or module in a child process, which frees the memory of its device in any case."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def run_child_and_echo(arguments: Sequence[str], **environment: str) -> tuple[int, str]:
    """Runs a child process and echoes its stderr; returns its exit status and the end of its stderr."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stderr
        last: deque[str] = deque(maxlen=5)
        for line in process.stderr:
            sys.stderr.write(line)
            last.extend([line.strip()] if line.strip() else [])
    return process.returncode, " ".join(last)[-1000:]


if __name__ == "__main__":
    sys.exit(run(lambda _: print(json.dumps(describe_environment()))))
