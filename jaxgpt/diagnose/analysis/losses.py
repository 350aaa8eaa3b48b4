"""The losses of a run: train and validation curves, the error of one evaluation, and the latest plateau."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxgpt.diagnose.analysis.series import Estimate, Series, is_valid, scatter, series, step_losses, valid_evaluations
from jaxgpt.diagnose.context import RunContext
from jaxgpt.logs.history import Evaluation, History

# The measured standard error of an evaluation on random windows of 1,024 tokens, in nats, and its tokens.
RANDOM_TEXT_STDERR = 0.044
RANDOM_TEXT_TOKENS = 524_288
FIXED_TEXT_STDERR = 0.003  # repeats on a fixed validation set: 0.0004 to 0.003 (modded-nanogpt's logs)
VISIBLE = 2 * math.sqrt(2)  # standard errors of one evaluation that a difference of two must exceed to be visible
WINDOW = 0.05  # of the steps done: the length of the window in which a plateau is looked for
NOISE_EVALUATIONS = 40  # the last evaluations, whose scatter is measured


class Window(NamedTuple):
    """The last evaluations: the first and last of them, how far the loss fell between, the standard error of that."""

    first: Evaluation
    last: Evaluation
    decrease: float
    stderr: float | None


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

        On random batches it holds the sampling of text; on a fixed text, only the scatter around a smooth curve.
        """
        noise = scatter(self.val.values[-NOISE_EVALUATIONS:])
        if self.context.fixed_eval_set:
            return max(FIXED_TEXT_STDERR, noise or 0.0)
        logged = [e.standard_error for e in self.evaluations if e.standard_error and is_valid(e.standard_error)]
        if logged:
            return float(np.median(logged))
        if self.context.eval_tokens:
            return RANDOM_TEXT_STDERR * math.sqrt(RANDOM_TEXT_TOKENS / self.context.eval_tokens)
        return None if noise is None else max(noise, FIXED_TEXT_STDERR)

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
