"""What is known of a run's loss beforehand: the scaling law's prediction and the cost of repeated data."""

import math

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget import scaling_law
from jaxgpt.budget.query import make_recipe
from jaxgpt.budget.scaling_law import ScalingQuery
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.forecast.annealing import MISFIT, LossCurve
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast, gaussian_forecast
from jaxgpt.logs.history import History

# The measured standard error, in nats, of an evaluation on so many random tokens.
RANDOM_EVAL_ERROR, RANDOM_EVAL_TOKENS = 0.044, 524_288
MAX_LOSS = 1e6  # nats: a larger value is not a loss
DEFAULT_EVAL_TOKENS = 200 * 8 * 1024  # where neither log nor options tell


def scaling_law_prior(context: RunContext, steps: int | None = None) -> Forecast | None:
    """The scaling law's prediction of the loss after `steps` steps (None: the run's), with a decay that ends there.

    It includes the cost of repeated data and of the peak and final learning rate. Its standard deviation covers
    recipe, corpus, distance from the fitted range and repetition. None if parameters or tokens are unknown.
    """
    steps = context.total_steps if steps is None else steps
    if not context.parameters or not context.tokens_per_step or not steps or steps < 1:
        return None
    batch = context.tokens_per_step
    vocab_size = context.vocab_size or 0
    prediction = scaling_law.predict_loss(
        ScalingQuery(
            parameters=context.parameters,
            tokens=batch * steps,
            recipe=make_recipe(context.optim, steps, context.parameters, batch, context.dropout or 0.0),
            corpus=context.corpus,
            unique=context.unique_tokens or None,
            ceiling=math.log(vocab_size) if vocab_size > 1 else math.inf,
        )
    )
    return gaussian_forecast(prediction.loss, prediction.sigma)


def repetition_costs(context: RunContext, steps: int | None = None) -> NDArray[np.float64] | None:
    """The expected cost in nats of repeated data after 0, 1, … `steps` steps; None if it is 0 or unknown."""
    unique = context.unique_tokens
    if not context.parameters or not unique or not context.tokens_per_step:
        return None
    steps = len(context.lr_fractions) if steps is None else steps
    repeats = np.maximum(np.arange(steps + 1) * (context.tokens_per_step / unique) - 1, 0.0)
    if not repeats[-1]:
        return None
    cost_of_one_repeat = scaling_law.repetition_cost(context.parameters, 2 * unique, unique)
    costs: NDArray[np.float64] = cost_of_one_repeat * repeats**scaling_law.REPETITION_EPOCHS
    return costs


def evaluation_error(context: RunContext) -> float:
    """The standard error of one evaluation in nats; on a fixed text, the misfit of the loss model."""
    if context.fixed_eval_set:
        return MISFIT
    return RANDOM_EVAL_ERROR * math.sqrt(RANDOM_EVAL_TOKENS / (context.eval_tokens or DEFAULT_EVAL_TOKENS))


def loss_curve(history: History, context: RunContext) -> LossCurve:
    """The validation losses of a log with the schedule of its run; evaluations without a loss are left out."""
    losses = {e.step: e.val for e in history.evaluations if e.val is not None and abs(e.val) < MAX_LOSS}
    steps = sorted(losses)
    return LossCurve(
        steps=np.array(steps, np.int64),
        losses=np.array([losses[step] for step in steps], np.float64),
        lr_fractions=context.lr_fractions,
        warmup=context.optim.warmup_steps,
        standard_error=evaluation_error(context),
        repetition=repetition_costs(context),
    )
