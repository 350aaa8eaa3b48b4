"""How long the planner takes from its start to its last line, beside Python's own start.

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
    took = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(1e3 * (time.perf_counter() - started))
    return statistics.median(took[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    budget = [sys.executable, "-m", "jaxgpt.budget"]
    with tempfile.TemporaryDirectory() as place:
        page = str(Path(place) / "plan.html")
        for name, command in {
            "python -c pass": [sys.executable, "-c", "pass"],
            "budget": budget,
            "budget --json": [*budget, "--json"],
            "budget --compare-claims": [*budget, "--compare-claims"],
            "budget --hours 20": [*budget, "--hours", "20"],
            "budget --html": [*budget, "--html", page],
        }.items():
            print(f"{name:<26}{wall(command, runs):8.0f} ms")


if __name__ == "__main__":
    main()
