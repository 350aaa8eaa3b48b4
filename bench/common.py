"""What the benches share: tokens, figures about the machine, side-by-side timing, tables and files.

Timings of things that are compared are taken in turns within one process, and medians are reported with the tenth and
ninetieth percentile, because clocks and neighbours drift.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GPT2_SIZE = 50257
ROOT = Path(__file__).parents[1]


def random_tokens(folder: Path, count: int) -> None:
    """GPT-2 ids in nanoGPT's layout, drawn evenly: matrix units are faster on zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(0).integers(0, GPT2_SIZE, count, dtype=np.uint16)
    ids.tofile(folder / "train.bin")
    ids[::-1].tofile(folder / "val.bin")  # other text: training on its own validation is refused


def about() -> dict[str, Any]:
    """Device, versions and commit. Loads JAX."""
    import jax
    import jaxlib

    import jaxgpt

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
        "jaxgpt": jaxgpt.__version__,
        "commit": commit(),
    }


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


def write(path: Path | None, found: Any) -> None:
    """`found` as JSON in `path`, whose folder is made."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def child(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A bench or module in a process of its own, which gives back its device's memory whatever becomes of it."""
    import os

    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
