"""Whether a run gets faster or slower, by how much, and since which step.

The log's paces are cut into at most `BLOCKS` blocks of equal length, each block its median: odd slow steps leave no
trace in them. A change is looked for by Pettitt's rank test, placed where two medians fit best, and looked for again in
what follows it, so that the last change counts: a card that was hot for an hour and is cool again is no slower.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.utils import stats

Numbers = NDArray[np.float64]

BLOCKS = 200
LOOKS = (0.0, 0.25, 0.5, 0.75)  # shares of the blocks that a look leaves out
MIN_BLOCKS = 8  # blocks in which a change can be seen
SIGNIFICANT = 0.01  # probability of so large a change among steps that do not change
NOTICEABLE = 0.02  # of the pace: a smaller change is not worth a sentence
DRIFT = 0.8  # a slope must leave at most this much of what two levels leave, to be called one


class Trend(NamedTuple):
    """Seconds per step before and after the last change, the step since when, and how sure the change is.

    A "drift" has changed steadily since `since`, from `before` to `after`, by `slope` seconds per step; a "jump" at
    once. `chance` is the probability of such a change among steps that do not change.
    """

    kind: Literal["jump", "drift"]
    since: int
    before: float
    after: float
    chance: float
    slope: float = 0.0

    @property
    def change(self) -> float:
        """By how much the time of a step has grown, as a share."""
        return self.after / self.before - 1


class Blocks(NamedTuple):
    """Medians of consecutive paces, and the first step of each block."""

    steps: NDArray[np.int64]
    paces: Numbers

    def after(self, first: int) -> "Blocks":
        return Blocks(self.steps[first:], self.paces[first:])


def median_blocks(steps: NDArray[np.int64], seconds: Numbers, most: int = BLOCKS) -> Blocks:
    """At most `most` blocks of equally many lines; a last one that is not full joins the one before."""
    size = max(1, -(-len(steps) // most))
    count = len(steps) // size
    whole = seconds[: count * size].reshape(count, size)
    paces = np.median(whole, axis=1) if count else whole[:, 0]
    if count and count * size < len(seconds):
        paces[-1] = np.median(seconds[(count - 1) * size :])
    return Blocks(steps[: count * size : size], paces)


def find_trend(steps: NDArray[np.int64], seconds: Numbers) -> Trend | None:
    """The last change of pace that is significant and noticeable; None where there is none."""
    left, found = median_blocks(steps, seconds), None
    while change := _first_change(left):
        found, left = change
        if found.kind == "drift":
            break
    return found


def _first_change(held: Blocks) -> tuple[Trend, Blocks] | None:
    """The first change that is found, and what follows it: within all of `held`, else within ever less of its end.

    A pace that rose and fell back leaves the ranks of the whole in balance, but not those of its end.
    """
    starts = [round(share * len(held.paces)) for share in LOOKS]
    for ending in (held.after(start) for start in starts):
        if len(ending.paces) >= MIN_BLOCKS and (change := _change(ending)):
            return change[0], ending.after(change[1])
    return None


def _change(held: Blocks) -> tuple[Trend, int] | None:
    """The change within `held`, and the block that it begins with."""
    chance = min(1.0, len(LOOKS) * _pettitt(held.paces))
    if chance > SIGNIFICANT:
        return None
    place, two_levels = _split(held.paces)
    before, after = (float(np.median(part)) for part in (held.paces[:place], held.paces[place:]))
    slope, start, end, line = _line(held)
    if line < DRIFT * two_levels:
        found, place = Trend("drift", int(held.steps[0]), start, end, chance, slope), 0
    else:
        found = Trend("jump", int(held.steps[place]), before, after, chance)
    return (found, place) if before > 0 and start > 0 and abs(found.change) >= NOTICEABLE else None


def _pettitt(values: Numbers) -> float:
    """The approximate probability of Pettitt's statistic (1979) among values in random order; ties share a rank."""
    count = len(values)
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    sums = 2 * np.cumsum(ranks) - np.arange(1, count + 1) * (count + 1)
    largest = float(np.abs(sums[:-1]).max())
    return min(1.0, 2 * math.exp(-6 * largest**2 / (count**3 + count**2)))


def _split(values: Numbers) -> tuple[int, float]:
    """Where two levels fit best, at least two blocks from either end, and the sum of what they leave."""

    def cost(place: int) -> float:
        parts = (values[:place], values[place:])
        return sum(float(np.abs(part - np.median(part)).sum()) for part in parts)

    costs = [cost(place) for place in range(2, len(values) - 1)]
    best = int(np.argmin(costs))
    return best + 2, costs[best]


def _line(held: Blocks) -> tuple[float, float, float, float]:
    """Theil and Sen's line: its slope per step, its values at both ends, and the sum of what it leaves."""
    x, y = held.steps.astype(np.float64), held.paces
    slope, fitted = stats.theil_sen(x, y)
    return slope, float(fitted[0]), float(fitted[-1]), float(np.abs(y - fitted).sum())
