"""Other ends of a run, and the loss that the law expects there."""

from typing import NamedTuple

import numpy as np

from jaxgpt.diagnose import endings
from jaxgpt.diagnose.annealing import Posterior
from jaxgpt.diagnose.endings import Floats
from jaxgpt.diagnose.mixture import Forecast
from jaxgpt.diagnose.setting import Setting
from jaxgpt.logs.history import History

LONGER = (0.25, 0.5, 1.0)  # of the run's length
LOW = 0.02  # of the peak: a rate that is as good as none


class WhatIf(NamedTuple):
    """Another end of the run: in words, its length, and the loss it would have there."""

    what: str
    steps: int
    forecast: Forecast


def what_ifs(history: History, setting: Setting, posterior: Posterior) -> tuple[WhatIf, ...]:
    """Stopping now with the rate brought down, ending with a lower rate, and going on for longer.

    Of a run that is over: what it would have become if it had been planned so.
    """
    rates, done = setting.rates, min(history.done, len(setting.rates))
    over, warm = done >= len(rates), min(setting.optim.warmup_steps, len(rates) - 1)
    kept = warm if over else max(done, warm)
    found = []
    if not over and done and rates[done - 1] > LOW:
        ended = endings.annealed(rates, done)
        what = f"end now, the rate falling to 0 in {len(ended) - done:,} steps"
        found.append(WhatIf(what, len(ended), posterior.final(ended)))
    if rates[-1] > LOW and np.ptp(rates[kept:]) > LOW:
        found.append(WhatIf("the same end, the rate falling to 0", len(rates), posterior.final(lowered(rates, kept))))
    for share in LONGER:
        longer = stretched(rates, kept, round(share * len(rates)))
        what = f"{len(longer) - len(rates):,} steps more, the rate falling slower"
        found.append(WhatIf(what, len(longer), posterior.final(longer)))
    return tuple(found)


def lowered(rates: Floats, done: int) -> Floats:
    """As `rates` for `done` updates; what follows falls to 0 in the same shape."""
    ahead, end = rates[done:], float(rates[-1])
    top = float(ahead.max())
    fallen = np.where(ahead > end, (ahead - end) * top / max(top - end, 1e-12), 0.0)
    return np.concatenate((rates[:done], np.maximum(fallen, 0.0)))


def stretched(rates: Floats, done: int, more: int) -> Floats:
    """As `rates` for `done` updates; what follows takes `more` updates longer in the same shape."""
    ahead = rates[done:]
    places = np.linspace(0, len(ahead) - 1, len(ahead) + more)
    return np.concatenate((rates[:done], np.interp(places, np.arange(len(ahead)), ahead)))
