"""What the trials reached: by the log of each, and for each combination of values over its seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import DONE, read_log, read_stop_reason
from jaxgpt.sweep.grid import Trial

DIVERGED = "N001"  # the log's stop reason of a loss that is not finite


class Outcome(NamedTuple):
    """How a trial ended. `loss` is the last evaluation's in nats per token with its standard error; None: not finished.

    `note` says why a trial did not finish, or that it ended before its last step; `forecast` is the expected loss of
    one that the sweep stopped.
    """

    loss: float | None = None
    standard_error: float | None = None
    note: str = ""
    forecast: float | None = None


def read_outcome(trial: Trial) -> Outcome | None:
    """The outcome by the trial's log; None if it has steps left."""
    log = RunFolder.from_config(trial.config).log_file
    reason = read_stop_reason(log)
    if reason is None:
        return None
    if reason.kind == DIVERGED:
        steps = [record["step"] for record in read_log(log) if record.get("kind") == "step"]
        return Outcome(note=f"diverged: not finite at step {steps[-1]:,}")
    if reason != DONE and not reason.is_early:
        return None
    losses = evaluations(trial)
    if not losses:
        return None
    step, loss, error = losses[-1]
    return Outcome(loss, error, f"ended early at step {step:,}" if reason.is_early else "")


def evaluations(trial: Trial) -> list[tuple[int, float, float | None]]:
    """Steps done, loss and standard error of each evaluation; on training text where there is no other."""
    log = RunFolder.from_config(trial.config).log_file
    records = read_log(log) if log.is_file() else []
    by_step = {}
    for record in records:
        if record.get("kind") == "eval":
            split = "val" if record.get("val_loss") is not None else "train"
            by_step[record["step"]] = (float(record[f"{split}_loss"]), record.get(f"{split}_standard_error"))
    return [(step, *by_step[step]) for step in sorted(by_step)]


def step_seconds(trial: Trial) -> float | None:
    """The median seconds of a step; None before the first."""
    log = RunFolder.from_config(trial.config).log_file
    seconds = [record["seconds"] for record in read_log(log) if record.get("kind") == "step"] if log.is_file() else []
    return statistics.median(seconds) if seconds else None


@dataclass(frozen=True)
class Point:
    """A combination of values with the outcomes of its seeds."""

    values: tuple[Any, ...]
    trials: tuple[Trial, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def loss(self) -> float | None:
        """The mean over the seeds; None if a seed did not finish, as a mean over the others would be too low."""
        losses = [outcome.loss for outcome in self.outcomes if outcome.loss is not None]
        return statistics.fmean(losses) if len(losses) == len(self.trials) else None

    @property
    def standard_error(self) -> float | None:
        """That of the mean over the seeds; of a single seed, that of its evaluation, if the log has it."""
        losses = [outcome.loss for outcome in self.outcomes if outcome.loss is not None]
        if len(losses) > 1:
            return statistics.stdev(losses) / math.sqrt(len(losses))
        return self.outcomes[0].standard_error

    @property
    def note(self) -> str:
        """The notes of the outcomes, without duplicates."""
        return "; ".join(dict.fromkeys(outcome.note for outcome in self.outcomes if outcome.note))

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts finished points by their loss, then stopped ones by their forecast, then the others."""
        if self.loss is not None:
            return 0, self.loss
        forecasts = [outcome.forecast for outcome in self.outcomes if outcome.forecast is not None]
        return (1, max(forecasts)) if forecasts else (2, 0.0)


def ranked_points(trials: Sequence[Trial], outcomes: Mapping[str, Outcome]) -> list[Point]:
    """The combinations, the lowest loss first."""
    by_values: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        by_values.setdefault(trial.values, []).append(trial)
    points = [
        Point(values, tuple(group), tuple(outcomes[trial.name] for trial in group))
        for values, group in by_values.items()
    ]
    return sorted(points, key=lambda point: point.rank)
