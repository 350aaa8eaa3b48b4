"""How a run may end whose learning rate is constant so far and whose schedule nothing states."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Fractions of the run that a linear decay to 0 takes at its end (0: none), with their probability before the run.
DECAYS = ((0.0, 0.30), (0.05, 0.05), (0.1, 0.15), (0.2, 0.25), (0.3, 0.10), (0.4, 0.15))


class Ending(NamedTuple):
    """A possible course of the learning rate over its peak, step by step, and its probability."""

    probability: float
    lr_fractions: NDArray[np.float64]


def possible_endings(lr_fractions: NDArray[np.float64], steps_done: int) -> tuple[Ending, ...]:
    """The constant rate, and the decays that have not begun after `steps_done` steps; the probabilities sum to 1."""
    total = len(lr_fractions)
    endings = []
    for fraction, probability in DECAYS:
        start = total - round(fraction * total)
        if start >= steps_done:
            remaining = np.minimum((total - np.arange(total)) / max(total - start, 1), 1.0)
            endings.append(Ending(probability, lr_fractions * remaining if start < total else lr_fractions))
    certain = sum(ending.probability for ending in endings)
    return tuple(ending._replace(probability=ending.probability / certain) for ending in endings)
