"""Detects which schedule the learning rates of a log follow: every candidate is fitted, and the best must fit well."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.logs.history import Step

AT_PEAK = 0.002  # of the peak: a learning rate this close to it is at the peak, given the printed digits
MIN_DECAY = 0.03  # of the peak: a smaller decay does not show its shape
MAX_ERROR = 0.01  # of the peak: root mean square error of a schedule that is detected
WSD_PENALTY = 1.1  # factor of the error of a wsd, which has one parameter more
MAX_LR = 10.0  # of any optimizer
MIN_POINTS, MAX_POINTS = 4, 300  # learning rates that are required, and that are used
SHAPES: tuple[Literal["cosine", "linear"], ...] = ("cosine", "linear")

Array = NDArray[np.float64]


class LoggedRates(NamedTuple):
    """Learning rates of the log, and the steps that they belong to."""

    steps: Array
    rates: Array


class DetectedSchedule(NamedTuple):
    """The schedule that the learning rates follow; "constant" if they have not decayed yet.

    `warmup` is None if the log starts after it; `begin` is then the step where the decay fits best. `end` is the step
    of the final learning rate, `decay_steps` the length of a wsd's decay. A linear schedule that is still decaying has
    its `end` where it would reach 0.
    """

    schedule: Literal["cosine", "linear", "wsd", "constant"]
    peak: float
    final: float
    warmup: int | None
    end: float | None = None
    decay_steps: float | None = None
    begin: float | None = None


def logged_rates(steps: Sequence[Step]) -> LoggedRates:
    """The plausible learning rates of `steps`."""
    logged = [(step.step, step.learning_rate) for step in steps if step.learning_rate is not None]
    numbers, rates = np.array(logged, dtype=np.float64).reshape(-1, 2).T
    plausible = (rates >= 0) & (rates <= MAX_LR)
    return LoggedRates(numbers[plausible], rates[plausible])


def detect_schedule(log: LoggedRates, total_steps: int | None = None) -> DetectedSchedule | None:
    """The schedule that `log` follows, of a run of `total_steps` if these are known; None if no candidate fits."""
    if len(log.rates) < MIN_POINTS or not log.rates.max() > 0:
        return None
    peak = float(log.rates.max())
    fractions = log.rates / peak
    at_peak = np.flatnonzero(fractions >= 1 - AT_PEAK)
    first, last = int(at_peak[0]), int(at_peak[-1])
    warmup = _detect_warmup(log.steps[:first], fractions[:first], log.steps[first])
    if first and warmup is None:
        return None
    if fractions[last:].min() > 1 - MIN_DECAY:
        return DetectedSchedule("constant", peak, peak, warmup) if first < len(fractions) - 1 else None
    decay = _downsample(LoggedRates(log.steps[first:], fractions[first:]))
    return _detect_decay(decay, peak, warmup, total_steps)


def _downsample(log: LoggedRates) -> LoggedRates:
    """At most `MAX_POINTS` evenly spaced points, with the first and the last."""
    indices = np.linspace(0, len(log.rates) - 1, min(MAX_POINTS, len(log.rates))).round().astype(int)
    unique = np.unique(indices)
    return LoggedRates(log.steps[unique], log.rates[unique])


def _detect_warmup(steps: Array, fractions: Array, peak_step: float) -> int | None:
    """The length of a linear warmup, 0 if the first step is at the peak; None if it cannot be determined."""
    if not len(steps):
        return 0 if peak_step == 0 else None
    rising = (fractions > 0.02) & (fractions < 1 - AT_PEAK)
    if not rising.any():
        return int(peak_step)
    lengths = (steps[rising] + 1) / fractions[rising] - 1
    length = float(np.median(lengths[len(lengths) // 2 :]))
    is_linear = np.abs((steps + 1) / (length + 1) - fractions).max() < 2 * MAX_ERROR
    return max(round(length), 0) if is_linear else None


def _detect_decay(
    log: LoggedRates, peak: float, warmup: int | None, total_steps: int | None
) -> DetectedSchedule | None:
    """The best of cosine, linear and wsd."""
    first = float(log.steps[0])
    begins = [float(warmup)] if warmup is not None else [first * tenth / 10 for tenth in range(11)]
    candidates: list[tuple[float, DetectedSchedule]] = []
    for begin in begins:
        for shape in SHAPES:
            fit = _fit_end(shape, log, begin, total_steps)
            schedule = DetectedSchedule(shape, fit.peak * peak, fit.final * peak, warmup, fit.end, begin=begin)
            candidates.append((fit.error, schedule))
    wsd = _fit_wsd(log, total_steps)
    if wsd is not None:
        schedule = DetectedSchedule("wsd", peak, wsd.final * peak, warmup, wsd.end, wsd.end - wsd.begin)
        candidates.append((wsd.error * WSD_PENALTY, schedule))
    error, best = min(candidates, key=lambda candidate: candidate[0])
    return best if error < MAX_ERROR else None


class _Fit(NamedTuple):
    """Root mean square error of a decay from `peak` to `final` (fractions of the highest logged rate) at `end`."""

    error: float
    end: float
    peak: float
    final: float


def _fit_end(shape: Literal["cosine", "linear"], log: LoggedRates, begin: float, total_steps: int | None) -> _Fit:
    """The best decay of that shape from `begin`; the one that ends with the run, if it fits as well."""
    last = float(log.steps[-1])
    ends = begin + (last - begin) * np.geomspace(0.05, 20.0, 300)
    for _ in range(3):
        fits = _fit_decays(shape, log, begin, ends)
        index = int(np.argmin(fits[0]))
        best = _Fit(*fits[:, index].tolist())
        ends = np.linspace(ends[max(index - 1, 0)], ends[min(index + 1, len(ends) - 1)], 40)
    if total_steps is not None:
        to_run_end = _Fit(*_fit_decays(shape, log, begin, np.array([float(total_steps)]))[:, 0].tolist())
        if to_run_end.error < max(1.5 * best.error, 0.001):
            return to_run_end
    if shape == "linear" and best.end > last and best.final < best.peak:
        zero = begin + (best.end - begin) * best.peak / (best.peak - best.final)
        return best._replace(end=zero, final=0.0)
    return best


def _fit_decays(shape: str, log: LoggedRates, begin: float, ends: Array) -> Array:
    """[4, end] error, end, peak and final fraction of the least-squares decay to each of `ends`.

    The learning rate is linear in the progress of the decay. The peak is 1 if the warmup was logged; otherwise the log
    starts somewhere within the decay, and the peak is fitted.
    """
    elapsed = np.clip((log.steps - begin) / np.maximum(ends - begin, 1.0)[:, None], 0.0, 1.0)
    progress = elapsed if shape == "linear" else (1 - np.cos(np.pi * elapsed)) / 2
    if log.steps[0] > begin:
        mean_progress, mean_rate = progress.mean(axis=1), float(log.rates.mean())
        centered = progress - mean_progress[:, None]
        drop = -(centered @ (log.rates - mean_rate)) / np.maximum((centered**2).sum(axis=1), 1e-12)
        peak = np.clip(mean_rate + drop * mean_progress, 1.0, 2.0)
    else:
        peak = np.ones(len(ends))
    drop = (progress * (peak[:, None] - log.rates)).sum(axis=1) / np.maximum((progress**2).sum(axis=1), 1e-12)
    drop = np.clip(drop, 0.0, peak)
    error = np.sqrt(np.mean((peak[:, None] - drop[:, None] * progress - log.rates) ** 2, axis=1))
    return np.stack([error, ends, peak, peak - drop])


class _WsdFit(NamedTuple):
    """Root mean square error of a linear decay from step `begin` to the `final` fraction at step `end`."""

    error: float
    begin: float
    end: float
    final: float


def _fit_wsd(log: LoggedRates, total_steps: int | None) -> _WsdFit | None:
    """The best constant rate with a linear decay, which ends at 0 unless the log or the run's length tell otherwise."""
    lowest = float(log.rates.min())
    at_lowest = log.rates <= lowest + AT_PEAK
    has_ended = at_lowest.sum() > 2
    decaying = log.rates < 1 - AT_PEAK
    if has_ended:
        decaying &= ~at_lowest
    if decaying.sum() < 2:
        return None
    slope, intercept = np.polyfit(log.steps[decaying], log.rates[decaying], 1)
    if not slope < 0:
        return None
    final = 0.0
    if has_ended:
        final = lowest
    elif total_steps is not None:
        final = max(float(intercept + slope * total_steps), 0.0)
    fitted = np.clip(intercept + slope * log.steps, final, 1.0)
    error = float(np.sqrt(np.mean((fitted - log.rates) ** 2)))
    return _WsdFit(error, float((1 - intercept) / slope), float((final - intercept) / slope), final)
