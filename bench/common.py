"""What the benches share: tokens, figures about the machine, side-by-side timing, tables and files.

    python bench/common.py      the device and versions, as JSON

Timings of things that are compared are taken in turns within one process, and medians are reported with the tenth and
ninetieth percentile, because clocks and neighbours drift.
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

GPT2_SIZE = 50257
ROOT = Path(__file__).parents[1]


def random_tokens(folder: Path, count: int) -> None:
    """GPT-2 ids in nanoGPT's layout, drawn evenly: matrix units are faster on zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(0).integers(0, GPT2_SIZE, count, dtype=np.uint16)
    ids.tofile(folder / "train.bin")
    ids[::-1].tofile(folder / "val.bin")  # other text: training on its own validation is refused


def run(main: Callable[[Sequence[str]], int | None]) -> int:
    """Runs a bench and returns its exit status; errors are sentences, as those of jaxgpt's own commands."""
    status: list[int | None] = []
    return errors.run(lambda argv: status.append(main(argv))) or status[0] or 0


def count(text: str) -> int:
    """A command line's number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def about() -> dict[str, Any]:
    """Device, versions and commit. Loads JAX; raises `ConfigError` C020 where that finds no device."""
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
        "commit": commit(),
    }


def about_from_outside() -> dict[str, Any]:
    """The same, asked in a process that gives the device back; ends this one where JAX does not start."""
    done = child([__file__])
    if done.returncode:
        print(done.stderr.strip() or "JAX does not start; python -m jaxgpt.doctor says why", file=sys.stderr)
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def commit() -> str | None:
    """The checkout's commit, with `+` if files differ from it."""
    asked = ["git", "-C", str(ROOT)]
    head = subprocess.run([*asked, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*asked, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def in_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call of each side, `rounds` times one after the other; a side returns when its work is done."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            started = time.perf_counter()
            sides[name]()
            took[name].append(time.perf_counter() - started)
    return took


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, tenth and ninetieth percentile, and the values themselves."""
    low, high = (float(np.quantile(values, q)) for q in (0.1, 0.9))
    return {"median": statistics.median(values), "p10": low, "p90": high, "values": list(values)}


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Rows in columns as wide as they need."""
    cells = [[*header], *([shown(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def ready(path: Path | None) -> None:
    """Makes the folder of a file that is to be written, before any work is done.

    Raises `ConfigError` C041 where there is such a file already, and `OSError` where there can be none.
    """
    if not path:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise ConfigError("C041", f"'{path}' exists already", "choose another name: nothing of yours is overwritten")
    path.touch()
    path.unlink()


def write(path: Path | None, found: Any) -> None:
    """`found` as JSON in `path`, whole or not at all."""
    if path:
        half = path.with_name(path.name + ".part")
        half.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        half.replace(path)


def child(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A bench or module in a process of its own, which gives back its device's memory whatever becomes of it."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def watched(arguments: Sequence[str], **environment: str) -> tuple[int, str]:
    """The same, shown as it comes: the exit status, and the last that it said of errors."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stderr
        last: deque[str] = deque(maxlen=5)
        for line in process.stderr:
            sys.stderr.write(line)
            last.extend([line.strip()] if line.strip() else [])
    return process.returncode, " ".join(last)[-1000:]


if __name__ == "__main__":
    sys.exit(run(lambda _: print(json.dumps(about()))))
