"""Fits the costs of learning rate and batch in `jaxgpt.budget.recipes` to StepLaw's public runs.

    python bench/recipes.py STEPLAW_CSV

STEPLAW_CSV is the table of dense models in StepLaw's repository (Li et al. 2025): a row per run with `N`, `D`, `lr`,
`bs` (sequences of 2,048 tokens) and `smooth loss`. All costs are differences within a size and length. Needs numpy.
"""

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget import recipes

Array = NDArray[np.float64]
CONTEXT = 2048
BATCHES = (1e5, 1.1e6)  # tokens per step of the runs that the learning rate's cost is fitted to
BEST_RATE_BATCHES = (1e5, 2.2e6)  # and of those that the best rate's powers are fitted to
FLAT = 0.5  # rates nearer to the best one, in logarithms, say little about the cost
LEAST_COST = 1e-3
POWERS = ("width", "depth", "batch", "tokens")


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


class BestRate(NamedTuple):
    """The best learning rate of a size, length and batch, from a parabola through the three best runs.

    `log_rate` and `loss` are those of its vertex; `runs` are the pairs of rate and loss of all runs.
    """

    size: float
    tokens: float
    batch: float
    log_rate: float
    loss: float
    runs: list[tuple[float, float]]


def best_rates(path: Path) -> Iterator[BestRate]:
    """The best rates where runs with a lower and a higher one exist."""
    for (size, tokens), batches in read(path).items():
        for batch, pairs in batches.items():
            pairs = sorted(pairs)
            best = min(range(len(pairs)), key=lambda n: pairs[n][1])
            if best in (0, len(pairs) - 1):
                continue
            near = np.array(pairs[best - 1 : best + 2])
            logs = np.log(near[:, 0] / near[1, 0])
            curve = np.polyfit(logs, near[:, 1], 2)
            vertex = -curve[1] / 2 / curve[0]
            log_rate = math.log(near[1, 0]) + vertex
            yield BestRate(size, tokens, batch, log_rate, float(np.polyval(curve, vertex)), pairs)


def rate_costs(path: Path) -> RateCosts:
    """The costs of all rates, against the best of the same size, length and batch."""
    collected = [
        (math.log(rate) - best.log_rate, loss - best.loss, best.tokens / best.batch)
        for best in best_rates(path)
        if BATCHES[0] <= best.batch <= BATCHES[1]
        for rate, loss in best.runs
    ]
    return RateCosts(*np.array(collected).T)


def fit_best_rates(path: Path) -> tuple[Array, Array]:
    """The powers of width, depth, batch and tokens in the best rate, and their standard errors (docs/sweep.md)."""
    with path.open(encoding="utf-8", newline="") as file:
        shapes = {float(row["N"]): (float(row["h"]), float(row["numl"])) for row in csv.DictReader(file)}
    rates = [rate for rate in best_rates(path) if BEST_RATE_BATCHES[0] <= rate.batch <= BEST_RATE_BATCHES[1]]
    columns = np.log([(*shapes[rate.size], rate.batch, rate.tokens) for rate in rates])
    design = np.column_stack([np.ones(len(rates)), columns])
    observed = np.array([rate.log_rate for rate in rates])
    solution, squares, *_ = np.linalg.lstsq(design, observed, rcond=None)
    variance = squares[0] / (len(rates) - design.shape[1])
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    return solution[1:], errors[1:]


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
    powers = [f"{name} {power:.2f} ± {sd:.2f}" for name, power, sd in zip(POWERS, *fit_best_rates(path))]
    print(f"best rate, powers of: {', '.join(powers)}")


if __name__ == "__main__":
    main()
