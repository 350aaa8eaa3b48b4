"""Forecasts of a run that were put to the test, kept with it in `proofs.jsonl`: one JSON object per line.

A proof is a short anneal of its own from one of the run's checkpoints, whose final loss was forecast before it began.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxgpt.diagnose.mixture import Forecast
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import read

SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A forecast of the validation loss at the end of an anneal of `steps` updates from `step` on, and what it was."""

    run: str  # the name of the anneal's own run
    step: int
    steps: int
    forecast: Forecast
    observed: float
    time: float  # seconds since 1970

    @property
    def error(self) -> float:
        """Forecast less observed, in nats."""
        return self.forecast.mean - self.observed

    @property
    def inside80(self) -> bool:
        return self.forecast.low80 <= self.observed <= self.forecast.high80

    @property
    def inside95(self) -> bool:
        return self.forecast.low95 <= self.observed <= self.forecast.high95

    def __str__(self) -> str:
        held, where = self.forecast, "80 %" if self.inside80 else "95 %"
        inside = f"inside its {where} interval" if self.inside95 else "outside its 95 % interval"
        return (
            f"annealed from step {self.step:,} in {self.steps:,} steps: forecast {held.mean:.4f} "
            f"(80 %: {held.low80:.4f} to {held.high80:.4f}), "
            f"observed {self.observed:.4f}; error {self.error:+.4f} nats, {inside}"
        )


def add(folder: RunFolder, proof: Proof) -> None:
    """Appends the proof to the run's record."""
    with folder.proofs_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(document(proof)) + "\n")


def document(proof: Proof) -> dict[str, Any]:
    """The proof as plain JSON values."""
    judged = {"error": proof.error, "inside80": proof.inside80, "inside95": proof.inside95}
    return asdict(proof) | {"forecast": proof.forecast._asdict()} | judged


def of(folder: RunFolder) -> tuple[Proof, ...]:
    """The run's proofs in order; lines that are none are left out."""
    if not folder.proofs_file.is_file():
        return ()
    found = (_proof(record) for record in read(folder.proofs_file))
    return tuple(proof for proof in found if proof)


def _proof(record: dict[str, Any]) -> Proof | None:
    try:
        forecast = Forecast(**{name: float(record["forecast"][name]) for name in Forecast._fields})
        observed, step, steps = float(record["observed"]), int(record["step"]), int(record["steps"])
        made = Proof(
            run=str(record["run"]), step=step, steps=steps, forecast=forecast, observed=observed, time=record["time"]
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return made if math.isfinite(observed) and all(map(math.isfinite, forecast)) else None


def score(proofs: Sequence[Proof]) -> str:
    """How the forecasts of a run have done so far, in one sentence; "" where none was put to the test."""
    if not proofs:
        return ""
    count = len(proofs)
    inside80, inside95 = sum(proof.inside80 for proof in proofs), sum(proof.inside95 for proof in proofs)
    error = sum(abs(proof.error) for proof in proofs) / count
    return (
        f"forecasts of this run put to the test: {count}; inside the 80 % interval {inside80}, "
        f"inside the 95 % interval {inside95}, mean error {error:.4f} nats"
    )


def sentences(proofs: Sequence[Proof]) -> tuple[str, ...]:
    """The score and the last proofs, as a diagnosis shows them."""
    return (score(proofs), *map(str, proofs[-SHOWN:])) if proofs else ()


def beside(source: str) -> tuple[Proof, ...]:
    """The proofs of the run whose folder, name or log is at `source`; none where it is no run of ours."""
    for place in (Path(source), Path("runs") / source):
        folder = place if place.is_dir() else place.parent
        if RunFolder(folder).log_file.is_file() and (place.is_dir() or place == RunFolder(folder).log_file):
            return of(RunFolder(folder))
    return ()
