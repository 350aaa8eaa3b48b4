"""Other ends of a run, the loss that the law expects there, and the command that trains it.

Each is a change of the schedule, and forecast and command both come from that change.
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
from jaxgpt.diagnose.suggested_commands import JAXGPT, train_command
from jaxgpt.errors import ConfigError
from jaxgpt.logs.history import History

Floats = NDArray[np.float64]

COOLDOWN_FRACTION = 0.1  # of the steps done: how long an anneal takes (a tenth is what WSD runs are known to do with)
LONGER = (0.25, 0.5, 1.0)  # of the run's length
LOW = 0.02  # of the peak: a rate that is as good as none


class ScenarioForecast(NamedTuple):
    """Another end of the run: in words, its length, the loss it would have there, and how to train it."""

    what: str
    steps: int
    forecast: Forecast
    command: str = ""


class Scenario(NamedTuple):
    """A change of the optimizer's settings from update `done` on, for a run of `steps`."""

    what: str
    name: str  # of the new run
    steps: int
    optim: Optim
    done: int
    trainable_from_scratch: bool = True  # whether a run from the start can be trained like that as well

    def lr_fractions(self, context: RunContext) -> Floats:
        """Of every update, over the peak of the run that is changed."""
        planned = schedule.learning_rates(self.optim, self.steps) / (context.optim.learning_rate or 1.0)
        return np.concatenate((context.lr_fractions[: self.done], planned[self.done :]))

    def changes(self, context: RunContext) -> dict[str, dict[str, Any]]:
        """As the sections of a config."""
        names = ("learning_rate", "min_lr", "schedule", "warmup_steps", "decay_steps")
        changed = {name: getattr(self.optim, name) for name in names}
        kept = {name: value for name, value in changed.items() if value != getattr(context.optim, name)}
        return {"optim": kept, "run": {"steps": self.steps}}


def forecast_scenarios(history: History, context: RunContext, posterior: Posterior) -> tuple[ScenarioForecast, ...]:
    """Stopping now with the rate brought down, ending with a lower rate, and going on for longer.

    Of a run that is over: what it would have become if it had been planned so.
    """
    return tuple(
        forecast_scenario(history, context, posterior, ending) for ending in possible_scenarios(history, context)
    )


def forecast_scenario(
    history: History, context: RunContext, posterior: Posterior, ending: Scenario
) -> ScenarioForecast:
    """An ending with its forecast and its command."""
    forecast = posterior.final_loss(ending.lr_fractions(context))
    return ScenarioForecast(ending.what, ending.steps, forecast, scenario_command(history, context, ending))


def scenario_command(history: History, context: RunContext, ending: Scenario) -> str:
    """How to train an ending; empty where only a run of ours could go on like that."""
    if not ending.trainable_from_scratch and history.format != JAXGPT:
        return ""
    return train_command(history, context, ending.changes(context), name=ending.name, checkpoint="latest")


def possible_scenarios(history: History, context: RunContext) -> list[Scenario]:
    """The other ends that this run could have."""
    total, done = len(context.lr_fractions), min(history.steps_done, len(context.lr_fractions))
    if total <= context.optim.warmup_steps or not total:
        return []
    over = done >= total
    found = [cooldown_now(context, done), decay_to_zero(context, 0 if over else done)]
    found += [extend(context, share, 0 if over else done) for share in LONGER]
    return [ending for ending in found if ending is not None]


def cooldown_now(context: RunContext, done: int) -> Scenario | None:
    """From here the rate falls to 0 over a tenth of the steps done; None where it is low, or the warmup goes on."""
    if done >= len(context.lr_fractions) or done <= context.optim.warmup_steps or context.lr_fractions[done - 1] <= LOW:
        return None
    fall = max(1, math.ceil(COOLDOWN_FRACTION * done))
    rate = float(f"{context.lr_fractions[done - 1] * context.optim.learning_rate:.3g}")
    changed = _optim(context, schedule="wsd", learning_rate=rate, min_lr=0.0, decay_steps=fall)
    what = f"end now, the rate falling to 0 in {fall:,} steps"
    return (
        None
        if changed is None
        else Scenario(what, "annealed", done + fall, changed, done, trainable_from_scratch=False)
    )


def decay_to_zero(context: RunContext, done: int) -> Scenario | None:
    """The same length, the rate falling to 0 at its end; None where it does."""
    total, optim = len(context.lr_fractions), context.optim
    if context.lr_fractions[-1] <= LOW:
        return None
    if optim.schedule == "constant":
        fall = max(1, min(total // 5, total - max(done, optim.warmup_steps)))
        changed = _optim(context, schedule="wsd", min_lr=0.0, decay_steps=fall)
    else:
        changed = _optim(context, min_lr=0.0, decay_steps=None if optim.schedule != "wsd" else optim.decay_steps)
    return None if changed is None else Scenario("the same end, the rate falling to 0", "to-zero", total, changed, done)


def extend(context: RunContext, share: float, done: int) -> Scenario | None:
    """`share` more steps, the schedule's end moved along."""
    total = len(context.lr_fractions)
    more = round(share * total)
    changed = _optim(context, decay_steps=context.optim.decay_steps if context.optim.schedule == "wsd" else None)
    what = f"{more:,} steps more, the rate falling slower"
    return None if changed is None else Scenario(what, f"{total + more}-steps", total + more, changed, done)


def _optim(context: RunContext, **changes: Any) -> Optim | None:
    try:
        return replace(context.optim, **changes)
    except ConfigError:
        return None


def cooldown(rates: Floats, done: int, over: int | None = None, end: float = 0.0) -> Floats:
    """As `rates` for `done` updates, then linearly from where they stand to `end` over `over` updates."""
    done = min(max(done, 0), len(rates))
    length = over or max(1, math.ceil(COOLDOWN_FRACTION * done))
    start = float(rates[done - 1]) if done else 1.0
    fall = start + (end - start) * np.arange(1, length + 1) / length
    return np.concatenate((rates[:done], np.maximum(fall, 0.0)))
