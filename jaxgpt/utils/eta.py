"""When a run ends: remaining steps times a robust pace, with an interval. Panel and `arrival` both ask here."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.utils import stats

RECENT = 200  # paces that count
SHORT_LOOK = 0.02  # of the pace: what even many steps cannot see of those to come
FEW = {1: (0.10, 0.25), 2: (0.07, 0.15)}  # of the pace, below and above: no scatter to judge by, and runs slow down
HICCUP, MOST_OF_ONE = 6.0, 10.0  # deviations beyond which a step is a hiccup; paces that one may count


class Eta(NamedTuple):
    """Seconds until the end: the expectation and an 80 % interval."""

    seconds: float
    low: float
    high: float


class StepTimeEstimate(NamedTuple):
    """Seconds per step: the expectation, an 80 % interval for the steps to come, and how many steps it rests on."""

    seconds: float
    low: float
    high: float
    steps_used: int


def estimate_step_time(step_seconds: Sequence[float] | NDArray[np.float64]) -> StepTimeEstimate | None:
    """The pace of the last steps; None without any.

    `step_seconds` are durations of single steps without evaluation and saving. The median resists the odd slow step;
    what hiccups cost beyond it is added as their mean, each capped, so that the night a laptop slept is not expected
    again. The interval is the median's standard error (from the median absolute deviation) beside 2 %; one or two
    steps have no scatter to judge by and get a wide one that leans to the slow side.
    """
    recent = np.asarray(step_seconds[-RECENT:], np.float64)
    count = len(recent)
    if count == 0:
        return None
    middle = float(np.median(recent))
    if count in FEW:
        below, above = FEW[count]
        return StepTimeEstimate(middle, middle * (1 - below), middle * (1 + above), count)
    deviation = stats.robust_sd(recent)
    excess = recent - middle
    late = excess[excess > max(HICCUP * deviation, SHORT_LOOK * middle)]
    hiccups = float(np.minimum(late, MOST_OF_ONE * middle).sum()) / count
    error = math.hypot(stats.MEDIAN_ERROR * deviation / math.sqrt(count), SHORT_LOOK * middle, hiccups / 2)
    usual = middle + hiccups
    return StepTimeEstimate(usual, max(0.0, usual - stats.Z80 * error), usual + stats.Z80 * error, count)


def estimate_eta(
    step_seconds: Sequence[float] | NDArray[np.float64], steps_left: int, overhead: float = 0.0
) -> Eta | None:
    """The time that `steps_left` steps take at the `pace` of the last ones; None before there is one.

    `overhead` is the time per step that evaluation and saving take on average.
    """
    found = estimate_step_time(step_seconds)
    if found is None:
        return None
    return Eta(*(steps_left * (seconds + overhead) for seconds in found[:3]))
