"""A finding of a check: a possible problem, the conditions it rests on, and what to do about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

Status = Literal["confirmed", "ruled out", "unknown"]


class Condition(NamedTuple):
    """One necessary condition of a finding.

    `question` is a statement, `evidence` the numbers for or against it, `result` whether it is true (None: unknown).
    `lines` are the numbers of the log's lines behind it; `missing` names what to measure or to pass if it is unknown.
    """

    question: str
    evidence: str
    result: bool | None
    lines: tuple[int, ...] = ()
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Something to do, the command that does it, and its expected gain in nats per token with an 80 % interval."""

    action: str
    command: str = ""
    gain: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A possible problem: confirmed if all conditions are true, ruled out if one is false, else unknown."""

    id: str
    conditions: tuple[Condition, ...]
    recommendations: tuple[Recommendation, ...] = ()
    cost: float | None = None  # of the problem, in nats per token, where it is known
    meaning: str = ""  # replaces the usual phrase for a confirmed finding of this id
    is_minor: bool = False  # comes after other findings without a known cost

    @property
    def status(self) -> Status:
        results = [condition.result for condition in self.conditions]
        if False in results:
            return "ruled out"
        return "confirmed" if results and None not in results else "unknown"


NOT_MEASURED = "not measured"


def unknown(question: str, missing: str, evidence: str = NOT_MEASURED) -> Condition:
    """A condition that could not be checked, because of what is `missing`."""
    return Condition(question, evidence, None, (), missing)


Value = TypeVar("Value")


def compare(
    question: str, value: Value | None, is_true: Callable[[Value], bool], evidence: str, missing: str
) -> Condition:
    """Whether a value meets a condition; unknown where it is None. `evidence` is a format string for the value.

    The condition rests on the lines of the value, if it has any, as an `Estimate` does.
    """
    if value is None:
        return unknown(question, missing)
    return Condition(question, evidence.format(value), is_true(value), getattr(value, "lines", ()))


def any_of(question: str, conditions: Sequence[Condition]) -> Condition:
    """One condition that is true as soon as one of `conditions` is, and false when all are false."""
    results = {condition.result for condition in conditions}
    result = next((value for value in (True, None, False) if value in results), False)
    deciding = [condition for condition in conditions if result is None or condition.result is result]
    missing = [condition.missing for condition in deciding if condition.result is None and condition.missing]
    evidence = [condition.evidence for condition in deciding if condition.evidence not in ("", NOT_MEASURED)]
    lines = tuple(dict.fromkeys(line for condition in deciding for line in condition.lines))
    unmeasured = NOT_MEASURED if result is None else ""
    return Condition(question, "; ".join(evidence) or unmeasured, result, lines, "; ".join(dict.fromkeys(missing)))
