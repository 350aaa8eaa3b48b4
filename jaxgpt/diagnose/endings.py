"""Other ends of a run: the learning rates of every update, those done included, as shares of the peak."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ANNEAL_SHARE = 0.1  # of the steps done: how long an anneal takes (a tenth is what WSD runs are known to do with)


def annealed(rates: Floats, done: int, over: int | None = None, end: float = 0.0) -> Floats:
    """As `rates` for `done` updates, then linearly from where they stand to `end` over `over` updates."""
    done = min(max(done, 0), len(rates))
    length = over or max(1, math.ceil(ANNEAL_SHARE * done))
    start = float(rates[done - 1]) if done else 1.0
    fall = start + (end - start) * np.arange(1, length + 1) / length
    return np.concatenate((rates[:done], np.maximum(fall, 0.0)))
