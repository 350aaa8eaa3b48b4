"""A table: CSV with commas, semicolons or tabs, columns of numbers, or a table in a Markdown document.

The `val_loss` of a row is measured after `step` steps; its `train_loss`, learning rate and time are those of the step
after them. A training loss alone beside a validation loss belongs to the evaluation.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from jaxgpt.errors import DataError
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import LogTraits
from jaxgpt.logs.lines import MAX_LINE_BYTES
from jaxgpt.logs.quantities import find_quantity
from jaxgpt.logs.reader import parse_multiple, parse_number
from jaxgpt.logs.rows import Row, RowReader, preferred_names, row_step

NAME = "table"
TRAITS = LogTraits()
DEFAULT_BATCH = 524_288.0  # tokens per step, where a table counts tokens alone
SPACES = " "  # stands for any number of spaces
SEPARATORS = (",", ";", "\t", "|", SPACES)
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")
LOSSES = {"train", "val", "val_bits", "train_ppl", "val_ppl"}

Header = tuple[str, tuple[str, ...]]  # the separator and the names of the columns


def parse_header(line: str) -> Header | None:
    """The separator and the names of the columns if the line is the header of a table of losses; else None."""
    for separator, cells in _separated(line):
        is_prose = separator == SPACES and len(preferred_names(tuple(cells))) < len(cells)
        if has_step_and_loss(cells) and not is_prose:
            return separator, tuple(cells)
    return None


def split_columns(columns: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(name.strip() for name in columns.split(",") if name.strip())


def has_step_and_loss(names: Iterable[str]) -> bool:
    """Whether columns of these names contain a step, or tokens, and a loss."""
    recognized = {quantity.name for quantity in map(find_quantity, names) if quantity is not None}
    return bool(recognized & {"step", "tokens"}) and bool(recognized & LOSSES)


def _separated(line: str) -> Iterator[tuple[str, list[str]]]:
    """Each separator that the line contains, with the cells that it makes."""
    for separator in SEPARATORS:
        if separator in line:
            yield separator, split_cells(line, separator)


def split_cells(line: str, separator: str) -> list[str]:
    """The cells of a row, without quotes and surrounding spaces."""
    if separator == SPACES:
        return line.removeprefix("#").split()
    if separator == "|":
        return [cell.strip(" *`") for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:
        return [cell.strip() for cell in line.split(separator)]


class Reader(RowReader):
    """Reads the rows below a header, or those of a table whose columns the user names, into a `Collector`."""

    def __init__(self, collector: Collector, batch_tokens: float | None = None, columns: str | None = None) -> None:
        super().__init__(collector)
        self._batch_tokens = batch_tokens
        self._separator = ""
        self._columns = split_columns(columns or "")
        self._named_by_user = columns is not None
        self._rows: list[tuple[int, Row]] = []
        self._lines = 0  # that have cells

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        header = None if self._named_by_user else parse_header(text)
        if header:
            self._add_rows()
            self._separator, self._columns = header
        elif self._columns and any(char.isdigit() for char in text):
            separator = self._separator or find_separator(text)
            if separator in text:
                self._row(line_no, split_cells(text, separator))

    def _row(self, line_no: int, cells: Sequence[str]) -> None:
        has_index = self._separator == SPACES and len(cells) == len(self._columns) + 1  # as pandas prints
        values = [_parse_cell(cell, name) for cell, name in zip(cells[has_index:], self._columns)]
        row = self._select(self._columns, values)
        if "step" in row or "tokens" in row:
            self._rows.append((line_no, row))
        else:
            self._log.drop(line_no)

    def end(self) -> None:
        """Adds the rows and the facts that they contain."""
        self._add_rows()
        super().end()

    def _add_rows(self) -> None:
        """Adds the rows so far; those of a table that counts down are added from its end."""
        rows = [(self._step_of(row), line_no, row) for line_no, row in self._rows]
        self._rows = []
        steps = [step for step, _, _ in rows if step is not None]
        if len(steps) > 2 and all(first > second for first, second in pairwise(steps)):
            rows.reverse()
        for step, line_no, row in rows:
            if not self._add_row(line_no, row, step) and step is None:
                self._log.drop(line_no)
        self._note_assumptions([row for step, _, row in rows if step is not None])

    def _step_of(self, row: Row) -> int | None:
        if "step" in row or "tokens" not in row:
            return row_step(row)
        return row_step({"step": row["tokens"] / (self._batch_tokens or DEFAULT_BATCH)})

    def _note_assumptions(self, rows: Sequence[Row]) -> None:
        if rows and not any("step" in row for row in rows):
            batch = self._batch_tokens or DEFAULT_BATCH
            self._log.metadata["tokens_per_step"] = batch
            self._log.metadata["counted_from_tokens"] = self._batch_tokens is None
            if self._batch_tokens is None:
                self._log.note(f"the table counts tokens; a step is assumed to be {batch:,.0f} (--batch-tokens)")
        if any("train" in row and "val" in row for row in rows):
            self._log.note("the table's training loss is assumed to be measured as its validation loss is")

    def _tokens_per_step(self) -> float | None:
        return None if "tokens_per_step" in self._log.metadata else super()._tokens_per_step()


def is_numeric(line: str) -> bool:
    """Whether the line is a row of at least two numbers."""
    cells = split_cells(line.strip(), find_separator(line.strip()))
    return len(cells) > 1 and all(parse_number(cell) is not None for cell in cells)


def find_separator(text: str) -> str:
    """The separator of a row without a header above it."""
    return next((separator for separator in SEPARATORS if separator in text), SPACES)


def _parse_cell(cell: str, name: str) -> float | None:
    quantity = find_quantity(name)
    is_count = quantity is not None and quantity.name in ("step", "tokens")
    if "," in cell:
        has_thousands = is_count and THOUSANDS.fullmatch(cell)
        cell = cell.replace(",", "" if has_thousands else ".")
    elif is_count:
        cell = cell.replace(" ", "").replace("_", "")
    return parse_multiple(cell) if is_count else parse_number(cell)


def refuse_without_steps(line: str, source: str) -> None:
    """Raises `DataError` D042 if the line is the header of a table that has losses but neither steps nor tokens."""
    line = line[:MAX_LINE_BYTES]
    for separator, cells in _separated(line):
        quantities = {find_quantity(cell) for cell in cells}
        if separator != SPACES and {quantity.name for quantity in quantities if quantity is not None} & LOSSES:
            message = f"the table in {source} has no column 'step' or 'tokens'; it has: {line.strip()[:200]}"
            raise DataError("D042", message, "name the column of steps: step,train_loss,val_loss")
