"""What is judged: a run's log, context and forecast, and the figures that several findings ask for."""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxgpt.budget import query, scaling_law
from jaxgpt.budget.scaling_law import LossPrediction, ScalingQuery
from jaxgpt.diagnose.checks import series
from jaxgpt.diagnose.checks.series import Estimate, Series
from jaxgpt.diagnose.completion import CompletionEstimate
from jaxgpt.diagnose.context import RunContext, schedule_detection
from jaxgpt.diagnose.forecast import annealing, scenarios
from jaxgpt.diagnose.forecast.annealing import Posterior
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.logs.history import Evaluation, History

# The measured standard error of an evaluation on random windows of 1,024 tokens.
RANDOM_TEXT_ERROR, RANDOM_TEXT_TOKENS = 0.044, 524_288
FIXED_TEXT_ERROR = 0.003  # repeats on a fixed validation set: 0.0004 to 0.003 (modded-nanogpt's logs)
CALM = 2 * math.sqrt(2)  # standard errors of one evaluation that a difference of two must exceed to be seen
WINDOW = 0.05  # of the steps done: how far back "now" reaches when a plateau is looked for
TRAIN_WINDOW = 200  # losses behind an evaluation that stand for its train loss
NEAR_END = 1.3  # epochs within which the first gap stands for that of the end of epoch 1
DROP, DROP_POWER = (0.128, 0.025), 0.85  # B of the annealing law and its q: what stands in for a fit that is not there
KNOWN_CORPUS = 0.10  # nats: an offset known worse than that says nothing of the level


class Gap(NamedTuple):
    """Validation minus train loss after `step` updates, and its standard error."""

    step: int
    value: float
    error: float
    lines: tuple[int, ...]


class Growth(NamedTuple):
    """How far the gap has grown since each token had been read once; not `exact` is at least as much."""

    value: float
    error: float
    said: str
    exact: bool
    lines: tuple[int, ...]


class Flat(NamedTuple):
    """The last window of evaluations: from one to the other, how far the loss fell, the error of that."""

    first: Evaluation
    last: Evaluation
    fall: float
    error: float | None


@dataclass(frozen=True)
class RunAnalysis:
    """One run before its judges. Nothing here raises: what is not known is None or empty."""

    history: History
    context: RunContext
    posterior: Posterior | None = None
    forecast: Forecast | None = None
    completion: CompletionEstimate | None = None
    baseline: "RunAnalysis | None" = None

    @property
    def steps_done(self) -> int:
        return self.history.steps_done

    @property
    def total_steps(self) -> int:
        """The run's length; where nothing says it, what is done."""
        return self.context.total_steps or max(self.steps_done, 1)

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return series.validations(self.history)

    @cached_property
    def train_losses(self) -> Series:
        return series.step_losses(self.history)

    @cached_property
    def val_losses(self) -> Series:
        return series.series([(e.step, e.val, e.line) for e in self.evaluations])

    @cached_property
    def eval_stderr(self) -> float | None:
        """Standard error of one evaluation against the next, in nats: text for random batches, else its scatter."""
        context, tail = self.context, self.val_losses.values[-40:]
        if context.fixed_eval_set:
            return max(FIXED_TEXT_ERROR, series.scatter(tail) or 0.0)
        stated = [e.standard_error for e in self.evaluations if e.standard_error and series.number(e.standard_error)]
        if stated:
            return float(np.median(stated))
        if context.eval_tokens:
            return RANDOM_TEXT_ERROR * math.sqrt(RANDOM_TEXT_TOKENS / context.eval_tokens)
        found = series.scatter(tail)
        return None if found is None else max(found, FIXED_TEXT_ERROR)

    @cached_property
    def current_val_loss(self) -> Estimate | None:
        """The validation loss where the run stands."""
        if not self.evaluations:
            return None
        last = self.evaluations[-1]
        return Estimate(float(last.val or 0.0), self.eval_stderr or 0.0, (last.line,))

    @cached_property
    def plateau_window(self) -> Flat | None:
        """The last two evaluations, or as many as lie in the last `WINDOW` of the steps done."""
        if len(self.evaluations) < 2:
            return None
        last = self.evaluations[-1]
        reach = last.step - max(WINDOW * last.step, 1)
        inside = [e for e in self.evaluations[:-1] if e.step >= reach]
        first = inside[0] if inside else self.evaluations[-2]
        if first.step == 0 or first.step >= last.step:
            return None
        count = max(len(inside), 1)
        # more evaluations between the ends make the slope surer: of n + 1 even ones, about as 6 / n beside 2
        error = (
            None if self.eval_stderr is None else self.eval_stderr * math.sqrt(2) * min(1.0, math.sqrt(6 / (count + 2)))
        )
        fall = self._slope(first.step) * (last.step - first.step)
        return Flat(first, last, -fall, error)

    def _slope(self, first: int) -> float:
        """Nats per step of a line through the evaluations from `first` on."""
        part = self.val_losses.between(first, math.inf)
        x = part.steps - part.steps.mean()
        spread = float((x**2).sum())
        return float((x * part.values).sum()) / spread if spread else 0.0

    def lr_fraction(self, step: int) -> float | None:
        """The learning rate of update `step` over the peak; None without a schedule."""
        shares = self.context.lr_fractions
        return float(shares[min(max(step, 0), len(shares) - 1)]) if len(shares) else None

    @property
    def lr_fraction_now(self) -> float | None:
        """The learning rate of the last update over the peak; None where it is only assumed."""
        known = self.context.schedule_known or len(schedule_detection.logged_rates(self.history.steps).rates) > 0
        return self.lr_fraction(self.steps_done - 1) if known else None

    @property
    def epochs(self) -> float | None:
        return self.context.epochs(self.steps_done)

    @cached_property
    def first_epoch_steps(self) -> float | None:
        """Updates until each token has been read once."""
        context = self.context
        if not context.unique_tokens or not context.tokens_per_step:
            return None
        return context.unique_tokens / context.tokens_per_step

    @cached_property
    def gaps(self) -> tuple[Gap, ...]:
        """Validation minus train loss at each evaluation that has both, or training losses enough behind it."""
        found = []
        for evaluation in self.evaluations:
            level = self._train_level(evaluation)
            if level is not None:
                value = float(evaluation.val or 0.0) - level.value
                error = math.hypot(self.eval_stderr or 0.0, level.error)
                found.append(Gap(evaluation.step, value, error, (evaluation.line, *level.lines)))
        return tuple(found)

    def _train_level(self, evaluation: Evaluation) -> Estimate | None:
        train = evaluation.train
        if train is not None and series.number(train):
            return Estimate(train, self.eval_stderr or 0.0)
        if not len(self.train_losses):
            return None
        # dropout lifts these losses, by much the same all along: what is asked of them is a difference of two
        return series.trailing(self.train_losses, evaluation.step, TRAIN_WINDOW)

    def repetition_cost(self, step: float, unique: float | None = None) -> float | None:
        """What repeated tokens cost after `step` updates by the law, in nats; None where sizes are unknown."""
        context = self.context
        held = context.unique_tokens if unique is None else unique
        if not context.parameters or not context.tokens_per_step or not held:
            return None
        return scaling_law.repetition_cost(context.parameters, step * context.tokens_per_step, held)

    @cached_property
    def gap_growth(self) -> Growth | None:
        """The gap now (mean of the last three) less the gap at the end of epoch 1; relative to the baseline, if any."""
        end = self.first_epoch_steps
        if end is None or not self.gaps or self.gaps[-1].step <= end:
            return None
        if self.baseline is not None and self.baseline.gaps:
            return self._growth_over_baseline(self.baseline.gaps)
        steps = [gap.step for gap in self.gaps]
        now, error = _mean(self.gaps[-3:])
        start = self.gaps[max(bisect.bisect_right(steps, end) - 1, 0)]
        if start is self.gaps[-1]:
            return None
        then = float(np.interp(end, steps, [gap.value for gap in self.gaps]))
        said = f"{then:+.3f} at step {max(end, steps[0]):,.0f}, {now:+.3f} at step {steps[-1]:,}"
        exact = steps[0] <= NEAR_END * end
        return Growth(now - then, math.hypot(error, start.error), said, exact, (*start.lines, *self.gaps[-1].lines))

    def _growth_over_baseline(self, others: tuple[Gap, ...]) -> Growth:
        """How much wider than the baseline's the gap is, which a run that repeats nothing keeps at nothing."""
        now, error = _mean(self.gaps[-3:])
        steps = [gap.step for gap in self.gaps[-3:]]
        usual = float(np.interp(steps, [gap.step for gap in others], [gap.value for gap in others]).mean())
        said = f"gap {now:+.3f} at step {steps[-1]:,}, the baseline's {usual:+.3f}"
        return Growth(now - usual, error, said, True, self.gaps[-1].lines)

    @cached_property
    def fit_without_prior(self) -> Posterior | None:
        """The annealing law fitted to the validation losses alone: no law beforehand, no cost of repetition."""
        return self._fit(math.inf)

    @cached_property
    def excess_over_epoch1_forecast(self) -> Estimate | None:
        """How far the last evaluations stand above what those of the first epoch foretell; None where they cannot."""
        end = self.first_epoch_steps
        known = None if end is None or self.steps_done <= end else self._fit(end)
        if known is None or self.val_losses.steps[-1] <= (end or 0.0):
            return None
        last = self.val_losses.between(max(end or 0.0, self.val_losses.steps[-3]), math.inf)
        means, sds = known.predict(last.steps.astype(np.int64))
        apart = float((last.values - means).mean())
        return Estimate(apart, math.hypot(float(sds[-1]), self.eval_stderr or 0.0), tuple(int(n) for n in last.lines))

    def _fit(self, until: float) -> Posterior | None:
        if self.posterior is None:
            return None
        curve = self.posterior.curve
        kept = curve.steps <= until
        part = replace(curve, steps=curve.steps[kept], losses=curve.losses[kept], repetition=None)
        try:
            return annealing.fit(part)
        except ValueError:
            return None

    @cached_property
    def annealing_gain(self) -> Estimate | None:
        """What annealing from here to a rate of zero, over a tenth of the steps done, would take off the loss."""
        share = self.lr_fraction_now
        if share is None or not self.steps_done:
            return None
        if self.posterior is None:
            return Estimate(DROP[0] * share**DROP_POWER, DROP[1] * share**DROP_POWER)
        return Estimate(
            *self.posterior.remaining_annealing_gain(
                self.steps_done, scenarios.cooldown(self.context.lr_fractions, self.steps_done)
            )
        )

    @cached_property
    def expected_decrease(self) -> float | None:
        """What the forecast expects the loss to fall by over the window of `flat`, in nats."""
        if self.plateau_window is None or self.posterior is None:
            return None
        means, _ = self.posterior.predict([self.plateau_window.first.step, self.plateau_window.last.step])
        return float(means[0] - means[1])

    @cached_property
    def query(self) -> ScalingQuery | None:
        """The question that the run is to the law of the loss; None where its size or tokens are unknown."""
        return self.query_for(self.total_steps)

    def query_for(self, steps: int) -> ScalingQuery | None:
        """The question of a run like this of `steps`; None where its size or batch is unknown."""
        context = self.context
        if not context.parameters or not context.tokens_per_step or steps < 1:
            return None
        size, batch = context.vocab_size, context.tokens_per_step
        return ScalingQuery(
            parameters=context.parameters,
            tokens=batch * steps,
            recipe=query.make_recipe(
                context.optim, self.total_steps, context.parameters, batch, context.dropout or 0.0
            ),
            corpus=context.corpus,
            unique=context.unique_tokens or None,
            ceiling=math.log(size) if size and size > 1 else math.inf,
        )

    @cached_property
    def predicted_loss(self) -> LossPrediction | None:
        return None if self.query is None else scaling_law.predict_loss(self.query)

    @cached_property
    def predicted_loss_now(self) -> LossPrediction | None:
        """What the law expects of a run that ends, annealed, where this one stands."""
        asked = self.query_for(self.steps_done)
        if asked is None:
            return None
        decayed = replace(asked.recipe, final_lr_fraction=0.0)
        return scaling_law.predict_loss(replace(asked, recipe=decayed))

    @cached_property
    def residual_from_law(self) -> Estimate | None:
        """How far the loss, once annealed, stands above the law; None where the law says nothing of this run."""
        if (
            self.law_inapplicable_reason
            or self.annealing_gain is None
            or self.current_val_loss is None
            or self.predicted_loss_now is None
        ):
            return None
        if self.steps_done <= self.context.optim.warmup_steps:
            return None
        error = math.hypot(self.predicted_loss_now.sigma, self.annealing_gain.error, self.current_val_loss.error)
        return Estimate(
            self.current_val_loss.value - self.annealing_gain.value - self.predicted_loss_now.loss,
            error,
            self.current_val_loss.lines,
        )

    @cached_property
    def law_inapplicable_reason(self) -> str:
        """Why the law says nothing of this run's level; empty where it does."""
        if self.predicted_loss_now is None:
            return "the run's size or tokens are not known (--params, --batch-tokens)"
        if self.predicted_loss_now.outside:
            return "outside the law's fitted range: " + ", ".join(self.predicted_loss_now.outside)
        if self.context.corpus.sd > KNOWN_CORPUS:
            return (
                f"the level of the corpus ({self.context.corpus.name}) is not known to {KNOWN_CORPUS:g} nats (--corpus)"
            )
        return ""

    def gain(self, **changes: float) -> float | None:
        """What the run with `changes` to its question would end lower, its recipe tuned to either, in nats."""
        if self.query is None:
            return None
        other = scaling_law.predict_loss(replace(self.query, **changes))  # type: ignore[arg-type]
        mine = scaling_law.predict_loss(self.query)
        return (mine.loss - mine.terms["recipe"]) - (other.loss - other.terms["recipe"])

    @cached_property
    def loss_above_baseline(self) -> Estimate | None:
        """How far the last evaluations stand above the baseline's at the same steps, and the error of that."""
        return self.loss_above_baseline_where(lambda step: True, 3)

    def loss_above_baseline_where(self, test: Callable[[int], bool], most: int = 1_000_000) -> Estimate | None:
        """The same over the last `most` evaluations at whose step `test` holds; None if there is none."""
        if self.baseline is None or not len(self.baseline.val_losses):
            return None
        others = self.baseline.val_losses
        shared = self.val_losses.between(max(float(others.steps[0]), 1.0), float(others.steps[-1]) + 1)
        kept = np.array([test(int(step)) for step in shared.steps], bool)
        apart = shared.values - np.interp(shared.steps, others.steps, others.values)
        chosen = apart[kept][-most:]
        if not len(chosen):
            return None
        noise = series.scatter(apart[-20:])  # of the difference: what both curves share is no noise of it
        if noise is None:
            noise = math.hypot(self.eval_stderr or FIXED_TEXT_ERROR, self.baseline.eval_stderr or FIXED_TEXT_ERROR)
        lines = tuple(int(line) for line in shared.lines[kept][-min(most, 3) :])
        return Estimate(float(chosen.mean()), max(noise, FIXED_TEXT_ERROR) / math.sqrt(len(chosen)), lines)


def _mean(gaps: tuple[Gap, ...]) -> tuple[float, float]:
    """Mean and standard error."""
    errors = [gap.error for gap in gaps]
    return sum(gap.value for gap in gaps) / len(gaps), math.hypot(*errors) / len(gaps)
