"""A finding and what it rests on: conditions in three values, and advice that can be run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Status = Literal["confirmed", "ruled out", "unknown"]

IDS = (
    "overfitting",
    "severe-overfitting",
    "repetition-risk",
    "lr-too-high",
    "capacity-limited",
    "data-limited",
    "missing-regularization",
    "unneeded-dropout",
    "noise-not-plateau",
    "not-annealed",
    "recipe-or-bug",
    "divergence",
    "loss-spikes",
    "data-reused-after-resume",
    "throughput",
    "input-or-overhead-bound",
)


class Condition(NamedTuple):
    """One necessary condition: its question, the evidence, and the result (None: not measured).

    `lines` are numbers of the log's lines behind it; `missing` says what to measure or to give where `result` is None.
    """

    question: str
    evidence: str
    result: bool | None
    lines: tuple[int, ...] = ()
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Something to do: in words, as a command, and what it is expected to gain in nats (80 % interval)."""

    what: str
    command: str = ""
    gain: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One possible cause: supported if all conditions hold, not supported if one is refuted, else cannot tell."""

    id: str
    conditions: tuple[Condition, ...]
    recommendations: tuple[Recommendation, ...] = ()
    weight: float = 0.0  # how much of the matter it explains, in nats where that is known: the order of the supported

    @property
    def status(self) -> Status:
        held = [condition.result for condition in self.conditions]
        if False in held:
            return "ruled out"
        return "confirmed" if held and None not in held else "unknown"


def any_of(question: str, signs: Sequence[Condition]) -> Condition:
    """One condition that holds as soon as one of `signs` does, and is refuted when all are."""
    held = [sign.result for sign in signs]
    holds = True if True in held else None if None in held else False
    told = [sign for sign in signs if sign.result is holds] if holds is not None else list(signs)
    missing = "; ".join(dict.fromkeys(sign.missing for sign in signs if sign.missing)) if holds is None else ""
    lines = tuple(dict.fromkeys(line for sign in told for line in sign.lines))
    return Condition(question, "; ".join(sign.evidence for sign in told if sign.evidence), holds, lines, missing)


def unknown(question: str, missing: str, found: str = "not measured") -> Condition:
    return Condition(question, found, None, (), missing)
