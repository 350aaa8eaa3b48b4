"""The schedules that a run may have where neither its log nor the options state one.

`possible_endings` are those of a learning rate that is logged and constant so far, `possible_schedules` those of a run
whose learning rate is not logged.
"""

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.config import Optim, schedule

ScheduleName = Literal["cosine", "linear", "constant", "wsd"]

# Fractions of the run that a linear decay to 0 takes at its end (0: none), with their probability before the run.
DECAYS = ((0.0, 0.30), (0.05, 0.05), (0.1, 0.15), (0.2, 0.25), (0.3, 0.10), (0.4, 0.15))
# Shapes with the fraction of the run that a linear decay takes or, of a cosine, its final over its peak learning rate.
SHAPES: dict[ScheduleName, tuple[tuple[float, float], ...]] = {
    "cosine": ((0.1, 0.6), (0.0, 0.4)),
    "linear": ((1.0, 1.0),),
    "wsd": ((0.1, 0.15), (0.2, 0.25), (0.3, 0.15), (0.45, 0.25), (0.6, 0.2)),
    "constant": ((0.0, 1.0),),
}
PROBABILITIES: dict[ScheduleName, float] = {"cosine": 0.4, "linear": 0.1, "wsd": 0.4, "constant": 0.1}
USUAL = 0.6  # probability of the schedule that is usual for the program that wrote the log


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


def possible_schedules(optim: Optim, total_steps: int, usual: ScheduleName | None) -> tuple[Ending, ...]:
    """A cosine, a linear decay, trapezoids and a constant rate; `usual` is the likeliest of them, if there is one.

    The warmup is that of `optim`; the probabilities sum to 1.
    """
    endings = []
    for name, shapes in SHAPES.items():
        share = PROBABILITIES[name]
        if usual is not None:
            share = (1 - USUAL) * share + (USUAL if name == usual else 0.0)
        for shape, probability in shapes:
            endings.append(Ending(share * probability, _fractions(optim, name, shape, total_steps)))
    return tuple(endings)


def _fractions(optim: Optim, name: ScheduleName, shape: float, total_steps: int) -> NDArray[np.float64]:
    """The learning rate over its peak of every step; `shape` as in `SHAPES`."""
    if name == "constant":
        planned = replace(optim, schedule=name, learning_rate=1.0, min_lr=1.0, decay_steps=None)
    elif name == "cosine":
        planned = replace(optim, schedule=name, learning_rate=1.0, min_lr=shape, decay_steps=None)
    else:
        decay = max(min(round(shape * total_steps), total_steps - optim.warmup_steps), 1)
        planned = replace(optim, schedule="wsd", learning_rate=1.0, min_lr=0.0, decay_steps=decay)
    return schedule.learning_rates(planned, total_steps)
