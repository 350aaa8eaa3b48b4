"""Hugging Face's Trainer: the dictionaries that it prints, and its `trainer_state.json`.

Step N is the N-th step; a `loss` is the mean over the steps since the line before, an `eval_loss` is measured after N
steps. `train_loss`, in the last line, is the mean over the run and is not read. A printed dictionary has an epoch
instead of a step. The steps of an epoch follow from the progress bar, the header or the last line; failing these, a
line per 500 steps is assumed, the Trainer's default.
"""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import LogTraits, Step
from jaxgpt.logs.reader import MAX_STEP, parse_count, parse_number, parse_step, valid_duration
from jaxgpt.logs.rows import Row, RowReader

NAME = "huggingface"
TRAITS = LogTraits(fixed_eval_set=True, optimizer="adamw", default_schedule="linear")
MARKERS = ("'epoch': ", '"log_history"')
PATTERN = re.compile(
    r"\{(?=[^{}]{0,2000}'epoch': )[^{}]{0,2000}'(?:loss|eval_loss|train_runtime)': |\"log_history\": \["
)
DICTIONARY = re.compile(r"\{('[^{}]{1,4000})\}")
PRINTED = re.compile(r"'(\w{1,60})': '?([-+.\w]{1,40})")
TOKENS = re.compile(r'[{}]|"(\w{1,60})": ("[^"]{0,200}"|[-+.\w]{1,40})')
BAR = re.compile(r"(\d{1,9})/(\d{1,9}) \[(?:(?:(\d{1,4}):)?(\d{1,3}):(\d\d)<)")
HEADERS = {
    "total_steps": re.compile(r"Total optimization steps = ([\d,]{1,15})"),
    "epochs": re.compile(r"Num Epochs = ([\d,]{1,15})"),
    "parameters": re.compile(r"Number of trainable parameters = ([\d,]{1,20})"),
}
IGNORED = re.compile(r"epoch|step|train_loss|total_flos|\w+_(?:runtime|per_second)")  # of every log
TOTALS = ("epoch", "step", "train_runtime", "train_steps_per_second")
EPOCH_ERROR = 0.01  # of a printed epoch
DEFAULT_INTERVAL = 500  # steps between two lines
MAX_ROWS = 1_000_000


class Printed(NamedTuple):
    """A printed dictionary, and the step of the progress bar that is redrawn after it."""

    line: int
    values: dict[str, float]
    bar_step: int | None = None


class Reader(RowReader):
    """Reads line by line into a `Collector`. The steps of printed dictionaries are known only at the end."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._first = 1
        self._is_state = False
        self._entry: dict[str, str] = {}
        self._entry_line = 0  # with the loss
        self._printed: list[Printed] = []
        self._facts: dict[str, float] = {}  # of the header and of the last entry
        self._end_line = 0  # of the last entry of a run that is over
        self._bar_total = 0  # of the longest bar: those of evaluations are shorter
        self._evaluation_seconds = 0.0
        self._last_rate: tuple[int, float] | None = None  # the step and the learning rate of the line before

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if '"log_history"' in text:
            self._is_state = True
            self._log.accept()
        if self._is_state or text.lstrip(" {").startswith('"') or text.strip() == "{":
            self._state_line(line_no, text)
        elif match := DICTIONARY.search(text):
            self._dictionary(line_no, match[1])
        elif match := BAR.search(text):
            self._read_bar(match)
        elif " = " in text:
            self._header(text)

    def _state_line(self, line_no: int, text: str) -> None:
        """Reads a line of `trainer_state.json`, whose objects may span lines."""
        for match in TOKENS.finditer(text):
            if match[1]:
                self._entry[match[1]] = match[2].strip('"')
                self._entry_line = line_no if match[1].endswith("loss") else self._entry_line
                continue
            self._state_object(self._entry)
            self._entry = {}

    def _state_object(self, entry: dict[str, str]) -> None:
        """An entry of the history, or the facts around it."""
        values = _numbers(entry.items())
        step = parse_step(values.get("step"))
        self._set_metadata(total_steps=parse_step(values.get("max_steps")))
        self._read_totals(values, self._entry_line)
        if step is not None and not self._add_row(self._entry_line, self._row(values), step) and "loss" in values:
            self._log.drop(self._entry_line)

    def _dictionary(self, line_no: int, text: str) -> None:
        values = _numbers(PRINTED.findall(text))
        self._read_totals(values, line_no)
        self._log.accept()
        if not values.keys() & {"loss", "eval_loss"}:
            return
        if not 0 <= values.get("epoch", -1.0) < MAX_STEP or len(self._printed) >= MAX_ROWS:
            self._log.drop(line_no)
            return
        self._printed.append(Printed(line_no, values))

    def _add_row(self, line_no: int, row: Row, step: int | None) -> bool:
        """Adds a row. Its learning rate is that of the step to come; the step's own lies between two lines."""
        rate = row.get("lr")
        if rate is not None and step is not None:
            before = self._last_rate
            self._last_rate = (step, rate)
            if before is not None and before[0] < step:
                row["lr"] = rate + (before[1] - rate) / (step - before[0])
        return super()._add_row(line_no, row, step)

    def _row(self, values: dict[str, float]) -> Row:
        """The quantities of an entry; counts those that are not used."""
        names = tuple(name for name in values if not IGNORED.fullmatch(name))
        return self._select(names, [values[name] for name in names])

    def _read_totals(self, values: dict[str, float], line_no: int) -> None:
        """Reads the time of an evaluation, and the last entry, which describes the whole run."""
        self._evaluation_seconds += valid_duration(values.get("eval_runtime")) or 0.0
        if "loss" in values:
            self._end_line = 0
        if "train_runtime" in values:
            self._end_line = line_no
            self._facts |= {name: values[name] for name in TOTALS if 0 < values.get(name, 0.0) < MAX_STEP}

    def _read_bar(self, match: re.Match[str]) -> None:
        """Reads the step and the clock of the bar that follows a dictionary."""
        self._bar_total = max(self._bar_total, int(match[2]))
        if int(match[2]) < self._bar_total or not self._printed or self._printed[-1].bar_step is not None:
            return
        hours, minutes, seconds = (int(part or 0) for part in match.groups()[2:])
        last = self._printed[-1]
        last.values.setdefault("elapsed", 3600.0 * hours + 60.0 * minutes + seconds)
        self._printed[-1] = last._replace(bar_step=int(match[1]))

    def _header(self, text: str) -> None:
        for name, pattern in HEADERS.items():
            if match := pattern.search(text):
                self._facts[name] = parse_count(match[1]) or 0.0

    def end(self) -> None:
        """Adds the printed dictionaries, and the facts of the run."""
        self._set_metadata(parameters=self._facts.get("parameters"), total_steps=self._total_steps())
        for printed, step in zip(self._printed, self._steps()):
            self._add_row(printed.line, self._row(printed.values), step)
        super().end()
        self._add_end()
        self._add_mean_time()

    def _add_end(self) -> None:
        """Adds the last step of a run that is over, which need not have a loss."""
        done = parse_step(self._facts.get("step")) or self._printed_end()
        if not self._end_line or not done:
            return
        self._log.flush()
        trained = self._log.steps[-1].step + 1 if self._log.steps else 0
        evaluated = self._log.evaluations[-1].step if self._log.evaluations else 0
        done = max(done, trained, evaluated)
        self._log.metadata["total_steps"] = done
        if trained < done:
            self._log.add(Step(done - 1, line=self._end_line))

    def _printed_end(self) -> int:
        """The last step by the epoch of the last line; 0 if it is not known."""
        total = self._log.metadata.get("total_steps") or 0
        planned = self._facts.get("epochs")
        done = self._facts.get("epoch", 0.0)
        return round(total * done / planned) if planned and done < planned - EPOCH_ERROR else total

    def _total_steps(self) -> int | None:
        """The length of the run by the header, the progress bar or the last line."""
        runtime, rate = (self._facts.get(name, 0.0) for name in ("train_runtime", "train_steps_per_second"))
        known = (self._facts.get("total_steps"), self._bar_total, runtime * rate, self._log.metadata.get("total_steps"))
        return next((round(total) for total in known if total and 1 <= total <= MAX_STEP), None)

    def _steps(self) -> list[int]:
        """The steps of the printed dictionaries: those of the progress bars, else by their epochs."""
        epochs = [printed.values["epoch"] for printed in self._printed if "loss" in printed.values]
        increments = [after - before for before, after in pairwise(epochs) if after >= before] or epochs
        if not sum(increments) > 0:
            return [printed.bar_step or 0 for printed in self._printed]
        increment = sum(increments) / len(increments)
        per_epoch = self._steps_per_epoch(increment)
        interval = max(1, round(per_epoch * increment))
        estimates = _steps_by_epoch(self._printed, per_epoch, interval)
        return [printed.bar_step or step for printed, step in zip(self._printed, estimates)]

    def _steps_per_epoch(self, increment: float) -> float:
        """Steps per epoch; by the default interval if nothing tells, where a line adds `increment` epochs."""
        total = self._total_steps()
        epochs = self._facts.get("epochs") or self._facts.get("epoch")
        if total and epochs:
            return total / epochs
        bars = [printed for printed in self._printed if printed.bar_step and printed.values["epoch"] > 0]
        if bars:
            return (bars[-1].bar_step or 0) / bars[-1].values["epoch"]
        self._log.note(
            f"the lines have no steps; one line per {DEFAULT_INTERVAL} steps is assumed, the Trainer's default "
            "(trainer_state.json has the steps)",
            is_warning=True,
        )
        return DEFAULT_INTERVAL / increment

    def _add_mean_time(self) -> None:
        """Adds the mean time of a step to the last one, if no other is known."""
        runtime = self._facts.get("train_runtime", 0.0) - self._evaluation_seconds
        steps = self._log.steps
        if steps and runtime > 0 and all(step.seconds is None for step in steps):
            steps[-1] = steps[-1]._replace(seconds=valid_duration(runtime / (steps[-1].step + 1)))


def _numbers(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    return {name: value for name, text in pairs if (value := parse_number(text)) is not None}


def _steps_by_epoch(entries: Sequence[Printed], per_epoch: float, interval: int) -> list[int]:
    """The steps of the entries; a training loss is that of a multiple of `interval`, of which no two are the same."""
    steps: list[int] = []
    last_epoch, last_step = math.inf, 0  # of a training loss
    for entry in entries:
        epoch = entry.values["epoch"]
        if "loss" not in entry.values:
            steps.append(_step_at(epoch * per_epoch, 1))
            continue
        step = max(_step_at(epoch * per_epoch, interval), interval)
        is_rounded = step <= last_step and epoch >= last_epoch  # to the epoch of the line before
        last_epoch, last_step = epoch, last_step + interval if is_rounded else step
        steps.append(last_step)
    return steps


def _step_at(step: float, interval: int) -> int:
    """The nearest multiple of `interval`."""
    return interval * round(min(step, MAX_STEP) / interval)
