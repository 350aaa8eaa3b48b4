"""The result of a check: a line to read, and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """`problem`: a run fails, or does not use what its user expects; `warning`: it works, but slower or on less."""

    name: str
    status: Status
    text: str
    help: str = ""


def worst_status(findings: Sequence[Finding]) -> Status:
    """The most serious status among the findings, `ok` without findings."""
    order: tuple[Status, ...] = ("ok", "warning", "problem")
    return max((finding.status for finding in findings), key=order.index, default="ok")
