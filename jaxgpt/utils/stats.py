"""Statistics shared by the planner, the time estimate and the diagnosis. Loads no scipy, whose import takes seconds."""

import bisect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z80 = 1.2815515655446004  # half-width of a normal 80 % interval in standard deviations
Z95 = 1.9599639845400545  # half-width of a normal 95 % interval in standard deviations
MAD_TO_SD = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
MAX_VALUE = 1e6  # a loss, gradient norm or other value of a healthy run is smaller
MIN_CURVE = 8  # values of a curve, at least, that show its noise
MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean, of normal values: sqrt(pi / 2)


def is_valid(value: float) -> bool:
    """Whether a logged value can be used: not NaN, not infinite and not absurdly large."""
    return abs(value) < MAX_VALUE


def normal_cdf(z: Floats) -> Floats:
    """The normal distribution function to 1e-7 (Abramowitz and Stegun, 26.2.17)."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    polynomial = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * polynomial
    return np.where(z > 0, 1 - tail, tail)


def robust_sd(values: Sequence[float] | Floats) -> float:
    """A standard deviation that outliers do not move, from the median absolute deviation; 0 for fewer than two values.

    Estimates the standard deviation of normal values.
    """
    if len(values) < 2:
        return 0.0
    deviations = np.abs(np.asarray(values, np.float64) - np.median(values))
    return float(MAD_TO_SD * np.median(deviations))


def curve_noise(x: Floats, values: Floats) -> float | None:
    """The noise of one of the values at ascending `x`, from their deviations from smooth curves.

    Lines through neighbors overestimate it where the curve bends, parabolas vary more: the smaller estimate counts.
    None for fewer than eight values.
    """
    if len(values) < MIN_CURVE:
        return None
    return min(_deviation(x, values, points) for points in (3, 4))


def _deviation(x: Floats, values: Floats, points: int) -> float:
    """The noise of one value, from divided differences of `points` neighbors, which polynomials of lower order lack."""
    near = np.lib.stride_tricks.sliding_window_view(x, points)
    distances = near[:, :, None] - near[:, None, :] + np.eye(points)
    weights = 1 / distances.prod(axis=2)
    differences = (weights * np.lib.stride_tricks.sliding_window_view(values, points)).sum(axis=1)
    return float(MAD_TO_SD * np.median(np.abs(differences) / np.sqrt((weights**2).sum(axis=1))))


class Line(NamedTuple):
    """A straight line through points: its slope, and its value at each point."""

    slope: float
    fitted: Floats


def theil_sen(x: Floats, y: Floats) -> Line:
    """The line whose slope is the median of the slopes between all pairs of points: at least two, with distinct `x`."""
    i, j = np.triu_indices(len(x), 1)
    slope = float(np.median((y[j] - y[i]) / (x[j] - x[i])))
    rise = slope * (x - x[0])
    return Line(slope, rise + np.median(y - rise))


def largest_integer(condition: Callable[[int], bool], limit: int) -> int:
    """The largest integer from 1 to `limit` that meets `condition`, or 0.

    `condition` must hold for every integer below one for which it holds.
    """
    return bisect.bisect_left(range(1, limit + 1), True, key=lambda number: not condition(number))
