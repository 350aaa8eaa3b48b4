"""Fits the costs of learning rate and batch in `jaxgpt.budget.recipes` to StepLaw's public runs.

    python bench/recipes.py STEPLAW_CSV

STEPLAW_CSV is the table of dense models in StepLaw's repository (Li et al. 2025): a row per run with `N`, `D`, `lr`,
`bs` (sequences of 2,048 tokens) and `smooth loss`. All costs are differences within a size and length. Needs numpy.
"""

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget import recipes

Array = NDArray[np.float64]
CONTEXT = 2048
BATCHES = (1e5, 1.1e6)  # tokens per step of the runs that the learning rate's cost is fitted to
FLAT = 0.5  # rates nearer to the best one, in logarithms, say little about the cost
LEAST_COST = 1e-3


class RateCosts(NamedTuple):
    """By run: the logarithm of its rate over the best one of its size, length and batch; its cost; its steps."""

    distance: Array
    cost: Array
    steps: Array


def read(path: Path) -> dict[tuple[float, float], dict[float, list[tuple[float, float]]]]:
    """Pairs of learning rate and loss by size and length, and by batch in tokens."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    runs: dict[tuple[float, float], dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        batch = CONTEXT * float(row["bs"])
        runs[float(row["N"]), float(row["D"])][batch].append((float(row["lr"]), float(row["smooth loss"])))
    return runs


def rate_costs(path: Path) -> RateCosts:
    """The costs of all rates, against the vertex of a parabola through the three best of the same batch."""
    collected = []
    for (_, tokens), batches in read(path).items():
        for batch, pairs in batches.items():
            pairs = sorted(pairs)
            best = min(range(len(pairs)), key=lambda n: pairs[n][1])
            if not BATCHES[0] <= batch <= BATCHES[1] or best in (0, len(pairs) - 1):
                continue
            logs = np.log([rate for rate, _ in pairs])
            losses = np.array([loss for _, loss in pairs])
            near = slice(best - 1, best + 2)
            curve = np.polyfit(logs[near] - logs[best], losses[near], 2)
            vertex = -curve[1] / 2 / curve[0]
            lowest = float(np.polyval(curve, vertex))
            for log_rate, loss in zip(logs, losses, strict=True):
                collected.append((log_rate - logs[best] - vertex, loss - lowest, tokens / batch))
    return RateCosts(*np.array(collected).T)


def fit_low_rates(costs: RateCosts) -> tuple[float, float, float]:
    """`LOW`, `LOW_POWER` and `STEPS_POWER`, by regression of the logarithm of the cost."""
    chosen = (costs.distance < -FLAT) & (costs.cost > LEAST_COST)
    columns = [
        np.ones(int(chosen.sum())),
        np.log(-costs.distance[chosen]),
        np.log(costs.steps[chosen] / recipes.REFERENCE_STEPS),
    ]
    solution, *_ = np.linalg.lstsq(np.column_stack(columns), np.log(costs.cost[chosen]), rcond=None)
    return math.exp(solution[0]), float(solution[1]), float(solution[2])


def fit_high_rates(costs: RateCosts) -> float:
    """`HIGH`: the median of cost over squared distance, as a few of these runs diverge."""
    chosen = (costs.distance > FLAT) & (costs.distance < 3 * FLAT)
    return float(np.median(costs.cost[chosen] / costs.distance[chosen] ** 2))


def batch_costs(path: Path) -> tuple[Array, Array, Array]:
    """Batch, tokens and cost of larger batches than 524,288 tokens, each at its own best learning rate."""
    collected = []
    for (_, tokens), batches in read(path).items():
        lowest = {batch: min(loss for _, loss in pairs) for batch, pairs in batches.items()}
        reference = lowest.get(recipes.REFERENCE_BATCH)
        if reference is not None:
            larger = [batch for batch in lowest if batch > recipes.REFERENCE_BATCH]
            collected += [(batch, tokens, lowest[batch] - reference) for batch in larger]
    batch, tokens, cost = np.array(collected).T
    return batch, tokens, cost


def fit_batches(batch: Array, tokens: Array, cost: Array) -> tuple[float, float, float, float]:
    """`BATCH`, `BATCH_POWER`, `TOKENS_POWER` and the root mean square of what they leave, from a grid of the powers."""
    trials = []
    for power in np.arange(0.5, 1.6, 0.05):
        for tokens_power in np.arange(-1.2, 0.0, 0.05):
            shape = ((batch / recipes.REFERENCE_BATCH) ** power - 1) * (tokens / 1e10) ** tokens_power
            factor = float(shape @ cost / (shape @ shape))
            error = float(np.sqrt(np.mean((cost - factor * shape) ** 2)))
            trials.append((error, factor, float(power), float(tokens_power)))
    error, factor, power, tokens_power = min(trials)
    return factor, power, tokens_power, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    path = parser.parse_args().csv
    costs = rate_costs(path)
    low, low_power, steps_power = fit_low_rates(costs)
    print(f"LOW {low:.4f}, LOW_POWER {low_power:.2f}, STEPS_POWER {steps_power:.2f}, HIGH {fit_high_rates(costs):.3f}")
    factor, power, tokens_power, error = fit_batches(*batch_costs(path))
    print(f"BATCH {factor:.4f}, BATCH_POWER {power:.2f}, TOKENS_POWER {tokens_power:.2f}; rms {error:.4f} nats")


if __name__ == "__main__":
    main()
