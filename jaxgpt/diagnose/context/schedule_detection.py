"""Which schedule the learning rates of a log follow: the candidates are fitted, and the best one has to fit well."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.logs.history import Step

FLAT = 0.002  # of the peak: as near to it is at it, printed digits considered
FALLEN = 0.03  # of the peak: a smaller fall says nothing of its shape
FITS = 0.01  # of the peak: the largest root mean square error of a schedule that is recognised
HIGHEST = 10.0  # no optimizer's rate is above it
MIN_POINTS, MOST = 4, 300  # points that are needed, and that are looked at
SHAPES: tuple[Literal["cosine", "linear"], ...] = ("cosine", "linear")

Array = NDArray[np.float64]


class LoggedRates(NamedTuple):
    """Learning rates as the log has them."""

    updates: Array
    rates: Array


class DetectedSchedule(NamedTuple):
    """The schedule that the rates follow. Of a rate that has not fallen yet, `schedule` is "constant".

    `warmup` is None where the log begins behind it, `begin` is then where the fall fits best; `end` is the update of
    the last rate, `fall` the length of a wsd's. Of a line that is still falling, `end` is where it comes to 0.
    """

    schedule: Literal["cosine", "linear", "wsd", "constant"]
    peak: float
    least: float
    warmup: int | None
    end: float | None = None
    fall: float | None = None
    begin: float | None = None


def logged_rates(steps: Sequence[Step]) -> LoggedRates:
    """The rates of `steps` that can be some, at their updates."""
    held = [(step.step, step.learning_rate) for step in steps if step.learning_rate is not None]
    updates, rates = np.array(held, dtype=np.float64).reshape(-1, 2).T
    good = (rates >= 0) & (rates <= HIGHEST)
    return LoggedRates(updates[good], rates[good])


def detect_schedule(log: LoggedRates, total: int | None = None) -> DetectedSchedule | None:
    """The schedule that `log` follows, of a run of `total` steps if that is known; None if it is none of them."""
    if len(log.rates) < MIN_POINTS or not log.rates.max() > 0:
        return None
    peak = float(log.rates.max())
    share = log.rates / peak
    top = np.flatnonzero(share >= 1 - FLAT)
    first, last = int(top[0]), int(top[-1])
    warmup = _warmup(log.updates[:first], share[:first], log.updates[first])
    if first and warmup is None:
        return None
    if share[last:].min() > 1 - FALLEN:
        return DetectedSchedule("constant", peak, peak, warmup) if first < len(share) - 1 else None
    return _fall(_thinned(LoggedRates(log.updates[first:], share[first:])), peak, warmup, total)


def _thinned(log: LoggedRates) -> LoggedRates:
    """At most `MOST` points, evenly taken, the last one among them."""
    kept = np.unique(np.linspace(0, len(log.rates) - 1, min(MOST, len(log.rates))).round().astype(int))
    return LoggedRates(log.updates[kept], log.rates[kept])


def _warmup(updates: Array, share: Array, top: float) -> int | None:
    """The length of a linear warmup, 0 if the first update has the peak; None if it cannot be told."""
    if not len(updates):
        return 0 if top == 0 else None
    rising = (share > 0.02) & (share < 1 - FLAT)
    if not rising.any():
        return int(top)
    lengths = (updates[rising] + 1) / share[rising] - 1
    length = float(np.median(lengths[len(lengths) // 2 :]))
    straight = np.abs((updates + 1) / (length + 1) - share).max() < 2 * FITS
    return max(round(length), 0) if straight else None


def _fall(log: LoggedRates, peak: float, warmup: int | None, total: int | None) -> DetectedSchedule | None:
    """The best of cosine, linear and a hold with a linear fall."""
    first = float(log.updates[0])
    begins = [float(warmup)] if warmup is not None else [first * tenth / 10 for tenth in range(11)]
    found: list[tuple[float, DetectedSchedule]] = []
    for begin in begins:
        for shape in SHAPES:
            fit = _best(shape, log, begin, total)
            found.append(
                (fit.error, DetectedSchedule(shape, fit.peak * peak, fit.least * peak, warmup, fit.end, begin=begin))
            )
    held = _held(log, total)
    if held is not None:
        error, hold, end, least = held
        found.append((error * 1.1, DetectedSchedule("wsd", peak, least * peak, warmup, end, end - hold)))
    error, seen = min(found, key=lambda pair: pair[0])
    return seen if error < FITS else None


class _Fit(NamedTuple):
    """Root mean square error of a fall from `peak` to `least` (shares of the highest logged rate) at `end`."""

    error: float
    end: float
    peak: float
    least: float


def _best(shape: Literal["cosine", "linear"], log: LoggedRates, begin: float, total: int | None) -> _Fit:
    """The best fall of that shape from `begin`; the one to the run's end where that fits as well."""
    last = float(log.updates[-1])
    ends = begin + (last - begin) * np.geomspace(0.05, 20.0, 300)
    for _ in range(3):
        fits = _fits(shape, log, begin, ends)
        at = int(np.argmin(fits[0]))
        low, high, best = ends[max(at - 1, 0)], ends[min(at + 1, len(ends) - 1)], _Fit(*fits[:, at].tolist())
        ends = np.linspace(low, high, 40)
    if total is not None:
        known = _Fit(*_fits(shape, log, begin, np.array([float(total)]))[:, 0].tolist())
        if known.error < max(1.5 * best.error, 0.001):
            return known
    if shape == "linear" and best.end > last and best.least < best.peak:
        return best._replace(end=begin + (best.end - begin) * best.peak / (best.peak - best.least), least=0.0)
    return best


def _fits(shape: str, log: LoggedRates, begin: float, ends: Array) -> Array:
    """Error, end, peak and last share for each of `ends`: a line in how far the shape has fallen, by least squares.

    A run whose warmup was seen has its peak at 1; of another, the log begins somewhere in the fall.
    """
    through = np.clip((log.updates - begin) / np.maximum(ends - begin, 1.0)[:, None], 0.0, 1.0)
    fallen = through if shape == "linear" else (1 - np.cos(np.pi * through)) / 2
    if log.updates[0] > begin:
        mean, middle = fallen.mean(axis=1), float(log.rates.mean())
        centred = fallen - mean[:, None]
        drop = -(centred @ (log.rates - middle)) / np.maximum((centred**2).sum(axis=1), 1e-12)
        peak = np.clip(middle + drop * mean, 1.0, 2.0)
    else:
        peak = np.ones(len(ends))
    drop = (fallen * (peak[:, None] - log.rates)).sum(axis=1) / np.maximum((fallen**2).sum(axis=1), 1e-12)
    drop = np.clip(drop, 0.0, peak)
    error = np.sqrt(np.mean((peak[:, None] - drop[:, None] * fallen - log.rates) ** 2, axis=1))
    return np.stack([error, ends, peak, peak - drop])


def _held(log: LoggedRates, total: int | None) -> tuple[float, float, float, float] | None:
    """Error, end of the hold, end of the fall and last share of a trapezoid; its end is at 0 if nothing else says."""
    low = float(log.rates.min())
    arrived = log.rates <= low + FLAT
    settled = arrived.sum() > 2
    falling = (log.rates < 1 - FLAT) & ~(arrived if settled else np.zeros_like(arrived))
    if falling.sum() < 2:
        return None
    slope, height = np.polyfit(log.updates[falling], log.rates[falling], 1)
    if not slope < 0:
        return None
    hold = float((1 - height) / slope)
    least = low if settled else max(float(height + slope * total), 0.0) if total is not None else 0.0
    end = float((least - height) / slope)
    shape = np.clip(height + slope * log.updates, least, 1.0)
    return float(np.sqrt(np.mean((shape - log.rates) ** 2))), hold, end, least
