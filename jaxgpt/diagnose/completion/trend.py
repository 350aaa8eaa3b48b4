"""Detects whether a run gets faster or slower, by how much, and since which step.

The step times of the log are cut into at most `MAX_BLOCKS` blocks of equal length, each represented by its median, so
that single slow steps have no effect. A change is detected with Pettitt's rank test and located where two medians fit
best. The search is repeated on the steps after it, so that the last change counts: a GPU that was hot for an hour and
is cool again is not slower.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.utils import stats

Floats = NDArray[np.float64]

MAX_BLOCKS = 200
SKIPPED_FRACTIONS = (0.0, 0.25, 0.5, 0.75)  # of the first blocks, that the searches leave out one after another
MIN_BLOCKS = 8  # in which a change can be detected
SIGNIFICANT = 0.01  # probability of as large a change among steps that do not change
NOTICEABLE = 0.02  # of the step time: a smaller change is not reported
DRIFT = 0.8  # a change is a drift if a line leaves at most this fraction of the residuals that two levels leave


class Trend(NamedTuple):
    """The last change of the step time: seconds per step before and after it, and the step at which it started.

    A "drift" has changed steadily since `since`, from `before` to `after`, by `slope` seconds per step; a "jump" at
    once. `p_value` is the probability of such a change among steps that do not change.
    """

    kind: Literal["jump", "drift"]
    since: int
    before: float
    after: float
    p_value: float
    slope: float = 0.0

    @property
    def change(self) -> float:
        """The relative increase of the step time."""
        return self.after / self.before - 1


class Blocks(NamedTuple):
    """Medians of consecutive step times in seconds, and the first step of each block."""

    steps: NDArray[np.int64]
    seconds: Floats

    def from_index(self, first: int) -> "Blocks":
        """The blocks from index `first` on."""
        return Blocks(self.steps[first:], self.seconds[first:])


def median_blocks(steps: NDArray[np.int64], seconds: Floats, max_blocks: int = MAX_BLOCKS) -> Blocks:
    """At most `max_blocks` blocks of equally many steps; an incomplete last one joins the one before."""
    size = max(1, -(-len(steps) // max_blocks))
    count = len(steps) // size
    complete = seconds[: count * size].reshape(count, size)
    medians = np.median(complete, axis=1) if count else complete[:, 0]
    if count and count * size < len(seconds):
        medians[-1] = np.median(seconds[(count - 1) * size :])
    return Blocks(steps[: count * size : size], medians)


def find_trend(steps: NDArray[np.int64], seconds: Floats) -> Trend | None:
    """The last significant and noticeable change of the step time; None if there is none."""
    blocks = median_blocks(steps, seconds)
    trend = None
    while change := _first_change(blocks):
        trend, blocks = change
        if trend.kind == "drift":
            break
    return trend


def _first_change(blocks: Blocks) -> tuple[Trend, Blocks] | None:
    """The first change that is detected, and the blocks after it: in all blocks, else in shorter and shorter ends.

    A step time that rose and fell back leaves the ranks of all blocks balanced, but not those of their end.
    """
    for fraction in SKIPPED_FRACTIONS:
        end = blocks.from_index(round(fraction * len(blocks.seconds)))
        change = _detect_change(end) if len(end.seconds) >= MIN_BLOCKS else None
        if change:
            return change[0], end.from_index(change[1])
    return None


def _detect_change(blocks: Blocks) -> tuple[Trend, int] | None:
    """The change within `blocks`, and the index of the block that it starts with."""
    p_value = min(1.0, len(SKIPPED_FRACTIONS) * _pettitt(blocks.seconds))
    if p_value > SIGNIFICANT:
        return None
    index, residual_of_levels = _split(blocks.seconds)
    line = stats.theil_sen(blocks.steps.astype(np.float64), blocks.seconds)
    start, end = float(line.fitted[0]), float(line.fitted[-1])
    residual_of_line = float(np.abs(blocks.seconds - line.fitted).sum())
    before, after = float(np.median(blocks.seconds[:index])), float(np.median(blocks.seconds[index:]))
    if residual_of_line < DRIFT * residual_of_levels:
        trend = Trend("drift", int(blocks.steps[0]), start, end, p_value, line.slope)
        index = 0
    else:
        trend = Trend("jump", int(blocks.steps[index]), before, after, p_value)
    valid = before > 0 and start > 0 and abs(trend.change) >= NOTICEABLE
    return (trend, index) if valid else None


def _pettitt(values: Floats) -> float:
    """The approximate p-value of Pettitt's statistic (1979) for values in random order; ties share a rank."""
    count = len(values)
    _, index, times = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[index]
    sums = 2 * np.cumsum(ranks) - np.arange(1, count + 1) * (count + 1)
    largest = float(np.abs(sums[:-1]).max())
    return min(1.0, 2 * math.exp(-6 * largest**2 / (count**3 + count**2)))


def _split(values: Floats) -> tuple[int, float]:
    """The index at which two levels fit best, at least two blocks from either end, and their summed residuals."""

    def residual(index: int) -> float:
        parts = (values[:index], values[index:])
        return sum(float(np.abs(part - np.median(part)).sum()) for part in parts)

    residuals = [residual(index) for index in range(2, len(values) - 1)]
    best = int(np.argmin(residuals))
    return best + 2, residuals[best]
