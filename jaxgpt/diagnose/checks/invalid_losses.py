"""Losses that no training yields: a loss of zero or less, and a validation loss that never changes."""

import math

import numpy as np
from numpy.typing import NDArray

from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.checks import stagnation
from jaxgpt.diagnose.finding import Condition, any_of
from jaxgpt.utils.formatting import format_loss

MIN_EQUAL = 10  # evaluations in a row with the same loss
EQUAL_SHARE = 0.5  # of the steps done, which they cover


def is_invalid(run: RunAnalysis) -> Condition:
    """Whether the losses show a fault of the measurement: there is nothing to forecast then."""
    return any_of("the losses are not those of a language model", (is_zero(run), is_constant(run)))


def is_zero(run: RunAnalysis) -> Condition:
    """Whether the last validation or training loss is zero or negative, as where the model sees its targets."""
    question = "the loss is zero or negative"
    for name, losses in (("validation", run.losses.val), ("training", run.losses.train)):
        if len(losses) and losses.values[-1] <= 0:
            since = _first_of_tail(losses.values <= 0)
            evidence = f"the {name} loss is {losses.values[-1]:g} since step {losses.steps[since]:,.0f}"
            return Condition(question, evidence, True, (int(losses.lines[since]),))
    return Condition(question, "", False)


def is_constant(run: RunAnalysis) -> Condition:
    """Whether the validation loss stays exactly the same, although the run learns, or has learned."""
    question = "the validation loss never changes"
    val = run.losses.val.between(1, math.inf)
    if len(val) < MIN_EQUAL or stagnation.learns_nothing(run).result:
        return Condition(question, "", False)
    since = _first_of_tail(val.values == val.values[-1])
    count = len(val) - since
    if count < MIN_EQUAL or val.steps[-1] - val.steps[since] < EQUAL_SHARE * run.steps_done:
        return Condition(question, "", False)
    evidence = f"the last {count:,} validation losses are all exactly {format_loss(float(val.values[-1]))}"
    return Condition(question, evidence, True, (int(val.lines[since]), int(val.lines[-1])))


def _first_of_tail(matches: NDArray[np.bool_]) -> int:
    """The first index from which on all of `matches` are true."""
    others = np.flatnonzero(~matches)
    return int(others[-1]) + 1 if len(others) else 0
