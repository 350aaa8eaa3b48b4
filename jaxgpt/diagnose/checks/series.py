"""Numbers that findings are made of: series of a log without what is not finite, and robust figures over them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.logs.history import Evaluation, History
from jaxgpt.utils import stats

Floats = NDArray[np.float64]
MOST = 1e6  # no loss, gradient norm or other value of a run that is not broken is larger
SECOND_DIFFERENCE = math.sqrt(6)  # standard deviation of a - 2 b + c over that of each


class Estimate(NamedTuple):
    """A value, its standard error, and the log's lines behind it."""

    value: float
    error: float
    lines: tuple[int, ...] = ()


class Series(NamedTuple):
    """Finite values by step, with their lines."""

    steps: Floats
    values: Floats
    lines: NDArray[np.int64]

    def between(self, first: float, last: float) -> "Series":
        """The part with `first` <= step < `last`."""
        kept = (self.steps >= first) & (self.steps < last)
        return Series(self.steps[kept], self.values[kept], self.lines[kept])

    def __len__(self) -> int:
        return len(self.steps)


def number(value: float) -> bool:
    """Whether a logged value can be calculated with: neither NaN nor infinite nor as good as that."""
    return abs(value) < MOST


def series(rows: Sequence[tuple[int, float | None, int]]) -> Series:
    """(step, value, line) as a series; what is no `number` is left out."""
    kept = [(step, value, line) for step, value, line in rows if value is not None and number(value)]
    steps, values, lines = zip(*kept) if kept else ((), (), ())
    return Series(np.array(steps, np.float64), np.array(values, np.float64), np.array(lines, np.int64))


def step_losses(history: History) -> Series:
    """Training losses of the updates, as far as they are finite."""
    return series([(step.step, step.loss, step.line) for step in history.steps])


def grad_norms(history: History) -> Series:
    return series([(step.step, step.grad_norm, step.line) for step in history.steps])


def validations(history: History) -> tuple[Evaluation, ...]:
    """Evaluations whose validation loss is finite."""
    return tuple(e for e in history.evaluations if e.val is not None and number(e.val))


def scatter(values: Floats) -> float | None:
    """The noise of one value of a smooth curve, from its second differences; None for fewer than eight values."""
    if len(values) < 8:
        return None
    bends = values[2:] - 2 * values[1:-1] + values[:-2]
    return float(stats.MAD_TO_SD * np.median(np.abs(bends)) / SECOND_DIFFERENCE)


def trailing(losses: Series, step: float, most: int) -> Estimate | None:
    """The level of training losses at `step`: a line through the last `most` before it, read at its end.

    Its error says how little single batches know. The line is there because the mean of what lies behind is too high
    while the loss falls. None for fewer than eight losses.
    """
    near = losses.between(-math.inf, step)
    near = Series(near.steps[-most:], near.values[-most:], near.lines[-most:])
    if len(near) < 8:
        return None
    x = near.steps - step
    middle = float(x.mean())
    spread = float(((x - middle) ** 2).sum())
    slope = float(((x - middle) * near.values).sum()) / spread if spread else 0.0
    left = near.values - near.values.mean() - slope * (x - middle)
    error = stats.robust_sd(left) * math.sqrt(1 / len(x) + (middle**2 / spread if spread else 0.0))
    return Estimate(float(near.values.mean()) - slope * middle, error, (int(near.lines[0]), int(near.lines[-1])))


def running_median(values: Floats, width: int) -> Floats:
    """The median of each value and the `width` - 1 before it; the first ones of as many as there are."""
    head = [np.median(values[: place + 1]) for place in range(min(width - 1, len(values)))]
    if len(values) < width:
        return np.array(head, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    return np.concatenate((head, np.median(windows, axis=1)))
