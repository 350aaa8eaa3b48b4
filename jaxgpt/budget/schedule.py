"""The learning rate of an update without JAX: `optim.schedule`, written out with plain numbers for planning."""

import math

from jaxgpt.config import Optim


def learning_rate(settings: Optim, steps: int, update: int) -> float:
    """The rate of update 0, 1, … of a run of `steps`: linear warmup, then the decay that the settings name."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if update < warmup:
        return peak * (update + 1) / (warmup + 1)
    done = update - warmup
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "wsd":
        fall = settings.decay_steps or max(steps // 5, 1)
        hold = max(steps - fall - warmup, 0)
        return _line(peak, settings.min_lr, done - hold, max(steps - warmup - hold, 1))
    length = max((settings.decay_steps or steps) - warmup, 1)
    if settings.schedule == "linear":
        return _line(peak, settings.min_lr, done, length)
    through = min(done / length, 1.0)
    return settings.min_lr + (peak - settings.min_lr) * (1 + math.cos(math.pi * through)) / 2


def end_share(settings: Optim, steps: int) -> float:
    """The last update's learning rate as a share of the peak."""
    if not settings.learning_rate:
        return 1.0
    return learning_rate(settings, steps, max(steps - 1, 0)) / settings.learning_rate


def _line(start: float, end: float, done: int, length: int) -> float:
    return start + (end - start) * min(max(done / length, 0.0), 1.0)
