"""Published loss curves as a diagnosis reads them: log and options, and the first part of a run."""

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgpt import logs
from jaxgpt.diagnose.context import RunContext, resolve_context
from jaxgpt.diagnose.forecast.annealing import Posterior
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import History

STEPS = 20_000  # of a curve whose table has tokens alone
BATCH = 524_288  # of one whose table has steps alone


@dataclass(frozen=True)
class Known:
    """A curve of the shared table with the facts in its row."""

    name: str
    epochs: float
    ratio: float  # parameters over unique tokens
    spiky: bool
    history: History
    context: RunContext

    def until(self, share: float) -> "Known":
        """The run after that share of its steps."""
        last = share * len(self.context.lr_fractions)
        steps = tuple(step for step in self.history.steps if step.step <= last)
        evaluations = tuple(e for e in self.history.evaluations if e.step <= last)
        return replace(self, history=replace(self.history, steps=steps, evaluations=evaluations))


def posterior(history: History, context: RunContext) -> Posterior | None:
    """The annealing loss model fitted to the history; None where it cannot be."""
    return forecast_run(history, context)[0]


def read(folder: Path) -> list[Known]:
    """All curves of the table."""
    with (folder / "index.csv").open(newline="") as file:
        return [_known(folder, row) for row in csv.DictReader(file)]


def _known(folder: Path, row: dict[str, str]) -> Known:
    path, size = folder / f"{row['id']}.csv", float(row["n_total"])
    epochs = 0.5 if row["epochs"].startswith("<") else float(row["epochs"])
    steps = int(row["total_steps"]) if row["total_steps"] else STEPS
    batch = float(row["total_tokens"]) / steps if row["total_tokens"] else float(BATCH)
    unique = batch * steps / epochs if epochs >= 1 else 10 * batch * steps
    history = logs.read(path, batch)
    corpus = next((name for name in ("c4", "fineweb") if row["dataset"].lower().startswith(name)), "unknown")
    known = Options(
        total_steps=max(steps, history.steps_done),
        batch_tokens=batch,
        unique_tokens=unique,
        params=size,
        corpus=corpus,
        weight_decay=0.1,
        dropout=0.0,
        **_schedule(row, steps),
    )
    spiky = "spiky" in row["quality"]
    return Known(row["id"], epochs, size / unique, spiky, history, resolve_context(history, known))


def _schedule(row: dict[str, str], total: int) -> dict[str, float | int | str]:
    """The options that describe the schedule in the table's columns."""
    kind, warmup, peak = row["type"], row["warmup"], float(row["peak_lr"].split()[0])
    options: dict[str, float | int | str] = {"warmup": int(warmup) if warmup.isdigit() else math.ceil(0.01 * total)}
    if kind.startswith("cosine"):
        tenth = "10%" in kind or row["end_lr"] == "x0.1"
        return options | {"schedule": "cosine", "peak_lr": peak, "min_lr": peak / 10 if tenth else 0.0}
    return options
