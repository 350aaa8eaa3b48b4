"""When a run arrives, from its log: training, evaluation and compiling apart, with an interval, as a clock time.

Only durations of steps count, so that nights between two processes of a run, a first step that compiles or a card that
was hot for an hour move nothing. nanoGPT's `time` holds the evaluation and the saving before a step: what such a line
has above the pace is their cost, expected again at each interval ahead.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.diagnose.completion import trend
from jaxgpt.diagnose.completion.trend import Trend
from jaxgpt.diagnose.context import RunContext
from jaxgpt.logs.history import History
from jaxgpt.utils import stats
from jaxgpt.utils.eta import StepTimeEstimate, estimate_eta, estimate_step_time
from jaxgpt.utils.formatting import LAST_DATE

Numbers = NDArray[np.float64]

A_DAY = 86_400.0  # seconds: no step takes longer
COMPILING, PAUSES, TRAINING, STANDING, TWICE = (
    "compiling",
    "evaluation and saving",
    "training",
    "between processes",
    "steps done twice",
)
INCLUSIVE = "nanogpt"  # format whose last update is numbered like the length: 0 to max_iters
FEW_PAUSES, SOME_PAUSES = 0.3, 0.1  # relative error of what one pause costs, from one or two of them, and from more
FEWEST_FOR_TENTHS = 20  # lines
OTHER = 0.005  # of the pace: a scenario that differs by less is none
FIRST_MOMENT = 946_684_800.0  # the year 2000: a smaller time in a log counts from elsewhere
LATE = 600.0  # seconds of silence after which a run no longer seems to go on, if its steps are short


class Part(NamedTuple):
    """Seconds spent on one thing so far (None: the log does not say), and those that lie ahead."""

    name: str
    spent: float | None
    left: float


class Scenario(NamedTuple):
    """Seconds to the end if something were otherwise."""

    what: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CompletionEstimate:
    """When the run ends. `seconds`, `low`, `high`: from its last record on, with an 80 % interval.

    `clock` is the end in seconds since 1970, counted from `counted_from` (in words). `notes` say how little it rests
    on, and what it leaves out.
    """

    steps_left: int
    seconds: float
    low: float
    high: float
    pace: StepTimeEstimate | None
    parts: tuple[Part, ...]
    trend: Trend | None
    clock: float
    counted_from: str
    scenarios: tuple[Scenario, ...]
    notes: tuple[str, ...]

    @property
    def done(self) -> bool:
        return self.steps_left == 0


class StepTimes(NamedTuple):
    """The log's lines that have a time: step, seconds, and whether these are those of the step alone."""

    steps: NDArray[np.int64]
    seconds: Numbers
    pure: NDArray[np.bool_]

    @classmethod
    def from_history(cls, history: History) -> "StepTimes":
        timed = [(s.step, s.seconds, s.pure) for s in history.steps if s.seconds is not None and 0 < s.seconds < A_DAY]
        steps, seconds, pure = zip(*timed) if timed else ((), (), ())
        return cls(np.array(steps, np.int64), np.array(seconds, np.float64), np.array(pure, np.bool_))

    @property
    def ordinary(self) -> "StepTimes":
        """The lines whose time is the step's alone; all of them where no line is such."""
        return self.where(self.pure) if self.pure.any() else self

    def where(self, chosen: NDArray[np.bool_]) -> "StepTimes":
        return StepTimes(self.steps[chosen], self.seconds[chosen], self.pure[chosen])


def estimate_completion(history: History, context: RunContext, now: float | None = None) -> CompletionEstimate | None:
    """When the run ends, as seen at `now` (seconds since 1970); None where `unknown` says why."""
    if missing_for_completion(history, context):
        return None
    way = Way.of(history, steps_left(history, context))
    expected = estimate_eta(way.recent.seconds, way.left)
    seconds = expected.seconds + way.pauses.left if expected else 0.0
    low, high = way.interval()
    clock, counted_from = _clock(way, seconds, time.time() if now is None else now)
    return CompletionEstimate(
        steps_left=way.left,
        seconds=seconds,
        low=low,
        high=high,
        pace=way.pace,
        parts=_parts(way),
        trend=way.trend,
        clock=clock,
        counted_from=counted_from,
        scenarios=_scenarios(way) if way.left else (),
        notes=_notes(way) if way.left else (),
    )


def steps_left(history: History, context: RunContext) -> int:
    """Updates that the run still has to do."""
    total = context.total_steps or 0
    theirs = history.format == INCLUSIVE and history.metadata.single_batch_loss  # our own lines have the same shape
    return 0 if history.steps_done >= total else total + theirs - history.steps_done


def missing_for_completion(history: History, context: RunContext) -> str:
    """Why there is no time of arrival, and what would give one; empty where there is one."""
    if not context.total_steps:
        return "the length of the run (--total-steps N)"
    if steps_left(history, context) and not len(StepTimes.from_history(history).steps):
        return "the time of a step, which this log does not have (nanoGPT's 'iter' lines do)"
    return ""


class Pauses(NamedTuple):
    """Evaluation and saving: seconds so far, pauses measured, and seconds ahead."""

    spent: float | None
    measured: int
    left: float

    @property
    def error(self) -> float:
        """One standard deviation of what lies ahead, in seconds."""
        return self.left * (FEW_PAUSES if self.measured < 3 else SOME_PAUSES)


@dataclass(frozen=True)
class Way:
    """What the log's times say of the steps behind and the `left` ones ahead; `recent` follow the last jump of pace."""

    history: History
    lines: StepTimes
    recent: StepTimes
    pace: StepTimeEstimate | None
    trend: Trend | None
    pauses: Pauses
    left: int

    @classmethod
    def of(cls, history: History, left: int) -> "Way":
        lines = StepTimes.from_history(history)
        ordinary = lines.ordinary
        change = trend.find_trend(ordinary.steps, ordinary.seconds)
        jumped = change is not None and change.kind == "jump"
        recent = ordinary.where(ordinary.steps >= change.since) if change and jumped else ordinary
        usual = _widened(recent, change, left)
        return cls(history, lines, recent, usual, change, _pauses(history, lines, usual, left), left)

    @property
    def training(self) -> float:
        """Seconds of training ahead."""
        return self.left * self.pace.seconds if self.pace else 0.0

    def interval(self) -> tuple[float, float]:
        """The 80 % interval of the seconds ahead."""
        if self.pace is None:
            return 0.0, 0.0
        middle, other = self.training + self.pauses.left, stats.Z80 * self.pauses.error
        below, above = self.training - self.left * self.pace.low, self.left * self.pace.high - self.training
        return max(0.0, middle - math.hypot(below, other)), middle + math.hypot(above, other)

    def trained(self) -> float:
        """Seconds of training so far: each line stands for the steps since the one before it."""
        if self.pace is None:
            return 0.0
        steps, starts = self.lines.steps, self.history.starts
        covered = np.diff(steps, prepend=min(starts[0] if starts else 0, int(steps[0])) - 1)
        alone = np.minimum(self.lines.seconds, self.pace.seconds)
        return float((covered * np.where(self.lines.pure, self.lines.seconds, alone)).sum())

    def standing(self) -> float:
        """Seconds between the processes of the run, where records have a time: nobody trained then."""
        begins, stood = set(self.history.starts[1:]), 0.0
        for before, after in zip(self.history.steps, self.history.steps[1:]) if begins else ():
            if after.step in begins and before.time is not None and after.time is not None:
                stood += max(0.0, after.time - before.time - (after.seconds or 0.0))
        return stood


def _widened(lines: StepTimes, change: Trend | None, left: int) -> StepTimeEstimate | None:
    """The pace of the last of `lines`; its interval also holds how blocks of them differ, and a drift that goes on."""
    usual = estimate_step_time(lines.seconds)
    if usual is None:
        return None
    held, extra = trend.median_blocks(lines.steps, lines.seconds, 20).paces, 0.0
    if len(held) >= trend.MIN_BLOCKS:
        extra = stats.Z80 * stats.robust_sd(held)
    below, above = (math.hypot(side, extra) for side in (usual.seconds - usual.low, usual.high - usual.seconds))
    if change and change.kind == "drift":
        going_on = min(abs(change.slope) * left / 2, usual.seconds / 2)
        below, above = (below, above + going_on) if change.slope > 0 else (below + going_on, above)
    return usual._replace(low=max(0.0, usual.seconds - below), high=usual.seconds + above)


def _pauses(history: History, lines: StepTimes, usual: StepTimeEstimate | None, left: int) -> Pauses:
    """What evaluation and saving took, and what they will: as often as before, each as long as the median one."""
    excess = _excess(history, lines, usual)
    if history.metadata.pauses > 0:
        spent, measured = history.metadata.pauses, max(len(history.evaluations), 1)
        each = spent / measured
    elif len(excess):
        spent, measured, each = float(excess.sum()), len(excess), float(np.median(excess))
    else:
        return Pauses(None, 0, 0.0)
    interval, done = _interval_of_evaluations(history), history.steps_done
    if not interval:
        return Pauses(spent, measured, spent / max(done, 1) * left)
    return Pauses(spent, measured, each * ((done + left) // interval - done // interval))


def _interval_of_evaluations(history: History) -> int:
    """Steps from one evaluation to the next, as the config or most of the log says; 0 if neither does."""
    if history.config:
        return history.config.run.eval_every
    gaps = np.diff([evaluation.step for evaluation in history.evaluations])
    return int(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 0


def _compiled(history: History, lines: StepTimes) -> NDArray[np.bool_]:
    """The lines whose step was the first of a process."""
    return np.asarray(np.isin(lines.steps, [0, *history.starts]), np.bool_)


def _excess(history: History, lines: StepTimes, usual: StepTimeEstimate | None) -> Numbers:
    """What lines with an evaluation or a save in their time have above the pace, those that compile left out."""
    if usual is None or not lines.pure.any():
        return np.zeros(0)
    held = lines.where(~lines.pure & ~_compiled(history, lines))
    return np.maximum(held.seconds - usual.seconds, 0.0)


def _parts(way: Way) -> tuple[Part, ...]:
    if way.pace is None:
        return ()
    first = way.lines.where(_compiled(way.history, way.lines) & ~way.lines.pure)
    compiling = float(np.maximum(first.seconds - way.pace.seconds, 0.0).sum())
    twice = sum(replay.last - replay.first + 1 for replay in way.history.replays) * way.pace.seconds
    standing = way.standing()
    return (
        Part(TRAINING, way.trained(), way.training),
        Part(PAUSES, way.pauses.spent, way.pauses.left),
        Part(COMPILING, compiling if len(first.steps) else None, 0.0),
        *((Part(TWICE, twice, 0.0),) if twice else ()),
        *((Part(STANDING, standing, 0.0),) if standing else ()),
    )


def _clock(way: Way, seconds: float, now: float) -> tuple[float, str]:
    """The end in seconds since 1970, and from when it is counted."""
    last, whose = _last_seen(way.history, now)
    if not way.left:
        return last, whose
    silent, patience = now - last, max(LATE, 20 * way.pace.seconds if way.pace else 0.0)
    if silent > patience:
        return now + seconds, f"now, if it goes on: {whose} is {_age(silent)} old"
    return last + seconds, whose


def _last_seen(history: History, now: float) -> tuple[float, str]:
    times = [step.time for step in history.steps[-1:] if step.time is not None]
    if times and FIRST_MOMENT <= times[0] < LAST_DATE:
        return times[0], "the log's last record"
    try:
        return Path(history.source).stat().st_mtime, "the file's last change"
    except (OSError, ValueError):
        return now, "now"


def _age(seconds: float) -> str:
    per, unit = next((each for each in ((172_800, "days"), (7200, "hours")) if seconds >= each[0]), (120, "minutes"))
    return f"{2 * seconds / per:.0f} {unit}"


def _scenarios(way: Way) -> tuple[Scenario, ...]:
    """Other ends: at other paces that the log has seen, without what is not training, with stops like those so far."""
    lines, rest, found = way.lines.ordinary, way.pauses.left, []
    if way.pace and len(lines.seconds) >= FEWEST_FOR_TENTHS:
        tenth = float(np.median(lines.seconds[-(len(lines.seconds) // 10) :]))
        best, worst = np.quantile(trend.median_blocks(lines.steps, lines.seconds).paces, (0.1, 0.9))
        for what, seconds in (("the last tenth", tenth), ("its best tenth", best), ("its slowest tenth", worst)):
            if abs(seconds / way.pace.seconds - 1) > OTHER:
                found.append(Scenario(f"at the pace of {what}", way.left * float(seconds) + rest))
    if way.pace and way.trend and way.trend.kind == "drift":
        steady = max(way.pace.seconds + way.trend.slope * way.left / 2, way.pace.seconds / 2)
        found.append(Scenario("if the pace goes on changing as it does", way.left * steady + rest))
    if rest:
        found.append(Scenario("without evaluation and saving", way.training))
    if stood := way.standing():
        whole = (way.training + rest) * (1 + stood / max(way.trained(), 1.0))
        found.append(Scenario("with stops between processes like those so far", whole))
    return tuple(found)


def _notes(way: Way) -> tuple[str, ...]:
    """How little the answer rests on, and what it leaves out."""
    notes = []
    if way.pace and way.pace.steps_used < 3:
        what = "one line with a time" if way.pace.steps_used == 1 else "two lines with a time"
        notes.append(f"this rests on {what}: nothing is known of how paces scatter, nor of a trend")
    if not way.lines.pure.any():
        notes.append("what has a time in the log may hold compiling or an evaluation as well")
    if not way.pauses.measured:
        notes.append("the log does not show what evaluations and saves take: none is counted")
    return tuple(notes)
