"""When a run ends: remaining steps times a robust pace, with an interval."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RECENT = 200


class Eta(NamedTuple):
    """Seconds until the end: the expectation and an 80 % interval."""

    seconds: float
    low: float
    high: float


def eta(step_seconds: Sequence[float], steps_left: int, overhead: float = 0.0) -> Eta | None:
    """The time that `steps_left` steps take, judged by the last paces; None before there are three of them.

    `step_seconds` are durations of single steps without evaluation and saving; `overhead` is the time per step that
    those take on average. The median resists the odd slow step; its standard error (from the median absolute
    deviation, widened by 2 % for what a short look cannot see) gives the interval.
    """
    if len(step_seconds) < 3:
        return None
    recent = np.asarray(step_seconds[-RECENT:])
    pace = float(np.median(recent))
    deviation = 1.4826 * float(np.median(np.abs(recent - pace)))
    error = math.hypot(1.2533 * deviation / math.sqrt(len(recent)), 0.02 * pace)
    total = steps_left * (pace + overhead)
    return Eta(total, max(0.0, total - 1.2816 * error * steps_left), total + 1.2816 * error * steps_left)
