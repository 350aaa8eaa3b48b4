"""Other ends of a run, the loss that the law expects there, and the command that trains it.

Each is a change of the schedule, and forecast and command both come from that change.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.config import Optim, schedule
from jaxgpt.diagnose import suggested_commands
from jaxgpt.diagnose.annealing import Posterior
from jaxgpt.diagnose.endings import ANNEAL_SHARE, Floats
from jaxgpt.diagnose.mixture import Forecast
from jaxgpt.diagnose.setting import Setting
from jaxgpt.errors import ConfigError
from jaxgpt.logs.history import History

LONGER = (0.25, 0.5, 1.0)  # of the run's length
LOW = 0.02  # of the peak: a rate that is as good as none


class WhatIf(NamedTuple):
    """Another end of the run: in words, its length, the loss it would have there, and how to train it."""

    what: str
    steps: int
    forecast: Forecast
    command: str = ""


class Ending(NamedTuple):
    """A change of the optimizer's settings from update `done` on, for a run of `steps`."""

    what: str
    name: str  # of the new run
    steps: int
    optim: Optim
    done: int
    anew: bool = True  # whether a run from the start can be trained like that as well

    def rates(self, setting: Setting) -> Floats:
        """Of every update, over the peak of the run that is changed."""
        planned = schedule.learning_rates(self.optim, self.steps) / (setting.optim.learning_rate or 1.0)
        return np.concatenate((setting.rates[: self.done], planned[self.done :]))

    def changes(self, setting: Setting) -> dict[str, dict[str, Any]]:
        """As the sections of a config."""
        names = ("learning_rate", "min_lr", "schedule", "warmup_steps", "decay_steps")
        changed = {name: getattr(self.optim, name) for name in names}
        kept = {name: value for name, value in changed.items() if value != getattr(setting.optim, name)}
        return {"optim": kept, "run": {"steps": self.steps}}


def what_ifs(history: History, setting: Setting, posterior: Posterior) -> tuple[WhatIf, ...]:
    """Stopping now with the rate brought down, ending with a lower rate, and going on for longer.

    Of a run that is over: what it would have become if it had been planned so.
    """
    return tuple(tried(history, setting, posterior, ending) for ending in endings(history, setting))


def tried(history: History, setting: Setting, posterior: Posterior, ending: Ending) -> WhatIf:
    """An ending with its forecast and its command."""
    forecast = posterior.final(ending.rates(setting))
    return WhatIf(ending.what, ending.steps, forecast, command(history, setting, ending))


def command(history: History, setting: Setting, ending: Ending) -> str:
    """How to train an ending; empty where only a run of ours could go on like that."""
    if not ending.anew and history.format != suggested_commands.OWN:
        return ""
    return suggested_commands.train(history, setting, ending.changes(setting), name=ending.name, fork=True)


def endings(history: History, setting: Setting) -> list[Ending]:
    """The other ends that this run could have."""
    total, done = len(setting.rates), min(history.done, len(setting.rates))
    if total <= setting.optim.warmup_steps or not total:
        return []
    over = done >= total
    found = [stopped(setting, done), lowered(setting, 0 if over else done)]
    found += [longer(setting, share, 0 if over else done) for share in LONGER]
    return [ending for ending in found if ending is not None]


def stopped(setting: Setting, done: int) -> Ending | None:
    """From here the rate falls to 0 over a tenth of the steps done; None where it is low, or the warmup goes on."""
    if done >= len(setting.rates) or done <= setting.optim.warmup_steps or setting.rates[done - 1] <= LOW:
        return None
    fall = max(1, math.ceil(ANNEAL_SHARE * done))
    rate = float(f"{setting.rates[done - 1] * setting.optim.learning_rate:.3g}")
    changed = _optim(setting, schedule="wsd", learning_rate=rate, min_lr=0.0, decay_steps=fall)
    what = f"end now, the rate falling to 0 in {fall:,} steps"
    return None if changed is None else Ending(what, "annealed", done + fall, changed, done, anew=False)


def lowered(setting: Setting, done: int) -> Ending | None:
    """The same length, the rate falling to 0 at its end; None where it does."""
    total, optim = len(setting.rates), setting.optim
    if setting.rates[-1] <= LOW:
        return None
    if optim.schedule == "constant":
        fall = max(1, min(total // 5, total - max(done, optim.warmup_steps)))
        changed = _optim(setting, schedule="wsd", min_lr=0.0, decay_steps=fall)
    else:
        changed = _optim(setting, min_lr=0.0, decay_steps=None if optim.schedule != "wsd" else optim.decay_steps)
    return None if changed is None else Ending("the same end, the rate falling to 0", "to-zero", total, changed, done)


def longer(setting: Setting, share: float, done: int) -> Ending | None:
    """`share` more steps, the schedule's end moved along."""
    total = len(setting.rates)
    more = round(share * total)
    changed = _optim(setting, decay_steps=setting.optim.decay_steps if setting.optim.schedule == "wsd" else None)
    what = f"{more:,} steps more, the rate falling slower"
    return None if changed is None else Ending(what, f"{total + more}-steps", total + more, changed, done)


def _optim(setting: Setting, **changes: Any) -> Optim | None:
    try:
        return replace(setting.optim, **changes)
    except ConfigError:
        return None
