"""The learning-rate schedule: its one definition, for the optimizer (under JAX), the planner and the forecast (numpy).

Nothing here loads JAX: the optimizer passes `jax.numpy` in.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxgpt.config.schema import Optim


def learning_rate(optim: Optim, total_steps: int, step: Any, xp: Any = np) -> Any:
    """The learning rate of step 0, 1, … of a run of `total_steps`: linear warmup, then the decay of `optim.schedule`.

    `step` is an int, which gives a float, or an array of `xp` (numpy or jax.numpy), which gives an array. Warmup and
    cosine are nanoGPT's: step i of the warmup has (i + 1) / (warmup + 1) of the peak, and the cosine reaches `min_lr`
    at `decay_steps`. The order of operations is that of optax's schedules, so that float32 results are bitwise theirs.
    """
    warmup = optim.warmup_steps
    rate = _decayed(optim, total_steps, step - warmup, xp)
    if warmup:
        rising = _line(optim.learning_rate / (warmup + 1), optim.learning_rate, step, warmup, xp)
        rate = xp.where(step < warmup, rising, rate)
    return float(rate) if isinstance(step, int) else rate


def learning_rates(optim: Optim, total_steps: int) -> NDArray[np.float64]:
    """The learning rate of each step of a run of `total_steps`."""
    return np.asarray(learning_rate(optim, total_steps, np.arange(total_steps)), np.float64)


def final_lr_fraction(optim: Optim, total_steps: int) -> float:
    """The last step's learning rate as a fraction of the peak."""
    if not optim.learning_rate:
        return 1.0
    return float(learning_rate(optim, total_steps, max(total_steps - 1, 0)) / optim.learning_rate)


def _decayed(optim: Optim, total_steps: int, step: Any, xp: Any) -> Any:
    """The learning rate at `step`, counted from the end of the warmup."""
    peak, low = optim.learning_rate, optim.min_lr
    available = total_steps - optim.warmup_steps
    if optim.schedule == "constant":
        return xp.full(xp.shape(step), peak)
    if optim.schedule == "wsd":
        decay = optim.decay_steps or max(total_steps // 5, 1)
        hold = max(available - decay, 0)
        return _line(peak, low, step - hold, max(available - hold, 1), xp)
    length = max((optim.decay_steps or total_steps) - optim.warmup_steps, 1)
    if optim.schedule == "linear":
        return _line(peak, low, step, length, xp)
    lowest = low / peak if peak else 0.0
    cosine = 0.5 * (1 + xp.cos(np.pi * xp.minimum(step, length) / length))
    return peak * ((1 - lowest) * cosine + lowest)


def _line(start: float, end: float, step: Any, length: int, xp: Any) -> Any:
    """From `start` at step 0 to `end` at step `length`, constant outside."""
    remaining = 1 - xp.clip(step, 0, length) / length
    return (start - end) * remaining + end
