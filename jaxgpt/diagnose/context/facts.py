"""The one precedence of sources: an option wins over the log, the log over `--config`, and that over an assumption."""

from collections.abc import Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from jaxgpt.diagnose.options import MAX_STEPS

T = TypeVar("T")
Source = Literal["option", "run config", "log", "logged rates", "config", "assumption"]
# The run config is the one that a jaxgpt run has logged; the config is the one that `--config` names.
PRECEDENCE: tuple[Source, ...] = ("option", "run config", "log", "logged rates", "config", "assumption")
LOG_SOURCES: tuple[Source, ...] = ("run config", "log", "logged rates")  # those that the log contains
MAX_NUMBER = 1e18


class Fact(NamedTuple, Generic[T]):
    """A fact of the run and its source. `note` tells the user of an assumption, and the option that replaces it."""

    value: T | None = None
    source: Source | None = None  # None: unknown
    note: str = ""

    @property
    def known(self) -> T:
        """The value of a fact that always has one."""
        assert self.value is not None
        return self.value


def resolve(candidates: Mapping[Source, T | None], notes: Mapping[Source, str] | None = None) -> Fact[T]:
    """The value of the first source in `PRECEDENCE` that has one, with the note of that source."""
    for source in PRECEDENCE:
        value = candidates.get(source)
        if value is not None:
            return Fact(value, source, (notes or {}).get(source, ""))
    return Fact()


def nonnegative(value: Any) -> float | None:
    """A logged hyperparameter if it is a finite number from 0 on, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < MAX_NUMBER else None


def step_count(value: Any) -> int | None:
    """A logged hyperparameter if it can be a number of steps, else None."""
    number = nonnegative(value)
    return int(number) if number is not None and number <= MAX_STEPS else None
