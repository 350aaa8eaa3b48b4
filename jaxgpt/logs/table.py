"""A table with a head: CSV with commas, semicolons or tabs, or as it stands in a Markdown document.

A row is read both ways: its `val_loss` is measured after `step` updates, its `train_loss`, rate and time are those of
the update after them. Alone beside a validation loss, a
training loss is the evaluation's.
"""

import csv
import re
from collections.abc import Sequence
from itertools import pairwise

from jaxgpt.errors import DataError
from jaxgpt.logs.collector import MOST_STEP, Collector, duration, number
from jaxgpt.logs.history import Evaluation, Step
from jaxgpt.logs.lines import LONGEST

NAME = "table"
USUAL_BATCH = 524_288.0  # tokens per step, where a table counts tokens alone
NAMES = {
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
COLUMN = {name: kind for kind, names in NAMES.items() for name in names.split()}
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")


def head(line: str) -> tuple[str, dict[int, str]] | None:
    """The separator and the kinds of the columns if the line is a table's head; else None."""
    for separator in (",", ";", "\t", "|"):
        if separator not in line:
            continue
        kinds: dict[int, str] = {}
        for place, cell in enumerate(cells(line, separator)):
            kind = COLUMN.get(plain(cell))
            if kind is not None and kind not in kinds.values():
                kinds[place] = kind
        if {"step", "tokens"} & set(kinds.values()) and {"train", "val"} & set(kinds.values()):
            return separator, kinds
    return None


def cells(line: str, separator: str) -> list[str]:
    """The cells of a row, without quotes and the spaces around them."""
    if separator == "|":
        return [cell.strip(" *`") for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:
        return [cell.strip() for cell in line.split(separator)]


def plain(name: str) -> str:
    """A column's name without the run it belongs to, units and endings that change nothing."""
    name = name.strip().strip("\ufeff'\"*` ").lower().rsplit(" - ", 1)[-1]
    name = re.sub(r"\((.*?)\)", "", name).strip()
    name = re.sub(r"[\s/.-]+", "_", name)
    return re.sub(r"_or_blank$|^(?:metrics|charts)_", "", name)


class Reader:
    """Reads the rows under a head into a `Collector`."""

    def __init__(self, collector: Collector, batch_tokens: float | None = None) -> None:
        self._found = collector
        self._batch = batch_tokens
        self._separator, self._kinds = ",", dict[int, str]()
        self._rows: list[tuple[int, dict[str, float]]] = []

    def line(self, at: int, text: str) -> None:
        found = head(text)
        if found:
            self.end()
            self._separator, self._kinds = found
        elif self._kinds and self._separator in text:
            row = cells(text, self._separator)
            values = {
                kind: value
                for place, kind in self._kinds.items()
                if place < len(row) and (value := self._value(row[place], kind)) is not None
            }
            if {"step", "tokens"} & set(values):
                self._rows.append((at, values))

    def _value(self, cell: str, kind: str) -> float | None:
        if "," in cell:
            counts = kind in ("step", "tokens") and THOUSANDS.fullmatch(cell)
            cell = cell.replace(",", "" if counts else ".")
        elif kind in ("step", "tokens"):
            cell = cell.replace(" ", "").replace("_", "")
        return number(cell)

    def end(self) -> None:
        """Puts the rows in; of a table that counts down, from its end."""
        rows, self._rows = self._rows, []
        placed = [(step, at, values) for at, values in rows if (step := self._step(values)) is not None]
        if len(placed) > 2 and all(one[0] > two[0] for one, two in pairwise(placed)):
            placed.reverse()
        for step, at, values in placed:
            self._row(step, at, values)
        if placed:
            self._facts(placed)

    def _step(self, values: dict[str, float]) -> int | None:
        step = values.get("step")
        if step is None:
            step = values["tokens"] / (self._batch or USUAL_BATCH) if "tokens" in values else None
        return round(step) if step is not None and 0 <= step <= MOST_STEP else None

    def _row(self, step: int, at: int, values: dict[str, float]) -> None:
        train, val = values.get("train"), values.get("val")
        milliseconds = values.get("milliseconds")
        seconds = duration(values.get("seconds", None if milliseconds is None else milliseconds / 1e3))
        if val is not None:
            self._found.evaluation(Evaluation(step, val, train, values.get("error"), at))
        rest = (train, seconds, values.get("lr"), values.get("norm"))
        if any(value is not None for value in (rest if val is None else rest[1:])):  # else train is the evaluation's
            self._found.step(Step(step, *rest, line=at, time=values.get("time")))

    def _facts(self, placed: Sequence[tuple[int, int, dict[str, float]]]) -> None:
        both = [(s, v["tokens"]) for s, _, v in placed if "step" in v and v.get("tokens", 0.0) > 0 and s > 0]
        if both:
            step, tokens = both[-1]
            self._found.facts["tokens_per_step"] = float(round(tokens / step)) if tokens < 1e18 else None
        elif not any("step" in values for _, _, values in placed):
            batch = self._batch or USUAL_BATCH
            self._found.facts |= {"tokens_per_step": batch, "counted_from_tokens": self._batch is None}
            if self._batch is None:
                self._found.note(f"the table counts tokens; {batch:,.0f} are taken for a step (--batch-tokens)")
        if any("train" in values and "val" in values for _, _, values in placed):
            self._found.note("the table's training loss is taken to be measured as its validation loss is")


def refuse_without_steps(line: str, source: str) -> None:
    """Raises `DataError` D042 for a table that has losses and nothing to place them by."""
    line = line[:LONGEST]
    for separator in (",", ";", "\t", "|"):
        named = {COLUMN.get(plain(cell)) for cell in cells(line, separator)}
        if separator in line and {"train", "val"} & named:
            what = f"the table in {source} has no column 'step' or 'tokens'; it has: {line.strip()[:200]}"
            raise DataError("D042", what, "name the column of steps: step,train_loss,val_loss")
