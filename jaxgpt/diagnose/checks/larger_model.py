"""The model that ends with the lowest predicted loss for as many FLOPs as a run takes."""

import math
from typing import Any, NamedTuple

from jaxgpt.budget import speed
from jaxgpt.budget.best_model import best_model
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token, parameters
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.analysis.series import Estimate
from jaxgpt.diagnose.checks.throughput import device_count, software_of
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
    old = run.context.config
    context = run.context
    product = run.law.query.parameters * run.law.query.tokens
    best = best_model(old, product, context.corpus, context.unique_tokens, context.device, device_count(run, old))
    if best is None:
        return None
    config = best.config
    action = (
        f"For the same compute, train a {best.parameters / 1e6:,.0f}M model for {best.steps_in_words}"
        f"{_in_time(run, config)}"
    )
    changes = {
        "model": {name: getattr(config.model, name) for name in SHAPE},
        "optim": {name: getattr(config.optim, name) for name in SCHEDULE},
        "data": {"micro_batch": config.data.micro_batch, "accum": config.data.accum},
        "run": {"steps": config.run.steps},
    }
    gain = _expected_end(run) - best.prediction.loss
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
    estimate = speed.estimate(config, run.context.device, software_of(run), device_count(run, config))
    return f" ({format_rough_duration(config.run.steps * estimate.seconds)})"


def _expected_end(run: RunAnalysis) -> float:
    """The loss that the run ended with or is heading for: measured, forecast or, last, by the scaling law."""
    if run.expected_end is not None:
        return run.expected_end
    if run.posterior is not None:
        return run.posterior.final_loss().mean
    return run.law.prediction.loss if run.law.prediction else math.nan


def _as_large_as_baseline(run: RunAnalysis) -> LargerModel | None:
    config = run.baseline.context.config if run.baseline else None
    excess = run.loss_above_baseline
    if config is None or excess is None:
        return None
    action = f"Train a model of the baseline run's size, {parameters(config.model):,} parameters"
    changes = {"model": {name: getattr(config.model, name) for name in SHAPE}}
    return LargerModel(action, changes, excess)
