"""Estimates when a run ends, from its log: training, evaluation and compilation apart, with an interval.

Only the durations of steps count. Nights between two processes of a run, a first step that compiles or a GPU that was
hot for an hour therefore do not shift the estimate. nanoGPT's `time` contains the evaluation and the saving before a
step: the excess over the step time is their cost, which recurs at each interval to come.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.diagnose.completion.timing import Timing
from jaxgpt.diagnose.completion.trend import Trend, median_blocks
from jaxgpt.diagnose.context import RunContext
from jaxgpt.logs.history import History
from jaxgpt.logs.reader import valid_duration
from jaxgpt.utils.eta import StepTimeEstimate, estimate_eta
from jaxgpt.utils.formatting import LAST_DATE, format_duration

TRAINING, PAUSES, COMPILING = "training", "evaluation and saving", "compiling"
LAST_RECORD, FILE_CHANGE = "the log's last record", "the file's last change"  # events from which an end is counted
REPEATED, IDLE = "repeated steps", "between processes"
MIN_STEPS_FOR_TENTHS = 20
DIFFERENT = 0.005  # relative: a scenario whose step time differs by less is not reported
FIRST_DATE = 946_684_800.0  # the year 2000: smaller times in a log count from another origin
SILENT = 600.0  # seconds without a record after which a run may have stopped, if its steps are short


class ActivityTime(NamedTuple):
    """Seconds spent on one activity so far (None: not logged), and the seconds to come."""

    name: str
    spent: float | None
    remaining: float


class CompletionScenario(NamedTuple):
    """Seconds to the end if something were different."""

    description: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CompletionEstimate:
    """When the run ends. `seconds`, `low` and `high` count from its last record, with an 80 % interval.

    `end_time` is in seconds since 1970, counted from the event that `counted_from` names. `notes` state how little data
    the estimate uses, and what it omits.
    """

    steps_left: int
    seconds: float
    low: float
    high: float
    step_time: StepTimeEstimate | None
    breakdown: tuple[ActivityTime, ...]
    trend: Trend | None
    end_time: float
    counted_from: str
    scenarios: tuple[CompletionScenario, ...]
    notes: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether the run has done all of its steps."""
        return self.steps_left == 0


def estimate_completion(history: History, context: RunContext, now: float | None = None) -> CompletionEstimate | None:
    """Estimates when the run ends, seen at `now` (seconds since 1970); None if `missing_for_completion` says why."""
    if missing_for_completion(history, context):
        return None
    timing = Timing.from_history(history, steps_left(history, context))
    eta = estimate_eta(timing.recent.seconds, timing.steps_left)
    seconds = eta.seconds + timing.pauses.remaining if eta else 0.0
    low, high = timing.interval()
    end_time, counted_from = _end_time(timing, seconds, time.time() if now is None else now)
    return CompletionEstimate(
        steps_left=timing.steps_left,
        seconds=seconds,
        low=low,
        high=high,
        step_time=timing.step_time,
        breakdown=_breakdown(timing),
        trend=timing.trend,
        end_time=end_time,
        counted_from=counted_from,
        scenarios=_scenarios(timing) if timing.steps_left else (),
        notes=_notes(timing) if timing.steps_left else (),
    )


def steps_left(history: History, context: RunContext) -> int:
    """Steps that the run still has to do."""
    total = context.total_steps or 0
    stop = history.metadata.stop_reason
    if history.steps_done >= total or (stop is not None and stop.is_early):
        return 0
    return total + history.traits.total_is_last_step - history.steps_done


def missing_for_completion(history: History, context: RunContext) -> str:
    """The input that an estimate needs and the log lacks, and what would supply it; empty if there is an estimate."""
    if not context.total_steps:
        return "the length of the run (--total-steps)"
    if steps_left(history, context) and not any(valid_duration(step.seconds) for step in history.steps):
        return "the time of a step, which this log does not have"
    return ""


def _breakdown(timing: Timing) -> tuple[ActivityTime, ...]:
    if timing.step_time is None:
        return ()
    activities = [
        ActivityTime(TRAINING, timing.trained_seconds(), timing.training_seconds),
        ActivityTime(PAUSES, timing.pauses.spent, timing.pauses.remaining),
        ActivityTime(COMPILING, timing.compile_seconds(), 0.0),
    ]
    extra = [ActivityTime(REPEATED, timing.repeated_seconds(), 0.0), ActivityTime(IDLE, timing.idle_seconds(), 0.0)]
    return (*activities, *(activity for activity in extra if activity.spent))


def _end_time(timing: Timing, seconds: float, now: float) -> tuple[float, str]:
    """The end of the run in seconds since 1970, and the event from which it is counted."""
    last, event = _last_record(timing.history, now)
    if not timing.steps_left:
        return last, event
    silence = now - last
    longest_silence = max(SILENT, 20 * timing.step_time.seconds) if timing.step_time else SILENT
    if silence > longest_silence:
        return now + seconds, f"now, if it is still running: {event} is {format_duration(silence, parts=1)} old"
    return last + seconds, event


def _last_record(history: History, now: float) -> tuple[float, str]:
    last_time = history.steps[-1].time if history.steps else None
    if last_time is not None and FIRST_DATE <= last_time < LAST_DATE:
        return last_time, LAST_RECORD
    try:
        return Path(history.source).stat().st_mtime, FILE_CHANGE
    except (OSError, ValueError):
        return now, "now"


def _scenarios(timing: Timing) -> tuple[CompletionScenario, ...]:
    """Other ends: at step times that the log has shown, without pauses, and with as much idle time as so far."""
    pauses = timing.pauses.remaining
    scenarios = []
    if timing.step_time:
        for description, step_time in _other_step_times(timing, timing.step_time):
            scenarios.append(CompletionScenario(description, timing.steps_left * step_time + pauses))
    if pauses:
        scenarios.append(CompletionScenario("without evaluation and saving", timing.training_seconds))
    idle = timing.idle_seconds()
    if idle:
        seconds = (timing.training_seconds + pauses) * (1 + idle / max(timing.trained_seconds(), 1.0))
        scenarios.append(CompletionScenario("with stops between processes like those so far", seconds))
    return tuple(scenarios)


def _other_step_times(timing: Timing, step_time: StepTimeEstimate) -> list[tuple[str, float]]:
    """Step times that the log has shown or that a drift leads to, and what they are."""
    times = timing.times.step_only_or_all()
    tenths: list[tuple[str, float]] = []
    if len(times.seconds) >= MIN_STEPS_FOR_TENTHS:
        last_tenth = float(np.median(times.seconds[-(len(times.seconds) // 10) :]))
        best, slowest = np.quantile(median_blocks(times.steps, times.seconds).seconds, (0.1, 0.9)).tolist()
        tenths = [("the last tenth", last_tenth), ("its best tenth", best), ("its slowest tenth", slowest)]
    step_times = [
        (f"at the step time of {name}", seconds)
        for name, seconds in tenths
        if abs(seconds / step_time.seconds - 1) > DIFFERENT
    ]
    if timing.trend and timing.trend.kind == "drift":
        drifted = max(step_time.seconds + timing.trend.slope * timing.steps_left / 2, step_time.seconds / 2)
        step_times.append(("if the step time keeps changing as it does", drifted))
    return step_times


def _notes(timing: Timing) -> tuple[str, ...]:
    """How little data the estimate uses, and what it omits."""
    notes = []
    if timing.step_time and timing.step_time.steps_used < 3:
        lines = "one line with a time" if timing.step_time.steps_used == 1 else "two lines with a time"
        notes.append(f"this is based on {lines}, which show neither the scatter of step times nor a trend")
    if not timing.times.step_only.any():
        notes.append("every step time in the log may include compilation or an evaluation")
    if not timing.pauses.measured:
        notes.append("the log does not show how long evaluations and saves take: none is counted")
    return tuple(notes)
