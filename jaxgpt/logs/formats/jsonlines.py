"""JSON lines with a step and a loss: the history of Weights & Biases, Levanter's and MaxText's, and those of others.

Nested keys are joined with slashes. The keys are interpreted by their names, and a note says which were read as what.
"""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from jaxgpt.logs.formats.table import LOSSES, has_step_and_loss
from jaxgpt.logs.history import LogTraits
from jaxgpt.logs.quantities import find_quantity
from jaxgpt.logs.reader import parse_multiple, parse_number
from jaxgpt.logs.rows import Row, RowReader, row_step

NAME = "jsonlines"
TRAITS = LogTraits()
MAX_DEPTH = 6  # of nested objects
MAX_KEYS = 2000  # of one line
EXPLICIT_METRICS = "metrics"  # the key below which Levanter nests the values


def matches(line: str) -> bool:
    """Whether the line is an object that has a step and a loss."""
    if "{" not in line or '"' not in line:
        return False
    return has_step_and_loss(name for name, value in _pairs(line) if value is not None)


def _pairs(line: str) -> list[tuple[str, Any]]:
    """The keys and values of the object in the line; empty if there is none."""
    start = line.find("{")
    if start < 0:
        return []
    try:
        record = json.loads(line[start:])
    except (ValueError, RecursionError):
        return []
    pairs = _flatten(record) if isinstance(record, dict) else iter(())
    return list(islice(pairs, MAX_KEYS))


def _flatten(record: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        is_wrapper = key == EXPLICIT_METRICS and isinstance(value, dict)
        name = prefix if is_wrapper else f"{prefix}/{key}".removeprefix("/")
        if isinstance(value, dict) and depth < MAX_DEPTH:
            yield from _flatten(value, name, depth + 1)
        elif not isinstance(value, dict):
            yield name, value


class Reader(RowReader):
    """Reads line by line into a `Collector`."""

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        pairs = _pairs(text)
        numbers = [(name, _number(value)) for name, value in pairs if _is_number(name, value)]
        row: Row = self._select(tuple(name for name, _ in numbers), [value for _, value in numbers])
        if self._add_row(line_no, row, row_step(row)):
            return
        if row.keys() & LOSSES or (not pairs and "{" in text):
            self._log.drop(line_no)
        elif self._log.empty:
            self._read_facts(pairs)

    def end(self) -> None:
        """Adds the facts of the run and says which keys were read."""
        super().end()
        self._note_names()


def _number(value: Any) -> float | None:
    return parse_multiple(value) if isinstance(value, str) else parse_number(value)


def _is_number(name: str, value: Any) -> bool:
    """Whether the value is a number, or a text that spells one under the name of a quantity."""
    if isinstance(value, str):
        return find_quantity(name) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)
