"""The gap between validation and train loss, and how it has grown since the run began to repeat its text."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxgpt.diagnose.analysis.losses import Losses
from jaxgpt.diagnose.analysis.series import Estimate, trailing_level
from jaxgpt.logs.history import Evaluation
from jaxgpt.utils.stats import is_valid

TRAIN_WINDOW = 200  # losses before an evaluation that give its train loss
TRAIN_FRACTION = 0.2  # of the steps done: earlier losses tell nothing of the train loss at an evaluation
NEAR_END = 1.3  # epochs within which the first gap may stand for the gap at the end of epoch 1
RECENT = 3  # evaluations whose mean is the current gap


class Gap(NamedTuple):
    """Validation minus train loss after `step` steps, in nats, with its standard error and lines."""

    step: int
    value: float
    stderr: float
    lines: tuple[int, ...]


class GapGrowth(NamedTuple):
    """The growth of the gap since every token was read once, in nats. A value that is not `exact` is a lower bound."""

    value: float
    stderr: float
    description: str
    exact: bool
    lines: tuple[int, ...]


@dataclass(frozen=True)
class TrainValGap:
    """The gap at every evaluation. `first_epoch_steps`: steps until every token was read once (None: unknown)."""

    losses: Losses
    first_epoch_steps: float | None
    baseline: "TrainValGap | None"

    @cached_property
    def points(self) -> tuple[Gap, ...]:
        """The gap at each evaluation that has a train loss, or enough training steps before it."""
        points = []
        before: Evaluation | None = None
        train_before = math.inf
        for evaluation in self.losses.evaluations:
            train = self._train_loss(evaluation)
            if train is None:
                continue
            decrease = (train_before - train.value) * self._averaged_share(before, evaluation)
            value = _without_lag(float(evaluation.val or 0.0) - train.value, decrease)
            stderr = math.hypot(self.losses.eval_stderr or 0.0, train.stderr)
            points.append(Gap(evaluation.step, value, stderr, (evaluation.line, *train.lines)))
            before, train_before = evaluation, train.value
        return tuple(points)

    def _averaged_share(self, before: Evaluation | None, evaluation: Evaluation) -> float:
        """The share of the steps since the evaluation before that one logged train loss can be the mean of."""
        if before is None or evaluation.train is not None or len(self.losses.train) < 2:
            return 1.0
        spacing = float(np.median(np.diff(self.losses.train.steps)))
        return min(spacing / max(evaluation.step - before.step, 1), 1.0)

    def _train_loss(self, evaluation: Evaluation) -> Estimate | None:
        train = evaluation.train
        if train is not None and is_valid(train):
            return Estimate(train, self.losses.eval_stderr or 0.0)
        if not len(self.losses.train):
            return None
        # Dropout raises these losses by about the same amount throughout, and the growth is a difference of two gaps.
        width = max(TRAIN_WINDOW, TRAIN_FRACTION * evaluation.step)
        near = self.losses.train.between(evaluation.step - width, evaluation.step)
        return trailing_level(near, evaluation.step, TRAIN_WINDOW)

    @cached_property
    def growth(self) -> GapGrowth | None:
        """The current gap minus the gap at the end of epoch 1, or minus the baseline run's gap where it has one.

        None before the end of epoch 1, and where one of the two gaps is unknown.
        """
        end = self.first_epoch_steps
        if end is None or not self.points or self.points[-1].step <= end:
            return None
        if self.baseline is not None and self.baseline.points:
            return self._growth_over_baseline(self.baseline.points)
        steps = [gap.step for gap in self.points]
        start = self.points[max(bisect.bisect_right(steps, end) - 1, 0)]
        if start is self.points[-1]:
            return None
        now, stderr = _mean(self.points[-RECENT:])
        then = float(np.interp(end, steps, [gap.value for gap in self.points]))
        return GapGrowth(
            value=now - then,
            stderr=math.hypot(stderr, start.stderr),
            description=f"{then:+.3f} at step {max(end, steps[0]):,.0f}, {now:+.3f} at step {steps[-1]:,}",
            exact=steps[0] <= NEAR_END * end,
            lines=(*start.lines, *self.points[-1].lines),
        )

    def growth_since(self, step: int) -> GapGrowth | None:
        """The growth of the gap since `step`, for a run whose first epoch is unknown; None without two gaps since."""
        points = [gap for gap in self.points if gap.step >= step]
        if len(points) < 2:
            return None
        first, last = points[0], points[-1]
        description = f"{first.value:+.3f} at step {first.step:,}, {last.value:+.3f} at step {last.step:,}"
        stderr = math.hypot(first.stderr, last.stderr)
        return GapGrowth(last.value - first.value, stderr, description, False, (*first.lines, *last.lines))

    def _growth_over_baseline(self, baseline: Sequence[Gap]) -> GapGrowth:
        """How much wider the gap is than that of the baseline run, which is near zero if it repeats nothing."""
        now, stderr = _mean(self.points[-RECENT:])
        steps = [gap.step for gap in self.points[-RECENT:]]
        usual = float(np.interp(steps, [gap.step for gap in baseline], [gap.value for gap in baseline]).mean())
        description = f"gap {now:+.3f} at step {steps[-1]:,}, the baseline run's {usual:+.3f}"
        return GapGrowth(now - usual, stderr, description, True, self.points[-1].lines)


def _without_lag(gap: float, decrease: float) -> float:
    """A gap without what a train loss that is the mean of the steps before lags behind, while it falls by `decrease`.

    Such a mean is at most half of the decrease above the loss at its end. It shows where the gap is below zero, and
    only so much of that is lag: dropout lowers a gap for good.
    """
    return gap + min(max(-gap, 0.0), max(decrease, 0.0) / 2)


def _mean(gaps: Sequence[Gap]) -> tuple[float, float]:
    """The mean of gaps and its standard error."""
    stderr = math.hypot(*(gap.stderr for gap in gaps)) / len(gaps)
    return sum(gap.value for gap in gaps) / len(gaps), stderr
