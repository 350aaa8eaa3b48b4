"""TensorBoard's event files: the scalars of one step become a line of JSON, which is read by its keys.

Step N is the step after N others. Hugging Face's Trainer counts the steps done, and Lightning's validation at N follows
step N; both are recognized by the tags of their epoch.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxgpt.logs.collector import Collector
from jaxgpt.logs.event_files import DamagedError, read_scalars
from jaxgpt.logs.formats import jsonlines
from jaxgpt.logs.history import LogTraits

NAME = "tensorboard"
TRAITS = LogTraits()
FILES = "*tfevents*"
TOGETHER = 0.5  # seconds: scalars of a step that are written within it belong to one line
MAX_LINES = 1_000_000
# The tags of an epoch: the number of the first step, and the steps done at an evaluation of step 0.
EPOCHS = {'"train/epoch"': (1, 0), '"epoch"': (0, 1)}


def event_lines(files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """The lines of the event files of one run, in their order, and a sentence on each that is damaged."""
    lines: list[str] = []
    problems = []
    for path in files:
        try:
            for line in _lines(path):
                if len(lines) < MAX_LINES:
                    lines.append(line)
        except DamagedError as error:
            problems.append(f"{path.name} {error}")
    if len(lines) == MAX_LINES:
        problems.append(f"only the first {MAX_LINES:,} rows were read")
    return lines, problems


def _lines(path: Path) -> Iterator[str]:
    row: dict[str, Any] = {}
    for scalar in read_scalars(path):
        if scalar is None:
            yield '{"unreadable": '
            continue
        is_same = row.get("step") == scalar.step and abs(scalar.time - row["wall_time"]) < TOGETHER
        if row and (scalar.tag in row or not is_same):
            yield json.dumps(row)
            row = {}
        if not row:
            row = {"step": scalar.step, "wall_time": scalar.time}
        row[scalar.tag] = scalar.value
    if row:
        yield json.dumps(row)


class Reader(jsonlines.Reader):
    """Reads the lines of `event_lines` into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._unit_is_known = False

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if not self._unit_is_known:
            unit = next((unit for tag, unit in EPOCHS.items() if tag in text), None)
            self._unit_is_known = unit is not None
            self._first, self._evaluated_after = unit or (0, 0)
        super().line(line_no, text)
