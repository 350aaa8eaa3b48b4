"""A table with a header row: CSV with commas, semicolons or tabs, or a table in a Markdown document.

The `val_loss` of a row is measured after `step` steps; its `train_loss`, learning rate and time are those of the step
after them. A training loss alone beside a validation loss belongs to the evaluation.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from jaxgpt.errors import DataError
from jaxgpt.logs import reader
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import Evaluation, LogTraits, Step
from jaxgpt.logs.lines import MAX_LINE_BYTES
from jaxgpt.logs.reader import MAX_STEP, parse_number, valid_duration

NAME = "table"
TRAITS = LogTraits()
DEFAULT_BATCH = 524_288.0  # tokens per step, where a table counts tokens alone
SEPARATORS = (",", ";", "\t", "|")
ALIASES = {
    "step": "step steps iter iters iteration iterations it global_step trainer_step update updates train_step _step",
    "tokens": "tokens token tokens_seen total_tokens train_tokens num_tokens consumed_tokens",
    "lr": "lr learning_rate learningrate train_lr",
    "train": "train_loss train loss training_loss trn_loss train_loss_smoothed loss_train value trl",
    "val": "val_loss val valid_loss validation_loss valid validation eval_loss test_loss dev_loss loss_val tel",
    "seconds": "seconds dt step_time sec_per_step time_s iter_time",
    "milliseconds": "ms time_ms dt_ms step_ms iter_time_ms step_time_ms",
    "norm": "grad_norm norm gradient_norm gradnorm",
    "error": "standard_error val_standard_error val_se se stderr",
    "time": "wall_time time timestamp _timestamp",
}
COLUMNS = {alias: column for column, aliases in ALIASES.items() for alias in aliases.split()}
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")

Row = dict[str, float]


def parse_header(line: str) -> tuple[str, dict[int, str]] | None:
    """The separator and the known columns by index if the line is the header of a table of losses; else None."""
    for separator, cells in _separated(line):
        columns: dict[int, str] = {}
        for index, cell in enumerate(cells):
            column = COLUMNS.get(normalize_name(cell))
            if column is not None and column not in columns.values():
                columns[index] = column
        names = set(columns.values())
        if names & {"step", "tokens"} and names & {"train", "val"}:
            return separator, columns
    return None


def _separated(line: str) -> Iterator[tuple[str, list[str]]]:
    """Each separator that the line contains, with the cells that it makes."""
    for separator in SEPARATORS:
        if separator in line:
            yield separator, split_cells(line, separator)


def split_cells(line: str, separator: str) -> list[str]:
    """The cells of a row, without quotes and surrounding spaces."""
    if separator == "|":
        return [cell.strip(" *`") for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:
        return [cell.strip() for cell in line.split(separator)]


def normalize_name(name: str) -> str:
    """A column's name in lower case, without its run, its unit and suffixes that do not change its meaning."""
    name = name.strip().strip("\ufeff'\"*` ").lower().rsplit(" - ", 1)[-1]
    name = re.sub(r"\((.*?)\)", "", name).strip()
    name = re.sub(r"[\s/.-]+", "_", name)
    return re.sub(r"_or_blank$|^(?:metrics|charts)_", "", name)


class Reader(reader.Reader):
    """Reads the rows below a header into a `Collector`."""

    def __init__(self, collector: Collector, batch_tokens: float | None = None) -> None:
        super().__init__(collector)
        self._batch_tokens = batch_tokens
        self._separator = ","
        self._columns: dict[int, str] = {}
        self._rows: list[tuple[int, Row]] = []

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        header = parse_header(text)
        if header:
            self.end()
            self._separator, self._columns = header
        elif self._columns and self._separator in text:
            row = self._parse_row(split_cells(text, self._separator))
            if "step" in row or "tokens" in row:
                self._rows.append((line_no, row))

    def _parse_row(self, cells: Sequence[str]) -> Row:
        row = {}
        for index, column in self._columns.items():
            value = _parse_cell(cells[index], column) if index < len(cells) else None
            if value is not None:
                row[column] = value
        return row

    def end(self) -> None:
        """Adds the rows; those of a table that counts down are added from its end."""
        steps = [(self._step_of(row), line_no, row) for line_no, row in self._rows]
        rows = [(step, line_no, row) for step, line_no, row in steps if step is not None]
        self._rows = []
        if len(rows) > 2 and all(first[0] > second[0] for first, second in pairwise(rows)):
            rows.reverse()
        for step, line_no, row in rows:
            self._add(step, line_no, row)
        if rows:
            self._set_table_metadata([(step, row) for step, _, row in rows])

    def _step_of(self, row: Row) -> int | None:
        step = row.get("step")
        if step is None and "tokens" in row:
            step = row["tokens"] / (self._batch_tokens or DEFAULT_BATCH)
        return round(step) if step is not None and 0 <= step <= MAX_STEP else None

    def _add(self, step: int, line_no: int, row: Row) -> None:
        train = row.get("train")
        val = row.get("val")
        if val is not None:
            self._log.add(Evaluation(step, val, train, row.get("error"), line_no))
        seconds = row.get("seconds")
        if seconds is None and "milliseconds" in row:
            seconds = row["milliseconds"] / 1e3
        details = (valid_duration(seconds), row.get("lr"), row.get("norm"))
        loss_is_of_step = val is None and train is not None
        if loss_is_of_step or any(value is not None for value in details):
            self._log.add(Step(step, train, *details, line=line_no, time=row.get("time")))

    def _set_table_metadata(self, rows: Sequence[tuple[int, Row]]) -> None:
        counted = [
            (step, row["tokens"]) for step, row in rows if "step" in row and row.get("tokens", 0.0) > 0 and step > 0
        ]
        if counted:
            step, tokens = counted[-1]
            self._log.metadata["tokens_per_step"] = float(round(tokens / step)) if tokens < 1e18 else None
        elif not any("step" in row for _, row in rows):
            batch = self._batch_tokens or DEFAULT_BATCH
            self._log.metadata["tokens_per_step"] = batch
            self._log.metadata["counted_from_tokens"] = self._batch_tokens is None
            if self._batch_tokens is None:
                self._log.note(f"the table counts tokens; a step is assumed to be {batch:,.0f} (--batch-tokens)")
        if any("train" in row and "val" in row for _, row in rows):
            self._log.note("the table's training loss is assumed to be measured as its validation loss is")


def _parse_cell(cell: str, column: str) -> float | None:
    is_count = column in ("step", "tokens")
    if "," in cell:
        has_thousands = is_count and THOUSANDS.fullmatch(cell)
        cell = cell.replace(",", "" if has_thousands else ".")
    elif is_count:
        cell = cell.replace(" ", "").replace("_", "")
    return parse_number(cell)


def refuse_without_steps(line: str, source: str) -> None:
    """Raises `DataError` D042 if the line is the header of a table that has losses but neither steps nor tokens."""
    line = line[:MAX_LINE_BYTES]
    for _, cells in _separated(line):
        columns = {COLUMNS.get(normalize_name(cell)) for cell in cells}
        if columns & {"train", "val"}:
            message = f"the table in {source} has no column 'step' or 'tokens'; it has: {line.strip()[:200]}"
            raise DataError("D042", message, "name the column of steps: step,train_loss,val_loss")
