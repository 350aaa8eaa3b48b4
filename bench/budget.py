"""Measures how long the planner takes from its start to its last line, and Python's own start.

    python bench/budget.py [--runs 9]

Prints medians of wall time in milliseconds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def wall(command: list[str], runs: int) -> float:
    """The median wall time of `command` in milliseconds, after one run that fills the caches."""
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    budget = [sys.executable, "-m", "jaxgpt.budget", "fineweb40m"]
    with tempfile.TemporaryDirectory() as folder:
        page = str(Path(folder) / "plan.html")
        for name, command in {
            "python -c pass": [sys.executable, "-c", "pass"],
            "budget": budget,
            "budget --json": [*budget, "--json"],
            "budget --hours 20": [*budget, "--hours", "20"],
            "budget --html": [*budget, "--html", page],
        }.items():
            print(f"{name:<26}{wall(command, runs):8.0f} ms")


if __name__ == "__main__":
    main()
