"""What a check found: a line that a person reads, and what to do."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """`problem`: a run cannot train, or not as its user believes; `warning`: it can, but slower or on less."""

    name: str
    status: Status
    text: str
    help: str = ""

    def __str__(self) -> str:
        told = f"{self.name}: {self.text}"
        return f"{told} → {self.help}" if self.help else told


def worst(findings: list[Finding]) -> Status:
    """The gravest status among the findings; `ok` if there are none."""
    order: tuple[Status, ...] = ("ok", "warning", "problem")
    return max((finding.status for finding in findings), key=order.index, default="ok")
