"""A verdict and what it rests on: conditions in three values, and advice that can be run."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Status = Literal["supported", "not supported", "cannot tell"]

IDS = (
    "overfitting",
    "severe-overfitting",
    "repetition-risk",
    "lr-too-high",
    "capacity-limited",
    "data-limited",
    "missing-regularisation",
    "needless-regularisation",
    "noise-not-plateau",
    "not-annealed",
    "recipe-or-bug",
    "divergence",
    "loss-spikes",
    "resume-seam",
    "throughput",
    "pace",
)


class Condition(NamedTuple):
    """One necessary condition: what it asks, what was found, and whether it holds (None: not measured).

    `lines` are numbers of the log's lines behind it; `missing` says what to measure or to give where `holds` is None.
    """

    asks: str
    found: str
    holds: bool | None
    lines: tuple[int, ...] = ()
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Something to do: in words, as a command, and what it is expected to gain in nats (80 % interval)."""

    what: str
    command: str = ""
    gain: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One possible cause: supported if all conditions hold, not supported if one is refuted, else cannot tell."""

    id: str
    conditions: tuple[Condition, ...]
    advice: tuple[Advice, ...] = ()
    weight: float = 0.0  # how much of the matter it explains, in nats where that is known: the order of the supported

    @property
    def status(self) -> Status:
        held = [condition.holds for condition in self.conditions]
        if False in held:
            return "not supported"
        return "supported" if held and None not in held else "cannot tell"
