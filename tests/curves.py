"""Real loss curves as a diagnosis sees them: the first part of a run, its setting, its forecast."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgpt.budget import schedule
from jaxgpt.budget.scaling import CORPORA
from jaxgpt.config import Optim
from jaxgpt.diagnose import diagnosis
from jaxgpt.diagnose.annealing import Posterior
from jaxgpt.diagnose.setting import Setting
from jaxgpt.logs.history import Evaluation, History

STEPS = 20_000  # of a curve whose file has tokens alone


@dataclass(frozen=True)
class Known:
    """A curve of the shared table with what is known of it."""

    name: str
    epochs: float
    ratio: float  # parameters over unique tokens
    spiky: bool
    history: History
    setting: Setting

    def until(self, share: float) -> "Known":
        """The run as it stood after that share of its steps."""
        last = share * self.setting.total_steps
        seen = tuple(e for e in self.history.evaluations if e.step <= last)
        history = History(source=self.name, format="csv", evaluations=seen)
        return Known(self.name, self.epochs, self.ratio, self.spiky, history, self.setting)


def posterior(history: History, setting: Setting) -> Posterior | None:
    """The annealing law fitted to what the history has shown; None where it cannot be."""
    return diagnosis.heading(history, setting)[0]


def read(folder: Path) -> list[Known]:
    """All curves of the table."""
    with (folder / "index.csv").open(newline="") as file:
        return [_known(folder, row) for row in csv.DictReader(file)]


def _known(folder: Path, row: dict[str, str]) -> Known:
    with (folder / f"{row['id']}.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    epochs = 0.5 if row["epochs"].startswith("<") else float(row["epochs"])
    tokens = float(row["total_tokens"]) if row["total_tokens"] else 0.0
    by_step = bool(points[-1]["step"])
    total = int(points[-1]["step"]) if by_step else STEPS
    size = float(row["n_total"])
    evaluations: dict[int, Evaluation] = {}
    for line, point in enumerate(points, 2):
        step = int(point["step"]) if by_step else round(float(point["tokens"]) / tokens * STEPS)
        train = float(point["train_loss_or_blank"]) if point["train_loss_or_blank"] else None
        evaluations.setdefault(step, Evaluation(step, float(point["val_loss"]), train, None, line))
    optim = _optim(row, total)
    rates = np.array([schedule.learning_rate(optim, total, i) for i in range(total)]) / optim.learning_rate
    setting = Setting(
        total_steps=total,
        optim=optim,
        rates=rates,
        corpus=CORPORA["c4" if row["dataset"].startswith("C4") else "fineweb"],
        tokens_per_step=(tokens or 5e5 * total) / total,
        fixed_eval=True,
        unique_tokens=(tokens or 5e5 * total) / epochs if epochs >= 1 else None,
        parameters=size,
        weight_decay=0.1,
        dropout=0.0,
    )
    history = History(source=row["id"], format="csv", evaluations=tuple(evaluations[s] for s in sorted(evaluations)))
    ratio = size / (tokens / epochs) if tokens else 0.0
    spiky = "spiky" in row["quality"]
    return Known(row["id"], epochs, ratio, spiky, history, setting)


def _optim(row: dict[str, str], total: int) -> Optim:
    kind, warmup = row["type"], row["warmup"]
    steps = int(warmup) if warmup.isdigit() else math.ceil(0.01 * total)
    end = 0.1 if "10%" in kind or row["end_lr"] == "x0.1" else 0.0
    if "cosine" in kind:
        return Optim(schedule="cosine", learning_rate=1e-3, min_lr=end * 1e-3, warmup_steps=steps)
    if kind == "constant":
        return Optim(schedule="constant", learning_rate=1e-3, warmup_steps=steps)
    return Optim(schedule="wsd", learning_rate=1e-3, min_lr=0.0, warmup_steps=steps, decay_steps=total // 3)
