"""A file that is one JSON document: its longest list of records, or its longest table of columns, as JSON lines."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from jaxgpt.logs.lines import FileLines

MAX_DEPTH = 4  # of the records in the document
MIN_ROWS = 2


def document_lines(lines: Sequence[str]) -> list[str]:
    """The records of a JSON document in memory, one line each; empty if the text is something else."""
    first = next((line.lstrip() for line in lines if line.strip()), "")
    if not first.startswith(("[", "{")) or isinstance(lines, FileLines):
        return []
    try:
        document = json.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return []
    if isinstance(document, dict) and "log_history" in document:
        return []  # the state of Hugging Face's Trainer, which has a reader
    return [json.dumps(row) for row in max(_tables(document), key=len, default=[])]


def _tables(value: Any, depth: int = 0) -> Iterator[list[dict[str, Any]]]:
    """The lists of records in the document, and its groups of columns."""
    if depth > MAX_DEPTH or not isinstance(value, list | dict):
        return
    if isinstance(value, list):
        yield [row for row in value if isinstance(row, dict)]
        return
    yield _rows_of_columns(value)
    for item in value.values():
        yield from _tables(item, depth + 1)


def _rows_of_columns(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of columns of one length: lists, or what pandas writes, an object of values by index."""
    values = {name: list(column.values()) if isinstance(column, dict) else column for name, column in columns.items()}
    lists = {name: column for name, column in values.items() if isinstance(column, list) and _is_column(column)}
    length = max((len(column) for column in lists.values()), default=0)
    complete = {name: column for name, column in lists.items() if len(column) == length}
    return [dict(zip(complete, row)) for row in zip(*complete.values())]


def _is_column(values: list[Any]) -> bool:
    return len(values) >= MIN_ROWS and not any(isinstance(value, list | dict) for value in values)
