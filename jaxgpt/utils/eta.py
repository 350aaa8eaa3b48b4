"""Time remaining of a run: the steps that are left times a robust step time, with an 80 % interval."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.utils import stats

RECENT_STEPS = 200  # steps that the estimate uses
MIN_RELATIVE_ERROR = 0.02  # of the step time: future steps differ from past ones, however many were seen
FEW_STEPS = {1: (0.10, 0.25), 2: (0.07, 0.15)}  # relative error below and above: too few for a spread; runs slow down
SLOW_STEP_DEVIATIONS = 6.0  # above the median, beyond which a step counts as slow
MAX_SLOW_STEP = 10.0  # median step times that a slow step may count for


class Eta(NamedTuple):
    """Seconds until the end: the expectation and an 80 % interval."""

    seconds: float
    low: float
    high: float


class StepTimeEstimate(NamedTuple):
    """Seconds per step: the expectation, an 80 % interval for future steps, and the number of steps it is based on."""

    seconds: float
    low: float
    high: float
    steps_used: int


def estimate_step_time(step_seconds: Sequence[float] | NDArray[np.float64]) -> StepTimeEstimate | None:
    """The expected seconds per step from the last steps; None without any.

    `step_seconds` are durations of single steps without evaluation and saving. The expectation is their median, plus
    the mean excess of slow steps. Each slow step is capped, so that a night in which a laptop slept is not expected
    to repeat. The interval combines the standard error of the median (from the median absolute deviation), 2 %, and
    half of the excess. One or two steps get a wide interval, wider on the slow side.
    """
    recent = np.asarray(step_seconds[-RECENT_STEPS:], np.float64)
    count = len(recent)
    if count == 0:
        return None
    median = float(np.median(recent))
    if count in FEW_STEPS:
        below, above = FEW_STEPS[count]
        return StepTimeEstimate(median, median * (1 - below), median * (1 + above), count)
    deviation = stats.robust_sd(recent)
    excess = recent - median
    slow = excess[excess > max(SLOW_STEP_DEVIATIONS * deviation, MIN_RELATIVE_ERROR * median)]
    slow_mean = float(np.minimum(slow, MAX_SLOW_STEP * median).sum()) / count
    median_error = stats.MEDIAN_ERROR * deviation / math.sqrt(count)
    error = math.hypot(median_error, MIN_RELATIVE_ERROR * median, slow_mean / 2)
    expected = median + slow_mean
    low = max(0.0, expected - stats.Z80 * error)
    return StepTimeEstimate(expected, low, expected + stats.Z80 * error, count)


def estimate_eta(
    step_seconds: Sequence[float] | NDArray[np.float64], steps_left: int, overhead: float = 0.0
) -> Eta | None:
    """The time that `steps_left` steps take at the step time of the last ones; None without any.

    `overhead` is the time per step that evaluation and saving take on average, in seconds.
    """
    step_time = estimate_step_time(step_seconds)
    if step_time is None:
        return None
    return Eta(*(steps_left * (seconds + overhead) for seconds in step_time[:3]))
