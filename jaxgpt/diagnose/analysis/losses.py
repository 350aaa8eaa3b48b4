"""The losses of a run: train and validation curves, the error of one evaluation, and the latest plateau."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jaxgpt.diagnose.analysis.series import (
    Estimate,
    Series,
    curve_scatter,
    series,
    step_losses,
    valid_evaluations,
)
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.context.evaluation_noise import stated_noise
from jaxgpt.logs.history import Evaluation, History

FIXED_TEXT_STDERR = 0.003  # repeats on a fixed validation set: 0.0004 to 0.003 (modded-nanogpt's logs)
VISIBLE = 2.0  # standard errors of a difference that it must exceed to be visible
WINDOW = 0.05  # of the steps done: the length of the window in which a plateau is looked for
RECENT = 0.25  # of the steps done, over which a decrease is looked for that the window is too short to show
NOISE_EVALUATIONS = 40  # the last evaluations, whose scatter is measured


class Window(NamedTuple):
    """The last evaluations: the first and last of them, how far the loss fell between, the standard error of that."""

    first: Evaluation
    last: Evaluation
    decrease: float
    stderr: float | None


class Rise(NamedTuple):
    """The rise of the validation loss in nats since its minimum at step `since`."""

    since: int
    height: float
    lines: tuple[int, int]


@dataclass(frozen=True)
class Losses:
    """The loss curves of a log. Losses are in nats per token."""

    history: History
    context: RunContext

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The evaluations with a finite validation loss."""
        return valid_evaluations(self.history)

    @cached_property
    def train(self) -> Series:
        """The training losses of the steps."""
        return step_losses(self.history)

    @cached_property
    def val(self) -> Series:
        """The validation losses."""
        return series([(e.step, e.val, e.line) for e in self.evaluations])

    @cached_property
    def eval_stderr(self) -> float | None:
        """The standard error of one evaluation relative to the next.

        It is the scatter of the evaluations themselves. Of too few, it is what the log or the number of tokens says.
        """
        noise = curve_scatter(self.val.last(NOISE_EVALUATIONS))
        if noise is not None:
            return max(noise, FIXED_TEXT_STDERR)
        return FIXED_TEXT_STDERR if self.context.fixed_eval_set else stated_noise(self.history, self.context)

    @cached_property
    def latest_val(self) -> Estimate | None:
        """The last validation loss."""
        if not self.evaluations:
            return None
        last = self.evaluations[-1]
        return Estimate(float(last.val or 0.0), self.eval_stderr or 0.0, (last.line,))

    @cached_property
    def plateau_window(self) -> Window | None:
        """The evaluations in the last 5 % of the steps done, at least two; None where there are fewer."""
        if len(self.evaluations) < 2:
            return None
        last = self.evaluations[-1]
        start = last.step - max(WINDOW * last.step, 1)
        inside = [e for e in self.evaluations[:-1] if e.step >= start]
        first = inside[0] if inside else self.evaluations[-2]
        if first.step == 0 or first.step >= last.step:
            return None
        decrease = -self._slope(first.step) * (last.step - first.step)
        return Window(first, last, decrease, self._slope_stderr(max(len(inside), 1)))

    @cached_property
    def rise(self) -> Rise | None:
        """How far validation has risen along a line since its minimum; None without three evaluations.

        Not at all if fewer than two evaluations follow the minimum.
        """
        if len(self.val) < 3:
            return None
        lowest = int(self.val.values.argmin())
        lines = (int(self.val.lines[lowest]), int(self.val.lines[-1]))
        since = int(self.val.steps[lowest])
        after = self.val.between(since + 1, math.inf)
        if len(after) < 2:
            return Rise(since, 0.0, lines)
        end = after.values.mean() + self._slope(int(after.steps[0])) * (after.steps[-1] - after.steps.mean())
        return Rise(since, max(float(min(end, after.values[-1]) - self.val.values[lowest]), 0.0), lines)

    @cached_property
    def recent_decrease(self) -> Estimate | None:
        """How far the loss fell along a line over the last quarter of the steps done; None without two evaluations."""
        if not self.evaluations:
            return None
        last = self.evaluations[-1].step
        recent = self.val.between(max((1 - RECENT) * last, 1), math.inf)
        stderr = self._slope_stderr(len(recent) - 1)
        if len(recent) < 2 or stderr is None:
            return None
        first = int(recent.steps[0])
        return Estimate(-self._slope(first) * (last - first), stderr, (int(recent.lines[0]), int(recent.lines[-1])))

    def _slope(self, first: int) -> float:
        """Nats per step of the least-squares line through the evaluations from step `first` on."""
        window = self.val.between(first, math.inf)
        x = window.steps - window.steps.mean()
        spread = float((x**2).sum())
        return float((x * window.values).sum()) / spread if spread else 0.0

    def _slope_stderr(self, count: int) -> float | None:
        """The standard error of the decrease along a line through `count` + 1 evenly spaced evaluations."""
        if self.eval_stderr is None:
            return None
        return self.eval_stderr * math.sqrt(2) * min(1.0, math.sqrt(6 / (count + 2)))
