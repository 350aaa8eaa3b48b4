"""The time of training, evaluation, saving and idling that a log shows, and that the remaining steps will take."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.diagnose.completion.trend import MIN_BLOCKS, Trend, find_trend, median_blocks
from jaxgpt.logs.history import History
from jaxgpt.logs.reader import valid_duration
from jaxgpt.utils import stats
from jaxgpt.utils.eta import StepTimeEstimate, estimate_step_time

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

INTERVAL_BLOCKS = 20  # whose scatter widens the interval of the step time
FEW_PAUSES_ERROR = 0.3  # relative error of the time of a pause, from one or two of them
PAUSES_ERROR = 0.1  # from three or more


class StepTimes(NamedTuple):
    """The steps whose time is logged, their seconds, and whether these exclude compilation, evaluation and saving."""

    steps: NDArray[np.int64]
    seconds: Floats
    step_only: Mask

    @classmethod
    def from_history(cls, history: History) -> "StepTimes":
        """The step times of a log that are plausible."""
        timed = [(step.step, step.seconds, step.step_only) for step in history.steps if valid_duration(step.seconds)]
        steps, seconds, step_only = zip(*timed) if timed else ((), (), ())
        return cls(np.array(steps, np.int64), np.array(seconds, np.float64), np.array(step_only, np.bool_))

    def step_only_or_all(self) -> "StepTimes":
        """The step times without compilation, evaluation and saving; all of them if there is none."""
        return self.where(self.step_only) if self.step_only.any() else self

    def where(self, mask: Mask) -> "StepTimes":
        """The step times that `mask` selects."""
        return StepTimes(self.steps[mask], self.seconds[mask], self.step_only[mask])


class PauseTime(NamedTuple):
    """Evaluation and saving: seconds so far (None: not logged), number of pauses measured, and seconds to come."""

    spent: float | None
    measured: int
    remaining: float

    @property
    def error(self) -> float:
        """The standard error of the seconds to come."""
        return self.remaining * (FEW_PAUSES_ERROR if self.measured < 3 else PAUSES_ERROR)


@dataclass(frozen=True)
class Timing:
    """The step times of a run with `steps_left` to come; `recent` are those after the last jump."""

    history: History
    times: StepTimes
    recent: StepTimes
    step_time: StepTimeEstimate | None
    trend: Trend | None
    pauses: PauseTime
    steps_left: int

    @classmethod
    def from_history(cls, history: History, steps_left: int) -> "Timing":
        """Measures step time, trend and pauses."""
        times = StepTimes.from_history(history)
        recent = times.step_only_or_all()
        trend = find_trend(recent.steps, recent.seconds)
        if trend is not None and trend.kind == "jump":
            recent = recent.where(recent.steps >= trend.since)
        step_time = _estimate_step_time(recent, trend, steps_left)
        pauses = _measure_pauses(history, times, step_time, steps_left)
        return cls(history, times, recent, step_time, trend, pauses, steps_left)

    @property
    def training_seconds(self) -> float:
        """Seconds of training to come."""
        return self.steps_left * self.step_time.seconds if self.step_time else 0.0

    def interval(self) -> tuple[float, float]:
        """The 80 % interval of the seconds to come."""
        if self.step_time is None:
            return 0.0, 0.0
        total = self.training_seconds + self.pauses.remaining
        pause_error = stats.Z80 * self.pauses.error
        below = self.training_seconds - self.steps_left * self.step_time.low
        above = self.steps_left * self.step_time.high - self.training_seconds
        return max(0.0, total - math.hypot(below, pause_error)), total + math.hypot(above, pause_error)

    def trained_seconds(self) -> float:
        """Seconds of training so far: each logged time represents the steps since the one before it.

        Steps after the last time take the estimated step time.
        """
        if self.step_time is None:
            return 0.0
        steps = self.times.steps
        first = min(self.history.starts[0] if self.history.starts else 0, int(steps[0]))
        represented = np.diff(steps, prepend=first - 1)
        without_pauses = np.minimum(self.times.seconds, self.step_time.seconds)
        seconds = np.where(self.times.step_only, self.times.seconds, without_pauses)
        untimed = max(0, self.history.steps_done - int(steps[-1]) - 1)
        return float((represented * seconds).sum()) + untimed * self.step_time.seconds

    def idle_seconds(self) -> float:
        """Seconds between the processes of the run, where the log's records have a time."""
        restarts = set(self.history.starts[1:])
        if not restarts:
            return 0.0
        idle = 0.0
        for before, after in zip(self.history.steps, self.history.steps[1:]):
            if after.step in restarts and before.time is not None and after.time is not None:
                idle += max(0.0, after.time - before.time - (after.seconds or 0.0))
        return idle

    def repeated_seconds(self) -> float:
        """Seconds of the steps that were done twice."""
        repeated = sum(replay.last - replay.first + 1 for replay in self.history.replays)
        return repeated * self.step_time.seconds if self.step_time else 0.0

    def compile_seconds(self) -> float | None:
        """Seconds that the first step of each process took beyond the step time; None if the log does not show them."""
        first = self.times.where(_first_of_process(self.history, self.times) & ~self.times.step_only)
        if self.step_time is None or not len(first.steps):
            return None
        return float(np.maximum(first.seconds - self.step_time.seconds, 0.0).sum())


def _estimate_step_time(times: StepTimes, trend: Trend | None, steps_left: int) -> StepTimeEstimate | None:
    """The step time; its interval also covers how blocks of steps differ, and the continuation of a drift."""
    estimate = estimate_step_time(times.seconds)
    if estimate is None:
        return None
    blocks = median_blocks(times.steps, times.seconds, INTERVAL_BLOCKS).seconds
    scatter = stats.Z80 * stats.robust_sd(blocks) if len(blocks) >= MIN_BLOCKS else 0.0
    below = math.hypot(estimate.seconds - estimate.low, scatter)
    above = math.hypot(estimate.high - estimate.seconds, scatter)
    if trend and trend.kind == "drift":
        drift = min(abs(trend.slope) * steps_left / 2, estimate.seconds / 2)
        if trend.slope > 0:
            above += drift
        else:
            below += drift
    return estimate._replace(low=max(0.0, estimate.seconds - below), high=estimate.seconds + above)


def _measure_pauses(
    history: History, times: StepTimes, step_time: StepTimeEstimate | None, steps_left: int
) -> PauseTime:
    """The time of evaluation and saving; those to come are as frequent as before and take the median time."""
    excess = _pause_excess(history, times, step_time)
    if history.metadata.pause_seconds > 0:
        spent = history.metadata.pause_seconds
        count = max(len(history.evaluations), 1)
        seconds_per_pause = spent / count
    elif len(excess):
        spent = float(excess.sum())
        count = len(excess)
        seconds_per_pause = float(np.median(excess))
    else:
        return PauseTime(None, 0, 0.0)
    interval = _evaluation_interval(history)
    done = history.steps_done
    if not interval:
        return PauseTime(spent, count, spent / max(done, 1) * steps_left)
    return PauseTime(spent, count, seconds_per_pause * ((done + steps_left) // interval - done // interval))


def _evaluation_interval(history: History) -> int:
    """Steps from one evaluation to the next, by the config or the median of the log; 0 if unknown."""
    if history.config:
        return history.config.run.eval_every
    gaps = np.diff([evaluation.step for evaluation in history.evaluations])
    return int(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 0


def _first_of_process(history: History, times: StepTimes) -> Mask:
    return np.asarray(np.isin(times.steps, [0, *history.starts]), np.bool_)


def _pause_excess(history: History, times: StepTimes, step_time: StepTimeEstimate | None) -> Floats:
    """Seconds beyond the step time of each step that contains an evaluation or a save, but no compilation."""
    if step_time is None or not times.step_only.any():
        return np.zeros(0)
    paused = times.where(~times.step_only & ~_first_of_process(history, times))
    return np.maximum(paused.seconds - step_time.seconds, 0.0)
