"""Recorded loss curves, read as a user's CSV with the options that describe the run; for `bench/forecast.py`.

A folder has an `index.csv` with a row for each curve (id, n_total, total_steps, warmup, peak_lr and others, which may
be blank or absent) and `ID.csv` with the columns step or tokens, val_loss and perhaps a learning rate.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxgpt import logs
from jaxgpt.diagnose.context import RunContext, resolve_context
from jaxgpt.diagnose.forecast import run_forecast
from jaxgpt.diagnose.forecast.annealing import LossCurve
from jaxgpt.diagnose.forecast.schedule_integrals import ScheduleIntegral
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import History

Floats = NDArray[np.float64]
Row = Mapping[str, str]

BATCH = 524_288  # tokens per step where the index has none: that of the kernel
MANY_EPOCHS = 13.0
SMOOTHED = 0.05  # of the run: the evaluations at its end that the smoothed end is the line through
MIN_SMOOTHED = 4  # evaluations, at least
TRACKS = {"mn_t1": "modded-nanogpt", "mn_t2": "modded-track2", "mn_t3": "modded-track3"}  # families by id
# The weight decay of the matrices, for indexes without that column: of a curve, else of its family.
WEIGHT_DECAYS = {
    "t3_muon_3600": 0.01,
    "t3_spectral_8500": 0.015,
    "llm.c": 0.1,
    "mpl": 0.1,
    "datablations": 0.1,
    "modded-nanogpt": 0.0,
}


@dataclass(frozen=True, eq=False)
class Recorded:
    """A complete run: its table, and the options with which a user describes it."""

    name: str
    family: str
    kind: str  # cosine, wsd, decayed (optimizers with weight decay), constant, step, ≥ 14 epochs, spiky
    lines: tuple[str, ...]  # of the table; the first is its header
    options: Options
    steps: NDArray[np.int64] = field(repr=False)  # of each line after the header

    @property
    def core(self) -> bool:
        """Whether the curve counts in the main tables."""
        return self.kind in ("cosine", "wsd", "decayed")

    @cached_property
    def total(self) -> int:
        assert self.options.total_steps is not None
        return self.options.total_steps

    def read(self, share: float, **changes: Any) -> tuple[History, RunContext]:
        """The log when the fraction `share` of the run is done, with its context under changed options."""
        kept = [line for line, step in zip(self.lines[1:], self.steps) if step <= share * self.total]
        text = "\n".join((self.lines[0], *kept)) + "\n"
        options = Options(**(vars(self.options) | changes))
        history = logs.read_text(text, self.name)
        return history, resolve_context(history, options)

    def seen(self, share: float) -> LossCurve:
        """The curve as it is known when the fraction `share` of the run is done."""
        return run_forecast.loss_curve(*self.read(share))

    @cached_property
    def complete(self) -> LossCurve:
        return self.seen(1.0)

    @property
    def last(self) -> float:
        """The last validation loss."""
        return float(self.complete.losses[-1])

    @cached_property
    def smoothed_last(self) -> float:
        """The end of the line through the last evaluations; the last loss where these are few."""
        steps, losses = self.complete.steps, self.complete.losses
        late = steps >= steps[-1] - SMOOTHED * self.total
        if np.count_nonzero(late) < MIN_SMOOTHED:
            return self.last
        line = np.polyfit(steps[late] - steps[-1], losses[late], 1)
        return float(line[1])

    @cached_property
    def course(self) -> ScheduleIntegral:
        rates = self.complete.lr_fractions.round(9)  # a constant rate has no decrements
        return ScheduleIntegral.from_lr_fractions(rates, self.complete.warmup)


def read(folder: Path) -> list[Recorded]:
    """Every curve of every `index.csv` at or below `folder`, in the index's order."""
    curves = []
    for index in sorted(folder.rglob("index.csv")):
        with index.open(encoding="utf-8", newline="") as file:
            curves += [_recorded(row, index.parent) for row in csv.DictReader(file)]
    return curves


def _recorded(row: Row, folder: Path) -> Recorded:
    lines = (folder / f"{row['id']}.csv").read_text(encoding="utf-8").splitlines()
    batch = _number(row.get("batch_tokens"), BATCH)
    positions = [
        float(point["step"]) if point["step"] else float(point["tokens"]) / batch for point in csv.DictReader(lines)
    ]
    steps = np.round(positions).astype(np.int64)
    total = round(_number(row.get("total_steps"), _number(row.get("total_tokens"), 0) / batch))
    options = _options(row, max(total, int(steps[-1])), batch)
    return Recorded(row["id"], _family(row), _kind(row, options), tuple(lines), options, steps)


def _options(row: Row, total: int, batch: float) -> Options:
    """What a user states of the run."""
    epochs = _epochs(row)
    known: dict[str, Any] = {
        "total_steps": total,
        "batch_tokens": batch,
        "params": _number(row.get("n_total"), 0.0) or None,
        "unique_tokens": batch * total / epochs if epochs > 1 else None,
        "corpus": _corpus(row),
        "weight_decay": _weight_decay(row),
        "optimizer": _optimizer(row),
        "peak_lr": _number(row.get("peak_lr"), 0.0) or None,
        "warmup": _warmup(row.get("warmup", ""), total),
    }
    return Options(**(known | _schedule(row, total, known["peak_lr"] or 1.0)))


def _schedule(row: Row, total: int, peak: float) -> dict[str, Any]:
    """The options of the schedule; a drop in one step and an exponential decay have none."""
    words = row.get("type", "").lower()
    end = _final_fraction(row, peak) * peak
    if words.startswith("cosine"):
        return {"schedule": "cosine", "min_lr": end}
    if words.startswith("constant"):
        return {"schedule": "constant"}
    if words.startswith("step drop"):
        return {}
    decay = round(_number(row.get("decay_steps"), 0.0)) or round(total - _decay_start(words, total))
    return {"schedule": "wsd", "decay_steps": decay, "min_lr": end}


def _family(row: Row) -> str:
    """The source of the curve: one for models of several sizes."""
    return TRACKS.get(row["id"][:5]) or re.sub(r"-[\d.]+[MB]$", "", row["family"])


def _kind(row: Row, options: Options) -> str:
    quality = row.get("quality", "")
    if "spik" in quality or "diverg" in quality:
        return "spiky"
    if _epochs(row) >= MANY_EPOCHS:
        return "≥ 14 epochs"
    words = row.get("type", "").lower()
    for kind in ("constant", "step", "cosine"):
        if words.startswith(kind):
            return kind
    return "decayed" if "weight_decay" in row and options.weight_decay else "wsd"


def _corpus(row: Row) -> str:
    words = (row.get("dataset") or row.get("source", "")).lower()
    if "modded-nanogpt" in words or words.startswith("fineweb"):
        return "fineweb"
    return "c4" if words.startswith("c4") else "unknown"


def _weight_decay(row: Row) -> float | None:
    if row.get("weight_decay"):
        return float(row["weight_decay"])
    return WEIGHT_DECAYS.get(row["id"], WEIGHT_DECAYS.get(_family(row)))


def _optimizer(row: Row) -> str:
    """The optimizer that the model's description names; modded-nanogpt's is Muon unless it says otherwise."""
    words = row.get("model", "muon").lower()
    names = {"muon": "muon", "soap": "soap", "shampoo": "shampoo", "spectral": "other"}
    return next((name for word, name in names.items() if word in words), "adamw")


def _epochs(row: Row) -> float:
    text = row.get("epochs", "").strip()
    return 1.0 if text.startswith("<") else _number(text, 1.0)


def _number(text: str | None, default: float) -> float:
    """The number that the text begins with (`2e-4 (assumed)`)."""
    match = re.match(r"\s*([\d.]+(?:e[+-]?\d+)?)", text or "")
    return float(match[1]) if match else default


def _warmup(text: str, total: int) -> int:
    value = _number(text, 0.0)
    return round(value / 100 * total) if "%" in text else round(value)


def _final_fraction(row: Row, peak: float) -> float:
    """The final learning rate over the peak: `x0.1` is a fraction, anything else a learning rate."""
    stated = re.search(r"to ([\d.]+)\s*%", row.get("type", ""))
    if stated:
        return float(stated[1]) / 100
    text = row.get("end_lr", "").strip()
    return _number(text[1:], 0.0) if text.startswith("x") else _number(text, 0.0) / peak


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
