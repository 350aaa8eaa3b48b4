"""Rows of named numbers, which the readers of tables, of JSON lines and of key-value pairs share."""

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from jaxgpt.logs import bits, reader
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import Evaluation, Step
from jaxgpt.logs.quantities import DESCRIPTIONS, Quantity, find_hyperparameter, find_optimizer, find_quantity
from jaxgpt.logs.reader import MAX_STEP, Clock, valid_duration

Row = dict[str, float]  # by quantity
# Steps that programs count differently: the number of the first step, and the steps done at an evaluation of step 0.
CONVENTIONS = {"train/global_step": (1, 0), "trainer/global_step": (0, 1)}

EXPECTED = re.compile(r"(?:.+/)?epoch|_step|.*(?:__MIN|__MAX|- _step)")  # need no note
TEXT_FACTS = ("optimizer", "dataset")
ROW_FACTS = ("weight_decay", "dropout", "parameters", "bytes_per_token")  # facts that some programs repeat in every row
MAX_TEXT = 40  # characters of such a fact
SAME_LOSS = 0.02  # nats: two figures of one loss that differ by less agree
MAX_UNUSED = 10_000  # names that are counted


class RowReader(reader.Reader):
    """Adds rows to a `Collector`; `end` adds the facts that the rows contain.

    A training loss, a learning rate and a time belong to the step after `step` others, a validation loss is measured
    after `step` steps; `_first` and `_evaluated_after` shift both.
    """

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._clock = Clock()
        self._names: dict[str, tuple[int, str]] = {}  # by quantity: the rank and the name that was read
        self._first = 0
        self._evaluated_after = 0
        self._counted: list[tuple[int, float]] = []  # steps and the tokens that they read: the first, the last
        self._in_bits = False  # the evaluations are in bits per byte
        self._evaluated_at = -1

    def _select(self, names: tuple[str, ...], values: Iterable[float | None]) -> Row:
        """The quantities of one row, from the preferred name of each. Counts the values of the other names."""
        chosen = preferred_names(names)
        row = {}
        for index, value in enumerate(values):
            quantity = chosen.get(index)
            if value is None:
                continue
            if quantity is not None and self._accept(quantity, names[index]):
                row[quantity.name] = value
            elif quantity is None and find_hyperparameter(names[index]) in ROW_FACTS:
                self._read_facts([(names[index], value)])
            elif quantity is None and not EXPECTED.fullmatch(names[index]) and len(self._log.unused) < MAX_UNUSED:
                self._log.unused[names[index]] += 1
        return row

    def _accept(self, quantity: Quantity, name: str) -> bool:
        """Whether no earlier row had a better name of the step, which is counted in one unit throughout."""
        known = self._names.get(quantity.name)
        if known is not None and quantity.name == "step" and known[0] < quantity.rank:
            return False
        if known is None or quantity.rank < known[0]:
            self._names[quantity.name] = (quantity.rank, name)
            self._learn_from_name(quantity, name)
        return True

    def _learn_from_name(self, quantity: Quantity, name: str) -> None:
        if quantity.name == "step":
            self._first, self._evaluated_after = CONVENTIONS.get(name.lower(), (self._first, self._evaluated_after))
        optimizer = find_optimizer(name) if quantity.name == "lr" else None
        if optimizer is not None:
            self._log.hyperparameters.setdefault("optimizer", optimizer)

    def _add_row(self, line_no: int, row: Row, step: int | None) -> bool:
        """Adds a row of step `step`; returns whether it has one and something to add."""
        if step is None or step < self._first:
            return False
        self._convert_perplexities(row)
        if "tokens" in row:
            self._counted[1:] = [(step, row["tokens"])]
        self._set_metadata(total_steps=reader.parse_step(row.get("total")))
        seconds = self._seconds(row, step)
        is_evaluation = self._add_row_evaluation(line_no, row, step + self._evaluated_after)
        details = (seconds, row.get("lr"), row.get("norm"))
        loss = row.get("train")
        if all(value is None for value in details) and (loss is None or "val" in row):
            return is_evaluation
        step_only = "elapsed" not in row or self._evaluated_at < step
        number = step - self._first
        self._log.add(Step(number, loss, *details, line=line_no, time=row.get("time"), step_only=step_only))
        return True

    def _convert_perplexities(self, row: Row) -> None:
        """Replaces a loss that is missing by the logarithm of its perplexity, and one in bits by that in nats."""
        for loss, perplexity in (("train", "train_ppl"), ("val", "val_ppl")):
            value = row.get(perplexity)
            if value is None or not 1 < value < math.inf:
                continue
            nats = math.log(value)
            excess = row.get(loss, nats) - nats
            is_in_bits = excess > SAME_LOSS and abs(row[loss] * math.log(2) - nats) < SAME_LOSS
            if loss not in row or is_in_bits:
                row[loss] = nats
            if is_in_bits:
                self._log.note("the perplexities show that the losses are in bits; they were converted to nats")

    def _seconds(self, row: Row, step: int) -> float | None:
        """Seconds of a step, stated or by the difference to the row before."""
        seconds = row.get("seconds")
        if seconds is None and "milliseconds" in row:
            seconds = row["milliseconds"] / 1e3
        if seconds is None:
            seconds = self._clock.step_time(step, row.get("elapsed", row.get("time")))
        return valid_duration(seconds)

    def _add_row_evaluation(self, line_no: int, row: Row, step: int) -> bool:
        self._set_metadata(bytes_per_token=bits.bytes_per_token(row.get("val"), row.get("val_bits")))
        val = self._validation_loss(row)
        if val is None:
            return False
        self._log.add(Evaluation(step, val, row.get("train"), row.get("error"), line_no))
        self._evaluated_at = step
        return True

    def _validation_loss(self, row: Row) -> float | None:
        """In nats per token, or in bits per byte where no row before has both."""
        if "val_bits" not in row:
            return None if self._in_bits else row.get("val")
        length: float | None = self._log.metadata.get("bytes_per_token")
        if length is not None:
            return row.get("val", row["val_bits"] * math.log(2) * length)
        self._in_bits = self._in_bits or "val" not in self._names
        return row["val_bits"] if self._in_bits else row.get("val")

    def end(self) -> None:
        """Adds the tokens per step that the rows show, and converts bits per byte."""
        values = self._log.all_hyperparameters()
        facts = {name: reader.parse_finite(values.get(name)) for name in ("parameters", "tokens_per_step")}
        total = reader.parse_step(values.get("total_steps"))
        self._set_metadata(**facts)
        self._set_metadata(tokens_per_step=self._tokens_per_step())
        self._set_metadata(total_steps=self._log.metadata.get("total_steps") or total)
        if "bytes_per_token" not in self._log.metadata:
            self._set_metadata(bytes_per_token=reader.parse_finite(values.get("bytes_per_token")))
        if self._in_bits:
            bits.convert_evaluations(self._log)

    def _tokens_per_step(self) -> float | None:
        """The tokens between the first and the last row that count them, per step."""
        if not self._counted:
            return None
        first, last = self._counted[0], self._counted[-1]
        steps, tokens = (last[0] - first[0], last[1] - first[1]) if last[0] > first[0] else last
        per_step = tokens / steps if steps > 0 else 0.0
        return float(round(per_step)) if 1 <= per_step < reader.MAX_VALUE else None

    def _read_facts(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Reads facts of the run, such as a weight decay, from pairs of names and values."""
        for name, value in pairs:
            fact = find_hyperparameter(name)
            number = reader.parse_finite(value)
            if fact in TEXT_FACTS and isinstance(value, str) and number is None:
                self._log.hyperparameters[fact] = value[:MAX_TEXT]
            elif fact is not None and fact not in TEXT_FACTS and number is not None and 0 <= number < reader.MAX_VALUE:
                self._log.hyperparameters[fact] = number

    def _note_names(self) -> None:
        """Notes how the names were read: 'iter' as the step, 'train_loss' as the training loss."""
        read = [f"'{name}' as {DESCRIPTIONS[quantity]}" for quantity, (_, name) in self._names.items()]
        sentence = f"the log was read generically, by the names of its keys: {', '.join(read)}"
        self._log.note(sentence, is_warning=True)


@lru_cache(maxsize=512)
def preferred_names(names: tuple[str, ...]) -> dict[int, Quantity]:
    """The quantities of `names` by index; of several names of one quantity the preferred one alone."""
    numbered = [(index, find_quantity(name)) for index, name in enumerate(names)]
    best: dict[str, tuple[int, Quantity]] = {}
    for index, quantity in numbered:
        if quantity is not None and (quantity.name not in best or quantity.rank < best[quantity.name][1].rank):
            best[quantity.name] = (index, quantity)
    return dict(best.values())


def row_step(row: Row) -> int | None:
    """The step of a row, if it has a valid one."""
    step = row.get("step")
    return round(step) if step is not None and 0 <= step <= MAX_STEP else None
