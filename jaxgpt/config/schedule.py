"""The learning rate of an update without JAX: `optim.schedule`, written out with plain numbers for planning."""

import math

import numpy as np
from numpy.typing import NDArray

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


def learning_rates(settings: Optim, steps: int) -> NDArray[np.float64]:
    """`learning_rate` of each update of a run of `steps`, at once."""
    updates = np.arange(steps, dtype=np.float64)
    peak, warmup, low = settings.learning_rate, settings.warmup_steps, settings.min_lr
    done = updates - warmup
    if settings.schedule == "constant":
        rates = np.full(steps, peak)
    elif settings.schedule == "wsd":
        hold = max(steps - (settings.decay_steps or max(steps // 5, 1)) - warmup, 0)
        rates = peak + (low - peak) * np.clip((done - hold) / max(steps - warmup - hold, 1), 0.0, 1.0)
    else:
        through = np.clip(done / max((settings.decay_steps or steps) - warmup, 1), 0.0, 1.0)
        linear = settings.schedule == "linear"
        rates = peak + (low - peak) * (through if linear else (1 - np.cos(np.pi * through)) / 2)
    return np.where(updates < warmup, peak * (updates + 1) / (warmup + 1), rates)


def end_share(settings: Optim, steps: int) -> float:
    """The last update's learning rate as a share of the peak."""
    if not settings.learning_rate:
        return 1.0
    return learning_rate(settings, steps, max(steps - 1, 0)) / settings.learning_rate


def _line(start: float, end: float, done: int, length: int) -> float:
    return start + (end - start) * min(max(done / length, 0.0), 1.0)
