"""Baseline forecasts of the final loss, least-squares fits to the same points, that the annealing law has to beat.

Linear coefficients are solved exactly for each value of the others. A single exponent is searched on a grid of 200, the
Multi-Power Law's four nonlinear constants from eight starts, the published ones among them. Coefficients keep the sign
that their form gives them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jaxgpt.diagnose.forecast.schedule_integrals import MIN_LR_FRACTION, ScheduleIntegral

Floats = NDArray[np.float64]
Forecaster = Callable[[Floats, Floats, ScheduleIntegral], float]

POWERS = np.geomspace(0.02, 3.0, 200)
MEMORY = 0.999  # Tissue et al.'s decay of the annealing momentum, per step
MAX_GROUPS = 96  # groups of learning-rate decrements that the Multi-Power Law's kernel distinguishes
STARTS = 8


def last_value(steps: Floats, losses: Floats, schedule: ScheduleIntegral) -> float:
    return float(losses[-3:].mean())


def log_linear(steps: Floats, losses: Floats, schedule: ScheduleIntegral) -> float:
    """A line in the logarithm of the step through the last half."""
    late = steps >= steps[-1] / 2 if np.count_nonzero(steps >= steps[-1] / 2) > 2 else slice(None)
    slope, level = np.polyfit(np.log(steps[late]), losses[late], 1)
    return float(level + slope * np.log(schedule.length))


def power_law(steps: Floats, losses: Floats, schedule: ScheduleIntegral) -> float:
    """L0 + A step^-alpha: no learning rate."""
    return _best(steps, losses, lambda at, alpha: [at**-alpha], schedule.length)


def tissue(steps: Floats, losses: Floats, schedule: ScheduleIntegral) -> float:
    """L0 + A S1^-alpha - C S2 (Tissue et al., 2024), C at least 0."""
    momentum = _momentum(schedule)

    def columns(at: Floats, alpha: float) -> list[Floats]:
        return [schedule.cumulative_lr(1.0, at) ** -alpha, -np.interp(at, schedule.edges, momentum)]

    return _best(steps, losses, columns, schedule.length)


def _momentum(schedule: ScheduleIntegral) -> Floats:
    """S2 at the edges: the sum of past decrements, each discounted by `MEMORY` per step."""
    width, falls = np.diff(schedule.edges), -np.diff(schedule.lr_fractions, prepend=0.0)
    falls[schedule.edges[:-1] <= schedule.warmup + width] = 0.0  # a block in which the warmup ends is not a decrement
    momentum = np.zeros(len(width) + 1)
    area = 0.0
    for block, fall in enumerate(falls):
        start = area + fall
        keep = MEMORY ** width[block]
        momentum[block + 1] = momentum[block] + start * (1 - keep) / (1 - MEMORY)
        area = start * keep
    return momentum


def multi_power(steps: Floats, losses: Floats, schedule: ScheduleIntegral) -> float:
    """L0 + A S1^-alpha - B x the kernel of all decrements (Luo et al., 2025): seven constants, A and B at least 0."""
    kernel = _Kernel(np.append(steps, schedule.length), schedule)

    def solve(theta: Floats) -> tuple[Floats, float]:
        columns = kernel.columns(*np.exp(np.clip(theta, -8.0, 3.0)))
        return _solve([column[:-1] for column in columns], losses, [float(column[-1]) for column in columns])

    published = np.log([0.45, 0.11, 0.59, 0.64])
    random = np.random.default_rng(0)
    starts = [published] + [published + random.normal(0, 0.5, 4) for _ in range(STARTS - 1)]
    best = min((_descend(solve, start) for start in starts), key=lambda theta: float(np.sum(solve(theta)[0] ** 2)))
    return solve(best)[1]


class _Kernel:
    """The decrements of a schedule in at most `MAX_GROUPS` groups, and their distance to each of `steps`."""

    def __init__(self, steps: Floats, schedule: ScheduleIntegral) -> None:
        self.travel = schedule.cumulative_lr(1.0, steps)
        fallen = np.where(schedule.edges[:-1] < schedule.warmup, 0.0, 1 - schedule.lr_fractions)
        weight = np.abs(np.diff(fallen, prepend=0.0))
        falling = np.flatnonzero(weight)
        groups = np.array_split(falling, MAX_GROUPS) if len(falling) else []
        groups = [group for group in groups if len(group)]
        self.falls = np.array([np.diff(fallen, prepend=0.0)[group].sum() for group in groups])
        self.lr_fractions = np.maximum([schedule.lr_fractions[group].mean() for group in groups], MIN_LR_FRACTION)
        cumulative = schedule.cumulative_lr(1.0, schedule.edges[:-1])
        self.distance = np.maximum(self.travel[:, None] - np.array([cumulative[group].mean() for group in groups]), 0.0)

    def columns(self, alpha: float, speed: float, power_: float, gamma: float) -> list[Floats]:
        """The factors of A and B."""
        if not len(self.falls):
            return [self.travel**-alpha, np.zeros(len(self.travel))]
        done = 1 - (1 + speed * self.lr_fractions**-gamma * self.distance) ** -power_
        return [self.travel**-alpha, -(done @ self.falls)]


def _descend(solve: Callable[[Floats], tuple[Floats, float]], theta: Floats) -> Floats:
    """Levenberg-Marquardt descent with finite differences."""
    residual, damping = solve(theta)[0], 1e-2
    for _ in range(40):
        slopes = np.stack([(solve(theta + step)[0] - residual) / 1e-4 for step in 1e-4 * np.eye(len(theta))], axis=1)
        normal = slopes.T @ slopes
        move = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), -slopes.T @ residual)
        candidate = theta + np.clip(move, -1.0, 1.0)
        candidate_residual = solve(candidate)[0]
        before, after = float(residual @ residual), float(candidate_residual @ candidate_residual)
        better = after < before
        if better and before - after < 1e-7 * before:
            return np.asarray(candidate, np.float64)
        theta, residual = (candidate, candidate_residual) if better else (theta, residual)
        damping *= 0.3 if better else 5.0
        if damping > 1e6:
            break
    return theta


def _best(steps: Floats, losses: Floats, columns: Callable[[Floats, float], list[Floats]], end: float) -> float:
    """The forecast of the exponent that fits best."""
    at, errors, forecasts = np.append(steps, end), [], []
    for alpha in POWERS:
        parts = columns(at, float(alpha))
        residual, value = _solve([part[:-1] for part in parts], losses, [float(part[-1]) for part in parts])
        errors.append(float(residual @ residual))
        forecasts.append(value)
    return forecasts[int(np.argmin(errors))]


def _solve(columns: list[Floats], losses: Floats, ends: list[float]) -> tuple[Floats, float]:
    """Residuals and value at `ends` of the best level + columns, each column's coefficient at least 0."""
    kept = list(range(len(columns)))
    while True:
        design = np.stack([np.ones(len(losses))] + [columns[i] for i in kept], axis=1)
        scale = np.maximum(np.abs(design).max(axis=0), 1e-30)
        weights = np.linalg.lstsq(design / scale, losses, rcond=1e-10)[0] / scale
        negative = [i for i, weight in zip(kept, weights[1:]) if weight < 0]
        if not negative:
            return losses - design @ weights, float(
                weights[0] + weights[1:] @ np.array([ends[i] for i in kept], np.float64)
            )
        kept.remove(negative[-1])


METHODS: dict[str, Forecaster] = {
    "last": last_value,
    "log-linear": log_linear,
    "power": power_law,
    "Tissue": tissue,
    "multi-power": multi_power,
}
