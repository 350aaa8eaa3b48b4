"""Series of values from a log without those that are not finite, and robust statistics of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.logs.history import Evaluation, History
from jaxgpt.utils import stats
from jaxgpt.utils.stats import Floats, is_valid

SECOND_DIFFERENCE = math.sqrt(6)  # standard deviation of a - 2 b + c over that of each
MIN_LOSSES = 8  # values that a level or a noise is estimated from


class Estimate(NamedTuple):
    """A value, its standard error, and the numbers of the log's lines behind it."""

    value: float
    stderr: float
    lines: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """`+0.031 ± 0.004`."""
        return f"{self.value:+.3f} ± {self.stderr:.3f}"


class Series(NamedTuple):
    """Finite values by step, with the numbers of their lines."""

    steps: Floats
    values: Floats
    lines: NDArray[np.int64]

    def between(self, first: float, end: float) -> "Series":
        """The values with `first` <= step < `end`."""
        chosen = (self.steps >= first) & (self.steps < end)
        return Series(self.steps[chosen], self.values[chosen], self.lines[chosen])

    def last(self, count: int) -> "Series":
        """The last `count` values."""
        return Series(self.steps[-count:], self.values[-count:], self.lines[-count:])

    def __len__(self) -> int:
        return len(self.steps)


def series(rows: Sequence[tuple[int, float | None, int]]) -> Series:
    """A series of (step, value, line) without the rows whose value is missing or not valid."""
    valid = [(step, value, line) for step, value, line in rows if value is not None and is_valid(value)]
    steps, values, lines = zip(*valid) if valid else ((), (), ())
    return Series(np.array(steps, np.float64), np.array(values, np.float64), np.array(lines, np.int64))


def step_losses(history: History) -> Series:
    """The training losses of the steps."""
    return series([(step.step, step.loss, step.line) for step in history.steps])


def grad_norms(history: History) -> Series:
    """The gradient norms of the steps."""
    return series([(step.step, step.grad_norm, step.line) for step in history.steps])


def valid_evaluations(history: History) -> tuple[Evaluation, ...]:
    """The evaluations whose validation loss is finite."""
    return tuple(e for e in history.evaluations if e.val is not None and is_valid(e.val))


def scatter(values: Floats) -> float | None:
    """The noise of one value of a smooth curve, from second differences; None for fewer than eight values."""
    if len(values) < MIN_LOSSES:
        return None
    bends = values[2:] - 2 * values[1:-1] + values[:-2]
    return float(stats.MAD_TO_SD * np.median(np.abs(bends)) / SECOND_DIFFERENCE)


def curve_scatter(curve: Series) -> float | None:
    """The noise of one loss of a falling curve, which is smooth in the log of the step.

    None for fewer than eight losses after step 0.
    """
    curve = curve.between(1, math.inf)
    return stats.curve_noise(np.log(curve.steps), curve.values)


def trailing_level(losses: Series, step: float, count: int) -> Estimate | None:
    """The level of noisy losses at `step`: the end of a line through the last `count` losses before it.

    A line, because the mean of earlier losses is too high while the loss falls. The standard error comes from the
    scatter of the single losses around the line. None for fewer than eight losses.
    """
    near = losses.between(-math.inf, step).last(count)
    if len(near) < MIN_LOSSES:
        return None
    x = near.steps - step
    middle = float(x.mean())
    spread = float(((x - middle) ** 2).sum())
    slope = float(((x - middle) * near.values).sum()) / spread if spread else 0.0
    residuals = near.values - near.values.mean() - slope * (x - middle)
    leverage = middle**2 / spread if spread else 0.0
    stderr = stats.robust_sd(residuals) * math.sqrt(1 / len(x) + leverage)
    return Estimate(float(near.values.mean()) - slope * middle, stderr, (int(near.lines[0]), int(near.lines[-1])))


def running_median(values: Floats, width: int) -> Floats:
    """The median of each value and the `width` - 1 values before it; at the start, of as many as there are."""
    head = [np.median(values[: index + 1]) for index in range(min(width - 1, len(values)))]
    if len(values) < width:
        return np.array(head, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    return np.concatenate((head, np.median(windows, axis=1)))
