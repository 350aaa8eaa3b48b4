"""Reads recorded loss curves and their schedules from a folder with an `index.csv`, for `bench/forecast.py`.

The index has a row for each curve: id, family, type, warmup, peak_lr, end_lr, total_steps, total_tokens, batch_tokens,
epochs, n_total, quality; `ID.csv` has step, tokens, lr_or_blank, val_loss, any of which may be blank in a row.
"""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget.scaling_law import repetition_cost
from jaxgpt.diagnose.forecast.annealing import LossCurve
from jaxgpt.diagnose.forecast.schedule_integrals import ScheduleIntegral

Floats = NDArray[np.float64]
Row = Mapping[str, str]

BATCH = 524_288  # tokens per step where the index has none: that of the kernel
MANY_EPOCHS = 13.0


@dataclass(frozen=True, eq=False)
class Recorded:
    """A complete run: its validation losses, its learning rates over the peak, and its row in the index."""

    name: str
    family: str
    kind: str  # cosine, wsd, constant, step, ≥ 14 epochs, spiky
    steps: NDArray[np.int64]
    losses: Floats
    lr_fractions: Floats
    warmup: int
    repetition: Floats | None

    @property
    def total(self) -> int:
        return len(self.lr_fractions)

    @property
    def last(self) -> float:
        return float(self.losses[-1])

    @property
    def core(self) -> bool:
        """Whether the curve counts in the main tables."""
        return self.kind in ("cosine", "wsd")

    @cached_property
    def course(self) -> ScheduleIntegral:
        return ScheduleIntegral.from_lr_fractions(self.lr_fractions, self.warmup)

    def seen(self, share: float) -> LossCurve:
        """The curve as it is known when the fraction `share` of the run is done."""
        kept = self.steps <= share * self.total
        return LossCurve(
            steps=self.steps[kept],
            losses=self.losses[kept],
            lr_fractions=self.lr_fractions,
            warmup=self.warmup,
            repetition=self.repetition,
        )


def read(folder: Path) -> list[Recorded]:
    """Every curve of every `index.csv` at or below `folder`, in the index's order."""
    curves = []
    for index in sorted(folder.rglob("index.csv")):
        with index.open(encoding="utf-8", newline="") as file:
            curves += [_recorded(row, index.parent) for row in csv.DictReader(file)]
    return curves


def _recorded(row: Row, folder: Path) -> Recorded:
    with (folder / f"{row['id']}.csv").open(encoding="utf-8", newline="") as file:
        points = [point for point in csv.DictReader(file) if point["val_loss"]]
    batch = _number(row["batch_tokens"], BATCH)
    positions = [_number(p["step"], math.nan) if p["step"] else float(p["tokens"]) / batch for p in points]
    steps = np.round(positions).astype(np.int64)
    kept = np.diff(steps, prepend=-1) > 0
    losses = np.array([float(p["val_loss"]) for p in points])
    given = np.array([_number(p["lr_or_blank"], math.nan) for p in points])
    total = max(int(_number(row["total_steps"], 0)), int(steps[-1]))
    warmup = _warmup(row["warmup"], total)
    return Recorded(
        name=row["id"],
        family=re.sub(r"-[\d.]+[MB]$", "", row["family"]),
        kind=_kind(row),
        steps=steps[kept],
        losses=losses[kept],
        lr_fractions=_lr_fractions(row, steps[kept], given[kept], total, warmup),
        warmup=warmup,
        repetition=_repetition(row, total),
    )


def _kind(row: Row) -> str:
    if "spik" in row["quality"] or "diverg" in row["quality"]:
        return "spiky"
    if _epochs(row) >= MANY_EPOCHS:
        return "≥ 14 epochs"
    for kind, words in (("constant", "constant"), ("step", "step drop"), ("cosine", "cosine")):
        if row["type"].lower().startswith(words):
            return kind
    return "wsd"


def _epochs(row: Row) -> float:
    return 1.0 if row["epochs"].strip().startswith("<") else _number(row["epochs"], 1.0)


def _number(text: str, default: float) -> float:
    """The number that the text begins with (`2e-4 (assumed)`)."""
    match = re.match(r"\s*([\d.]+(?:e[+-]?\d+)?)", text or "")
    return float(match[1]) if match else default


def _warmup(text: str, total: int) -> int:
    value = _number(text, 0.0)
    return round(value / 100 * total) if "%" in text else round(value)


def _repetition(row: Row, total: int) -> Floats | None:
    """The expected cost of repeated data after each step; None for a single epoch."""
    epochs, parameters = _epochs(row), _number(row["n_total"], 0.0)
    if epochs <= 1.0 or not parameters:
        return None
    tokens = _number(row["total_tokens"], total * BATCH)
    return np.array([repetition_cost(parameters, tokens * done / total, tokens / epochs) for done in range(total + 1)])


def _lr_fractions(row: Row, steps: NDArray[np.int64], given: Floats, total: int, warmup: int) -> Floats:
    """The learning rate of every step over the peak: as logged and interpolated, else by the schedule's type."""
    updates = np.arange(total)
    peak = _number(row["peak_lr"], float(np.nanmax(given)) if np.isfinite(given).any() else 1.0)
    known = np.isfinite(given) & (steps >= warmup)
    if np.count_nonzero(known) > 0.5 * len(steps) and "step drop" not in row["type"]:
        rates = np.interp(updates, steps[known], given[known] / peak, left=1.0)
    else:
        rates = _described(row["type"], total, warmup, _final_fraction(row, peak))
    rising = (updates + 1) / (warmup + 1)
    return np.where(updates < warmup, rising, np.clip(rates, 0.0, 1.0).round(9))


def _final_fraction(row: Row, peak: float) -> float:
    """The final learning rate over the peak: `x0.1` is a fraction, anything else a learning rate."""
    stated = re.search(r"to ([\d.]+)\s*%", row["type"])
    if stated:
        return float(stated[1]) / 100
    text = row["end_lr"].strip()
    return _number(text[1:], 0.0) if text.startswith("x") else _number(text, 0.0) / peak


def _described(words: str, total: int, warmup: int, end: float) -> Floats:
    """The learning rates of the schedule that the index describes in words."""
    updates = np.arange(total)
    if words.startswith("cosine"):
        progress = np.clip((updates - warmup) / max(total - warmup, 1), 0, 1)
        wave: Floats = end + (1 - end) * (1 + np.cos(np.pi * progress)) / 2
        return wave
    if words.startswith("constant"):
        return np.ones(total)
    progress = np.clip((updates - _decay_start(words, total)) / max(total - _decay_start(words, total), 1), 0, 1)
    if words.startswith("step drop"):
        return np.where(progress > 0, end, 1.0)
    decaying: Floats = end**progress if "exp" in words and end > 0 else 1 - (1 - end) * progress
    return decaying


def _decay_start(words: str, total: int) -> float:
    """The step at which the decay starts: `warmdown 1800`, `stable 30%`, `decay from 20000`, `at 8000`."""
    for pattern, start, scale in (
        (r"warmdown (\d+)", total, -1.0),
        (r"stable (\d+)\s*%", 0, total / 100),
        (r"(?:from|at) (\d+)", 0, 1.0),
    ):
        match = re.search(pattern, words)
        if match:
            return start + scale * float(match[1])
    return 0.8 * total
