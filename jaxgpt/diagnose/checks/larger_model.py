"""The model that ends with the lowest predicted loss for as many FLOPs as a run takes."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxgpt.budget import query as queries
from jaxgpt.budget import scaling_law, search, speed
from jaxgpt.budget.recommend import best_model_for
from jaxgpt.budget.scaling_law import FITTED_RATIO, LossPrediction
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token, parameters
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.analysis.series import Estimate
from jaxgpt.diagnose.checks.throughput import software_of
from jaxgpt.errors import ConfigError
from jaxgpt.utils.formatting import format_rough_duration

PREDICTION_SD = 0.037  # nats: of a difference of two predictions, whose leave-one-out error is .026 each
SHAPE = ("n_layer", "n_head", "n_embd", "n_kv_head", "head_dim", "n_inner")
SCHEDULE = ("learning_rate", "min_lr", "warmup_steps", "decay_steps")


class LargerModel(NamedTuple):
    """A larger model: what to do, the changes of the config, and the expected gain in nats."""

    action: str
    changes: dict[str, dict[str, Any]]
    gain: Estimate


def for_same_flops(run: RunAnalysis) -> LargerModel | None:
    """The best model for as many FLOPs within the scaling law's range, or one of the baseline run's size.

    None where the config is unknown or the scaling law does not apply.
    """
    if run.baseline is not None:
        return _as_large_as_baseline(run)
    if run.law.query is None or run.law.inapplicable_reason or run.context.config is None:
        return None
    config = _best_config(run, run.context.config)
    if best_model_for(run.law.query) is None or config is None:
        return None
    steps = float(f"{config.run.steps:.2g}")
    action = (
        f"For the same compute, train a {parameters(config.model) / 1e6:,.0f}M model for {steps:,.0f} steps"
        f"{_in_time(run, config)}"
    )
    changes = {
        "model": {name: getattr(config.model, name) for name in SHAPE},
        "optim": {name: getattr(config.optim, name) for name in SCHEDULE},
        "data": {"micro_batch": config.data.micro_batch, "accum": config.data.accum},
        "run": {"steps": config.run.steps},
    }
    gain = _expected_end(run) - _predict(run, config).loss
    return LargerModel(action, changes, Estimate(gain, PREDICTION_SD))


def _in_time(run: RunAnalysis, config: Config) -> str:
    """` (21 h)`: the time of a run with this config, by the measured step time, else by the device; "" if unknown."""
    old = run.context.config
    seconds = run.step_seconds
    if seconds is not None and old is not None:
        flops, old_flops = (flops_per_token(each.model) * each.tokens_per_step for each in (config, old))
        return f" ({format_rough_duration(config.run.steps * seconds * flops / old_flops)})"
    if run.context.device is None:
        return ""
    estimate = speed.estimate(config, run.context.device, software_of(run))
    return f" ({format_rough_duration(config.run.steps * estimate.seconds)})"


def _expected_end(run: RunAnalysis) -> float:
    """The loss that the run ended with or is heading for: measured, forecast or, last, by the scaling law."""
    if run.expected_end is not None:
        return run.expected_end
    if run.posterior is not None:
        return run.posterior.final_loss().mean
    return run.law.prediction.loss if run.law.prediction else math.nan


def _predict(run: RunAnalysis, config: Config) -> LossPrediction:
    query = queries.build_query(config, config.run.steps, run.context.corpus, run.context.unique_tokens)
    return scaling_law.predict_loss(query)


def _best_config(run: RunAnalysis, config: Config) -> Config | None:
    """The config of a standard shape with the lowest predicted loss for the run's 6 N D, within the fitted range."""
    predicted = ((_predict(run, candidate), candidate) for candidate in _candidates(run, config))
    inside = [(prediction.loss, candidate) for prediction, candidate in predicted if not prediction.outside]
    return min(inside, key=lambda pair: pair[0])[1] if inside else None


def _candidates(run: RunAnalysis, config: Config) -> Iterator[Config]:
    """The standard shapes, each with as many steps as the run's FLOPs allow."""
    query = run.law.query
    if query is None:
        return
    product = query.parameters * query.tokens
    for shape in search.SHAPES:
        try:
            shaped = search.with_shape(config, *shape)
        except ConfigError:
            continue
        if run.context.device is not None:
            shaped = search.with_batch(shaped, run.context.device) or shaped
        size = parameters(shaped.model)
        steps = int(product / size / shaped.tokens_per_step)
        if steps >= search.MIN_STEPS and steps * shaped.tokens_per_step >= FITTED_RATIO * size:
            yield search.with_steps(shaped, steps, run.context.unique_tokens)


def _as_large_as_baseline(run: RunAnalysis) -> LargerModel | None:
    config = run.baseline.context.config if run.baseline else None
    excess = run.loss_above_baseline
    if config is None or excess is None:
        return None
    action = f"Train a model of the baseline run's size, {parameters(config.model):,} parameters"
    changes = {"model": {name: getattr(config.model, name) for name in SHAPE}}
    return LargerModel(action, changes, excess)
