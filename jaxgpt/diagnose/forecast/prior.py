"""What is known of a run's final loss before it is run: the pre-run law, and what repeated text is expected to cost."""

import math

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget import scaling_law
from jaxgpt.budget.query import make_recipe
from jaxgpt.budget.scaling_law import ScalingQuery
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.forecast.annealing import MISFIT, LossCurve, Posterior, fit
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast, gaussian_forecast
from jaxgpt.logs.history import History

NOISE, NOISE_TOKENS = 0.044, 524_288  # nats: standard error of an evaluation on that many random tokens
MAX_LOSS = 1e6  # nats: a larger loss is none
USUAL_EVAL = 200 * 8 * 1024  # tokens of an evaluation where the log does not say


def scaling_law_prior(context: RunContext, steps: int | None = None) -> Forecast | None:
    """The law's forecast of the loss after `steps` (none: the run's own), annealed there; None where N or D is unknown.

    It counts what repeated text, the peak and last learning rate cost. Its spread is that of recipe, corpus, distance
    from the fitted range and repetition.
    """
    steps = context.total_steps if steps is None else steps
    if not context.parameters or not context.tokens_per_step or not steps or steps < 1:
        return None
    found = scaling_law.predict_loss(
        ScalingQuery(
            parameters=context.parameters,
            tokens=context.tokens_per_step * steps,
            recipe=make_recipe(
                context.optim, steps, context.parameters, context.tokens_per_step, context.dropout or 0.0
            ),
            corpus=context.corpus,
            unique=context.unique_tokens or None,
            ceiling=math.log(context.vocab_size) if context.vocab_size and context.vocab_size > 1 else math.inf,
        )
    )
    return gaussian_forecast(found.loss, found.sigma)


def repetition_costs(context: RunContext, steps: int | None = None) -> NDArray[np.float64] | None:
    """The expected cost of repeated text after 0, 1, … `steps` updates in nats; None where it is nothing or unknown."""
    parameters, unique, per_step = context.parameters, context.unique_tokens, context.tokens_per_step
    if not parameters or not unique or not per_step:
        return None
    steps = len(context.lr_fractions) if steps is None else steps
    again = np.maximum(np.arange(steps + 1) * (per_step / unique) - 1, 0.0)
    if not again[-1]:
        return None
    cost: NDArray[np.float64] = (
        scaling_law.repetition_cost(parameters, 2 * unique, unique) * again**scaling_law.REPETITION_EPOCHS
    )
    return cost


def evaluation_error(context: RunContext) -> float:
    """One evaluation's standard error in nats; on fixed text it is what real curves stray from the law."""
    if context.fixed_eval_set:
        return MISFIT
    return NOISE * math.sqrt(NOISE_TOKENS / (context.eval_tokens or USUAL_EVAL))


def loss_curve(history: History, context: RunContext) -> LossCurve:
    """The validation losses of a log with the schedule of its run; evaluations without a loss are left out."""
    found = [(e.step, e.val) for e in history.evaluations if e.val is not None and abs(e.val) < MAX_LOSS]
    last = dict(found)  # of a step that stands twice, the later
    steps = sorted(last)
    return LossCurve(
        steps=np.array(steps, np.int64),
        losses=np.array([last[step] for step in steps], np.float64),
        rates=context.lr_fractions,
        warmup=context.optim.warmup_steps,
        sigma=evaluation_error(context),
        repetition=repetition_costs(context),
    )


def posterior(history: History, context: RunContext) -> Posterior | None:
    """The annealing law given the log and, where it is known, the pre-run law; None if neither says enough."""
    try:
        return fit(loss_curve(history, context), scaling_law_prior(context))
    except ValueError:
        return None
