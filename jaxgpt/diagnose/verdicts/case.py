"""What is judged: a run's log, setting and forecast, and the figures that several verdicts ask for."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxgpt.budget import question, scaling
from jaxgpt.budget.scaling import Expectation, Question, Recipe
from jaxgpt.diagnose.annealing import Forecast, Posterior
from jaxgpt.diagnose.arrival import Arrival
from jaxgpt.diagnose.setting import Setting
from jaxgpt.diagnose.verdicts import measure
from jaxgpt.diagnose.verdicts.measure import Level, Series
from jaxgpt.logs.history import Evaluation, History

# Random batches of 1,024 tokens: measured on FineWeb (forecast.md, section 4: "Eval noise first").
RANDOM_TEXT_ERROR, RANDOM_TEXT_TOKENS = 0.044, 524_288
FIXED_TEXT_ERROR = 0.003  # repeats on a fixed validation set: 0.0004 to 0.003 (same place)
CALM = 2 * math.sqrt(2)  # standard errors of one evaluation that a difference of two must exceed to be seen
WINDOW = 0.05  # of the steps done: how far back "now" reaches when a plateau is looked for
TRAIN_WINDOW = 200  # losses behind an evaluation that stand for its train loss
KNOWN_CORPUS = 0.10  # nats: an offset known worse than that says nothing of the level


class Gap(NamedTuple):
    """Validation minus train loss after `step` updates, and its standard error."""

    step: int
    value: float
    error: float
    lines: tuple[int, ...]


class Flat(NamedTuple):
    """The last window of evaluations: from one to the other, how far the loss fell, the error of that."""

    first: Evaluation
    last: Evaluation
    fall: float
    error: float | None


@dataclass(frozen=True)
class Case:
    """One run before its judges. Nothing here raises: what is not known is None or empty."""

    history: History
    setting: Setting
    posterior: Posterior | None = None
    forecast: Forecast | None = None
    arrival: Arrival | None = None
    twin: "Case | None" = field(default=None)

    @property
    def done(self) -> int:
        return self.history.done

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return measure.validations(self.history)

    @cached_property
    def losses(self) -> Series:
        return measure.step_losses(self.history)

    @cached_property
    def vals(self) -> Series:
        return measure.series([(e.step, e.val, e.line) for e in self.evaluations])

    @cached_property
    def error(self) -> float | None:
        """Standard error of one evaluation against the next, in nats: text for random batches, else its scatter."""
        setting, tail = self.setting, self.vals.values[-40:]
        if setting.fixed_eval:
            return max(FIXED_TEXT_ERROR, measure.scatter(tail) or 0.0)
        stated = [e.standard_error for e in self.evaluations if e.standard_error and math.isfinite(e.standard_error)]
        if stated:
            return float(np.median(stated))
        if setting.eval_tokens:
            return RANDOM_TEXT_ERROR * math.sqrt(RANDOM_TEXT_TOKENS / setting.eval_tokens)
        found = measure.scatter(tail)
        return None if found is None else max(found, FIXED_TEXT_ERROR)

    @cached_property
    def now(self) -> Level | None:
        """The validation loss where the run stands."""
        if not self.evaluations:
            return None
        last = self.evaluations[-1]
        return Level(float(last.val or 0.0), self.error or 0.0, (last.line,))

    @cached_property
    def flat(self) -> Flat | None:
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
        error = None if self.error is None else self.error * math.sqrt(2) * min(1.0, math.sqrt(6 / (count + 2)))
        fall = self._slope(first.step) * (last.step - first.step)
        return Flat(first, last, -fall, error)

    def _slope(self, first: int) -> float:
        """Nats per step of a line through the evaluations from `first` on."""
        part = self.vals.between(first, math.inf)
        x = part.steps - part.steps.mean()
        spread = float((x**2).sum())
        return float((x * part.values).sum()) / spread if spread else 0.0

    def share(self, step: int) -> float | None:
        """The learning rate of update `step` over the peak; None without a schedule."""
        rates = self.setting.rates
        return float(rates[min(max(step, 0), len(rates) - 1)]) if len(rates) else None

    @property
    def epochs(self) -> float | None:
        return self.setting.epochs(self.done)

    @cached_property
    def first_epoch(self) -> float | None:
        """Updates until each token has been read once."""
        setting = self.setting
        if not setting.unique_tokens or not setting.tokens_per_step:
            return None
        return setting.unique_tokens / setting.tokens_per_step

    @cached_property
    def gaps(self) -> tuple[Gap, ...]:
        """Validation minus train loss at each evaluation that has both, or training losses enough behind it."""
        found = []
        for evaluation in self.evaluations:
            level = self._train_level(evaluation)
            if level is not None:
                value = float(evaluation.val or 0.0) - level.value
                error = math.hypot(self.error or 0.0, level.error)
                found.append(Gap(evaluation.step, value, error, (evaluation.line, *level.lines)))
        return tuple(found)

    def _train_level(self, evaluation: Evaluation) -> Level | None:
        train = evaluation.train
        if train is not None and math.isfinite(train):
            return Level(train, self.error or 0.0)
        if not len(self.losses) or self.setting.dropout:
            return None  # a loss with dropout stands above the same weights' loss without
        return measure.trailing(self.losses, evaluation.step, TRAIN_WINDOW)

    def repetition(self, step: float, unique: float | None = None) -> float | None:
        """What repeated tokens cost after `step` updates by the law, in nats; None where N or the tokens are unknown."""
        setting = self.setting
        held = setting.unique_tokens if unique is None else unique
        if not setting.parameters or not setting.tokens_per_step or not held:
            return None
        return scaling.repetition(setting.parameters, step * setting.tokens_per_step, held)

    @cached_property
    def asked(self) -> Question | None:
        """The question that the run is to the law of the loss; None where its size or tokens are unknown."""
        setting = self.setting
        if not setting.parameters or not setting.tokens:
            return None
        rate = setting.optim.learning_rate
        if setting.config is not None:
            recipe = question.recipe(setting.config.replace({"optim": _plain(setting)}), setting.total_steps)
        else:
            recipe = Recipe(learning_rate=rate, end_share=self.share(setting.total_steps) or 0.0)
        ceiling = math.log(setting.vocab_size) if setting.vocab_size and setting.vocab_size > 1 else math.inf
        return Question(
            parameters=setting.parameters,
            tokens=setting.tokens,
            recipe=recipe,
            corpus=setting.corpus,
            unique=setting.unique_tokens,
            ceiling=ceiling,
        )

    @cached_property
    def law(self) -> Expectation | None:
        return None if self.asked is None else scaling.expect(self.asked)

    @cached_property
    def unlicensed(self) -> str:
        """Why the law says nothing of this run's level; empty where it does."""
        if self.law is None:
            return "the run's size or tokens are not known"
        if self.law.outside:
            return "outside the law's fitted range: " + "; ".join(self.law.outside)
        if self.setting.corpus.sd > KNOWN_CORPUS:
            return f"the corpus ({self.setting.corpus.name}) has no offset known to {KNOWN_CORPUS:g} nats"
        return ""

    def gain(self, **changes: float) -> float | None:
        """What the run with `changes` to its question would end lower, its recipe tuned to either, in nats."""
        if self.asked is None:
            return None
        other = scaling.expect(replace(self.asked, **changes))  # type: ignore[arg-type]
        mine = scaling.expect(self.asked)
        return (mine.loss - mine.terms["recipe"]) - (other.loss - other.terms["recipe"])

    @cached_property
    def excess(self) -> Level | None:
        """How far the last evaluations stand above the twin's at the same steps, and the error of that."""
        return None if self.twin is None else above(self, self.twin, 3)


def _plain(setting: Setting) -> dict[str, float]:
    return {"learning_rate": setting.optim.learning_rate, "min_lr": setting.optim.min_lr}


def above(case: Case, twin: Case, count: int) -> Level | None:
    """The mean difference of the last `count` evaluations to the twin's curve at their steps; None if none is shared.

    Evaluations beyond the twin's last one are left out.
    """
    if not len(twin.vals) or not len(case.vals):
        return None
    shared = case.vals.between(float(twin.vals.steps[0]), float(twin.vals.steps[-1]) + 1)
    if not len(shared):
        return None
    apart = shared.values - np.interp(shared.steps, twin.vals.steps, twin.vals.values)
    error = math.hypot(case.error or FIXED_TEXT_ERROR, twin.error or FIXED_TEXT_ERROR)
    last = apart[-count:]
    return Level(float(last.mean()), error / math.sqrt(len(last)), tuple(int(n) for n in shared.lines[-count:]))
