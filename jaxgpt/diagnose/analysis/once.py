"""Computes what several checks need once per run."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from jaxgpt.diagnose.analysis.run import RunAnalysis

T = TypeVar("T")


def once_per_run(function: Callable[[RunAnalysis], T]) -> Callable[[RunAnalysis], T]:
    """`function` with its result kept as long as the run, which does not change."""
    name = f"{function.__module__}.{function.__qualname__}"

    @wraps(function)
    def kept(run: RunAnalysis) -> T:
        values = vars(run)  # as `cached_property` does
        if name not in values:
            values[name] = function(run)
        result: T = values[name]
        return result

    return kept
