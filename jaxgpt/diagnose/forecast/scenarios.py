"""Scenarios of a run: the same run with another end of its schedule, the loss forecast there, and the command for it.

The forecast and the command are both derived from the same changed optimizer config.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.config import Optim, schedule
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.forecast.annealing import Posterior
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.suggested_commands import train_command
from jaxgpt.errors import ConfigError
from jaxgpt.logs.history import History

Floats = NDArray[np.float64]

COOLDOWN_FRACTION = 0.1  # of the steps done: the length of a cooldown (a tenth is known to suffice for WSD runs)
EXTENSIONS = (0.25, 0.5, 1.0)  # of the run's length
LOW_LR = 0.02  # of the peak: a learning rate that is practically 0
CHANGED_FIELDS = ("learning_rate", "min_lr", "schedule", "warmup_steps", "decay_steps")


class ScenarioForecast(NamedTuple):
    """A scenario's description and length, its forecast final loss, and the command that trains it ("": none)."""

    description: str
    steps: int
    forecast: Forecast
    command: str = ""


class Scenario(NamedTuple):
    """A run of `steps` whose optimizer config is `optim` from step `start` on."""

    description: str
    suffix: str  # of the new run's name
    steps: int
    optim: Optim
    start: int
    trainable_from_scratch: bool = True  # whether a run from step 0 can be trained with this config as well

    def lr_fractions(self, context: RunContext) -> Floats:
        """The learning rate of every step over the peak of the run that is changed."""
        planned = schedule.learning_rates(self.optim, self.steps) / (context.optim.learning_rate or 1.0)
        return np.concatenate((context.lr_fractions[: self.start], planned[self.start :]))

    def config_changes(self, context: RunContext) -> dict[str, dict[str, Any]]:
        """The changed fields of the config by section."""
        changes = {name: getattr(self.optim, name) for name in CHANGED_FIELDS}
        optim = {name: value for name, value in changes.items() if value != getattr(context.optim, name)}
        return {"optim": optim, "run": {"steps": self.steps}}


def forecast_scenarios(history: History, context: RunContext, posterior: Posterior) -> tuple[ScenarioForecast, ...]:
    """Forecasts a cooldown now, a decay to 0, and longer runs.

    For a run that is done: the loss that it would have reached if it had been planned so.
    """
    return tuple(
        ScenarioForecast(
            scenario.description,
            scenario.steps,
            posterior.final_loss(scenario.lr_fractions(context)),
            scenario_command(history, context, scenario),
        )
        for scenario in possible_scenarios(history, context)
    )


def scenario_command(history: History, context: RunContext, scenario: Scenario) -> str:
    """The command that trains a scenario; empty if it needs a checkpoint and the run is not one of jaxgpt's."""
    if not scenario.trainable_from_scratch and not history.traits.is_jaxgpt_run:
        return ""
    changes = scenario.config_changes(context)
    return train_command(history, context, changes, name=scenario.suffix, checkpoint="latest")


def possible_scenarios(history: History, context: RunContext) -> list[Scenario]:
    """The scenarios that this run allows."""
    total = len(context.lr_fractions)
    if total <= context.optim.warmup_steps or not total:
        return []
    done = min(history.steps_done, total)
    start = 0 if done >= total else done
    scenarios = [cooldown_now(context, done), decay_to_zero(context, start)]
    scenarios += [extend(context, fraction, start) for fraction in EXTENSIONS]
    return [scenario for scenario in scenarios if scenario is not None]


def cooldown_now(context: RunContext, done: int) -> Scenario | None:
    """A decay to 0 over a tenth of the steps done, starting now; None if the learning rate is low or warming up."""
    fractions = context.lr_fractions
    if done >= len(fractions) or done <= context.optim.warmup_steps or fractions[done - 1] <= LOW_LR:
        return None
    length = max(1, math.ceil(COOLDOWN_FRACTION * done))
    current_lr = float(f"{fractions[done - 1] * context.optim.learning_rate:.3g}")
    optim = _change_optim(context, schedule="wsd", learning_rate=current_lr, min_lr=0.0, decay_steps=length)
    if optim is None:
        return None
    description = f"cool down now: the learning rate decays to 0 in {length:,} steps"
    return Scenario(description, "annealed", done + length, optim, done, trainable_from_scratch=False)


def decay_to_zero(context: RunContext, start: int) -> Scenario | None:
    """The same length with a decay to 0; None if the learning rate decays that far already."""
    total = len(context.lr_fractions)
    if context.lr_fractions[-1] <= LOW_LR:
        return None
    if context.optim.schedule == "constant":
        length = max(1, min(total // 5, total - max(start, context.optim.warmup_steps)))
        optim = _change_optim(context, schedule="wsd", min_lr=0.0, decay_steps=length)
    else:
        optim = _change_optim(context, min_lr=0.0, decay_steps=_wsd_decay_steps(context))
    if optim is None:
        return None
    return Scenario("the same length, with a learning rate that decays to 0", "to-zero", total, optim, start)


def extend(context: RunContext, fraction: float, start: int) -> Scenario | None:
    """A run that is longer by `fraction`, whose schedule ends as much later."""
    total = len(context.lr_fractions)
    added = round(fraction * total)
    optim = _change_optim(context, decay_steps=_wsd_decay_steps(context))
    if optim is None:
        return None
    description = f"{added:,} steps more, with a slower decay of the learning rate"
    return Scenario(description, f"{total + added}-steps", total + added, optim, start)


def _wsd_decay_steps(context: RunContext) -> int | None:
    """WSD counts the steps of its decay; the other schedules then end with the run."""
    return context.optim.decay_steps if context.optim.schedule == "wsd" else None


def _change_optim(context: RunContext, **changes: Any) -> Optim | None:
    try:
        return replace(context.optim, **changes)
    except ConfigError:
        return None


def cooldown(lr_fractions: Floats, done: int, steps: int | None = None, final: float = 0.0) -> Floats:
    """`lr_fractions` for `done` steps, then a linear decay to `final` over `steps` (None: a tenth of those done)."""
    done = min(max(done, 0), len(lr_fractions))
    length = steps or max(1, math.ceil(COOLDOWN_FRACTION * done))
    start = float(lr_fractions[done - 1]) if done else 1.0
    decay = start + (final - start) * np.arange(1, length + 1) / length
    return np.concatenate((lr_fractions[:done], np.maximum(decay, 0.0)))
