"""Results of lm-evaluation-harness on a run's model: a file of the run's folder `evaluations` for each evaluation."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.runs.folder import RunFolder
from jaxgpt.utils.files import read_json, write_text


class TaskResult(NamedTuple):
    """A metric of a task, with its standard error if the harness gives one. `limit` is the number of documents."""

    step: int
    task: str
    metric: str
    value: float
    error: float | None
    limit: int | None

    def __str__(self) -> str:
        margin = "" if self.error is None else f" ± {self.error:.4f}"
        return f"{self.value:.4f}{margin}"

    @property
    def documents(self) -> str:
        return "all documents" if self.limit is None else f"{self.limit:,} documents"


def task_metrics(values: Mapping[str, Any]) -> Iterator[TaskResult]:
    """The metrics in one file's `values`: its `step`, `limit` and the harness's `results` by task."""
    for task, metrics in values["results"].items():
        for name, value in metrics.items():
            metric, _, variant = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr,{variant}")
                known_error = error if isinstance(error, float) else None
                yield TaskResult(values["step"], task, metric, value, known_error, values["limit"])


def write_task_results(run: RunFolder, values: Mapping[str, Any]) -> Path:
    """Writes the `values` of one evaluation to a new file, whose path it returns."""
    folder = run.path / "evaluations"
    file = folder / f"step-{values['step']}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    folder.mkdir(exist_ok=True)
    write_text(file, json.dumps(values, indent=2, default=str) + "\n")
    return file


def read_task_results(run: RunFolder) -> list[TaskResult]:
    """The newest result of each step, task and metric, in the order of the steps; without files that are damaged."""
    newest: dict[tuple[int, str, str], TaskResult] = {}
    for file in sorted((run.path / "evaluations").glob("step-*.json"), key=lambda file: file.name[-20:]):
        try:
            results = list(task_metrics(read_json(file)))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue
        newest |= {(result.step, result.task, result.metric): result for result in results}
    return sorted(newest.values())
