"""The forecast of a run's final validation loss, or the reason why there is none.

It combines the validation losses of the log with what is known beforehand: the scaling law's prediction and the cost of
repeated data.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget import recipes, scaling_law
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.context.evaluation_noise import random_text_noise, stated_noise
from jaxgpt.diagnose.context.scaling_query import scaling_query
from jaxgpt.diagnose.forecast import annealing
from jaxgpt.diagnose.forecast.annealing import LossCurve, Posterior
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast, gaussian_forecast, mixture_forecast
from jaxgpt.diagnose.forecast.law_variants import LAW_VARIANTS, LawVariant, RunTraits, run_traits
from jaxgpt.logs.history import History
from jaxgpt.utils import stats
from jaxgpt.utils.formatting import pluralize
from jaxgpt.utils.stats import is_valid

# Other optimizers and recipes together have an sd of 0.07 nats around the scaling law.
KNOWN_OPTIMIZERS = set(recipes.LOSS_GAINS)
UNKNOWN_OPTIMIZER_SD = math.sqrt(scaling_law.OTHER_RECIPE**2 - scaling_law.SAME_RECIPE**2)
EVIDENCE_POWER = 0.25  # of losses for a schedule: the loss model's misfit resembles a change of the learning rate
DEFAULT_EVAL_TOKENS = 200 * 8 * 1024  # where neither log nor options tell, and the evaluations are few


class RunForecast(NamedTuple):
    """The fitted loss model and the final loss that it predicts; both None where `unavailable` says why."""

    posterior: Posterior | None
    final_loss: Forecast | None
    unavailable: str


def forecast_run(
    history: History, context: RunContext, variants: Sequence[LawVariant] = LAW_VARIANTS, with_law: bool = True
) -> RunForecast:
    """Fits the loss model to the run's validation losses, `with_law` as a prior, and forecasts its final loss.

    Where the schedule is unknown, the forecast averages over the possible ones, and the posterior is that of the
    likeliest.
    """
    if not context.total_steps:
        return RunForecast(None, None, "the length of the run is unknown (--total-steps)")
    if history.evaluations and all(evaluation.val is None for evaluation in history.evaluations):
        return RunForecast(None, None, "the run has no validation split")
    if _loss_is_not_finite(history):
        return RunForecast(None, None, "its loss is not finite")
    if not context.lr_fractions.any():
        return RunForecast(None, None, "its learning rate is 0 throughout, or not known")
    curve = loss_curve(history, context)
    prior = scaling_law_prior(context) if with_law else None
    schedules = context.schedules or ((1.0, context.lr_fractions),)
    try:
        posteriors = [annealing.fit(replace(curve, lr_fractions=rates), prior, variants) for _, rates in schedules]
    except ValueError:
        return RunForecast(None, None, _too_few_losses(int(curve.usable().sum()), context))
    weights = _schedule_weights([probability for probability, _ in schedules], posteriors)
    return RunForecast(posteriors[int(weights.argmax())], _average(weights, posteriors), "")


def _schedule_weights(probabilities: Sequence[float], posteriors: Sequence[Posterior]) -> NDArray[np.float64]:
    """The probability of each schedule given the losses, whose evidence counts `EVIDENCE_POWER` times."""
    evidence = np.array([posterior.log_evidence for posterior in posteriors])
    weights = np.array(probabilities) * np.exp(EVIDENCE_POWER * (evidence - evidence.max()))
    normalized: NDArray[np.float64] = weights / weights.sum()
    return normalized


def _average(weights: NDArray[np.float64], posteriors: Sequence[Posterior]) -> Forecast:
    """The final loss of the schedules together."""
    parts = [posterior.final_components() for posterior in posteriors]
    scaled = [weight * part[0] for weight, part in zip(weights, parts)]
    means, sds = (np.concatenate([part[column] for part in parts]) for column in (1, 2))
    return mixture_forecast(np.concatenate(scaled), means, sds)


def _too_few_losses(count: int, context: RunContext) -> str:
    needed = pluralize(annealing.MIN_EVALUATIONS, "validation loss", "validation losses")
    facts = context.missing("parameters", "tokens_per_step").replace("; ", " and ")
    alternative = f", or {facts}" if facts else ""
    return f"it needs {needed} after the warmup (the log has {count}){alternative}"


def _loss_is_not_finite(history: History) -> bool:
    """Whether the last training or validation loss is NaN, infinite or too large to train on from."""
    training = [step.loss for step in history.steps if step.loss is not None]
    validation = [evaluation.val for evaluation in history.evaluations if evaluation.val is not None]
    return any(not is_valid(losses[-1]) for losses in (training, validation) if losses)


def scaling_law_prior(context: RunContext, total_steps: int | None = None) -> Forecast | None:
    """The scaling law's prediction of the final loss, per token of the run's tokenizer.

    `total_steps` replace the length of the run. It includes the cost of repeated data and of the peak and final
    learning rate. Its standard deviation covers recipe, optimizer, corpus, distance from the fitted range and
    repetition. None if parameters or tokens are unknown.
    """
    steps = total_steps or context.total_steps or 0
    query = scaling_query(context, steps, steps)
    if query is None:
        return None
    prediction = scaling_law.predict_loss(query)
    is_covered = context.optimizer in KNOWN_OPTIMIZERS or query.recipe.differences
    sd = 0.0 if is_covered else UNKNOWN_OPTIMIZER_SD
    scale, spread, _ = context.token_scale
    loss = scale * prediction.loss
    return gaussian_forecast(loss, math.hypot(scale * prediction.sigma, scale * sd, spread * loss))


def repetition_costs(context: RunContext) -> NDArray[np.float64] | None:
    """The expected cost in nats of repeated data after 0, 1, … steps of the run; None if it is 0 or unknown."""
    unique = context.unique_tokens
    if not context.parameters or not unique or not context.tokens_per_step:
        return None
    repeats = np.maximum(np.arange(len(context.lr_fractions) + 1) * (context.tokens_per_step / unique) - 1, 0.0)
    if not repeats[-1]:
        return None
    cost_of_one_repeat = scaling_law.repetition_cost(context.parameters, 2 * unique, unique)
    costs: NDArray[np.float64] = context.token_scale.value * cost_of_one_repeat * repeats**scaling_law.REPETITION_EPOCHS
    return costs


def evaluation_noise(history: History, context: RunContext, curve: LossCurve) -> float:
    """The standard error in nats of one evaluation of `curve`, independent of the others'.

    On random text it is the logged one, or that of the number of tokens. Where neither is known, and on a fixed text,
    it is the scatter of the curve itself; of a few evaluations on unknown text, that of `DEFAULT_EVAL_TOKENS`.
    """
    stated = stated_noise(history, context)
    if stated is not None:
        return stated
    usable = curve.usable()
    noise = stats.curve_noise(np.log(curve.steps[usable]), curve.losses[usable])
    if noise is not None:
        return noise
    return 0.0 if context.fixed_eval_set else random_text_noise(DEFAULT_EVAL_TOKENS, context.vocab_size)


def traits(context: RunContext) -> RunTraits:
    """What is known of the run that determines its annealing gain."""
    decay_rate = None
    if context.weight_decay is not None:
        is_assumed = (context.sources or {}).get("peak_lr") == "assumption"
        decay_rate = context.optim.learning_rate * context.weight_decay
        decay_rate = None if is_assumed and context.weight_decay else decay_rate
    return run_traits(decay_rate, context.total_steps, context.tokens_per_step, context.parameters)


def loss_curve(history: History, context: RunContext) -> LossCurve:
    """The validation losses of a log with the schedule of its run; evaluations without a loss are left out."""
    losses = {e.step: e.val for e in history.evaluations if e.val is not None and is_valid(e.val)}
    steps = sorted(losses)
    curve = LossCurve(
        steps=np.array(steps, np.int64),
        losses=np.array([losses[step] for step in steps], np.float64),
        lr_fractions=context.lr_fractions,
        warmup=context.optim.warmup_steps,
        repetition=repetition_costs(context),
        traits=traits(context),
        endings=context.endings,
        token_scale=context.token_scale.value,
        token_spread=context.token_scale.spread,
    )
    return replace(curve, noise=evaluation_noise(history, context, curve))
