"""Published runs to compare a plan with: `published_runs.csv`. `bench/refit.py` fits the scaling law to some of them.

Columns: corpus; parameters in millions (a tied matrix once, learned positions excluded); tokens trained on and, if some
were repeated, unique tokens, both in billions; final validation loss in nats per token; description; source.
"""

import csv
import math
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """A published run; `unique` is None where no token was repeated."""

    corpus: str
    parameters: float
    tokens: float
    unique: float | None
    loss: float
    description: str
    source: str


def _load_runs() -> tuple[PublishedRun, ...]:
    text = resources.files("jaxgpt.budget").joinpath("published_runs.csv").read_text(encoding="utf-8")
    runs = []
    for row in csv.DictReader(text.splitlines()):
        unique = row["unique_billions"]
        run = PublishedRun(
            corpus=row["corpus"],
            parameters=float(row["parameters_millions"]) * 1e6,
            tokens=float(row["tokens_billions"]) * 1e9,
            unique=float(unique) * 1e9 if unique else None,
            loss=float(row["loss"]),
            description=row["description"],
            source=row["source"],
        )
        runs.append(run)
    return tuple(runs)


PUBLISHED_RUNS = _load_runs()


def nearest_runs(parameters: float, tokens: float, corpus: str, count: int = 3) -> list[PublishedRun]:
    """The `count` runs nearest in the logarithms of size and tokens; another corpus counts as a factor of e^2."""

    def distance(run: PublishedRun) -> float:
        logarithmic = math.hypot(math.log(run.parameters / parameters), math.log(run.tokens / tokens))
        return logarithmic + (0.0 if corpus in (run.corpus, "unknown") else 2.0)

    nearest: dict[tuple[str, float, str], PublishedRun] = {}
    for run in sorted(PUBLISHED_RUNS, key=distance):
        recipe = run.description.split(" (")[0]
        nearest.setdefault((run.corpus, run.parameters, recipe), run)  # each recipe once
    return list(nearest.values())[:count]
