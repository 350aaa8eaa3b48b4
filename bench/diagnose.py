"""Measures the time of a forecast, of a diagnosis, and of the whole command, for logs of two lengths.

    python bench/diagnose.py [--runs 9] [--steps 20000 1000000]

The logs are synthetic: a line for every step as nanoGPT prints it, and an evaluation every 500 steps. Prints medians of
wall-clock and CPU time (which depends less on other work on the machine). "forecast" and "diagnosis" are measured after
import, "read" reads the log.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt import logs
from jaxgpt.diagnose import diagnosis
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.diagnose.options import Options


def log(steps: int, ahead: float = 0.7) -> str:
    """The output of nanoGPT for the first 70 % of a run, with a line for every step."""
    lines = ["tokens per iteration will be: 524,288", "number of parameters: 40.56M", f"max_iters = {steps}"]
    for step in range(round(ahead * steps)):
        loss = 3.2 + 7.7 * (1 + step * 20_000 / steps / 40) ** -0.48
        if step % 500 == 0:
            lines.append(f"step {step}: train loss {loss + 0.03:.4f}, val loss {loss + 0.004 * math.sin(step):.4f}")
        lines.append(f"iter {step}: loss {loss + 0.05 * math.sin(7 * step):.4f}, time {3995 + step % 40}.11ms")
    return "\n".join(lines) + "\n"


class Times(NamedTuple):
    """Milliseconds of wall-clock time, and of CPU time in this process and its children."""

    wall: float
    cpu: float


def median(work: Callable[[], Any], runs: int) -> Times:
    """Median times of `work`, after one run that fills the caches."""
    took = []
    for _ in range(runs + 1):
        started, before = time.perf_counter(), sum(os.times()[:4])
        work()
        took.append((1e3 * (time.perf_counter() - started), 1e3 * (sum(os.times()[:4]) - before)))
    walls, cpus = zip(*took[1:])
    return Times(statistics.median(walls), statistics.median(cpus))


def measure(path: Path, steps: int, runs: int) -> dict[str, Times]:
    options = Options(config="fineweb40m", total_steps=steps)
    history = logs.read(path)
    context = resolve_context(history, options)
    command = [
        sys.executable,
        "-m",
        "jaxgpt.diagnose",
        str(path),
        "--config",
        "fineweb40m",
        "--total-steps",
        str(steps),
    ]
    page = [*command, "--html", str(path.with_suffix(".html"))]

    def whole(arguments: list[str]) -> None:
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)

    return {
        "forecast": median(lambda: forecast_run(history, context), runs),
        "diagnosis": median(lambda: diagnosis.diagnose(history, context, now=0.0), runs),
        "read": median(lambda: logs.read(path), min(runs, 3)),
        "command": median(lambda: whole(command), min(runs, 3)),
        "command --html": median(lambda: whole(page), min(runs, 3)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--steps", type=int, nargs="+", default=[20_000, 1_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for steps in options.steps:
            path = Path(folder) / f"{steps}.log"
            path.write_text(log(steps))
            for name, took in measure(path, steps, options.runs).items():
                print(
                    f"{steps:>12,} steps  {name:<16}{took.wall:10,.0f} ms{took.cpu:10,.0f} ms CPU",
                    flush=True,
                )


if __name__ == "__main__":
    main()
