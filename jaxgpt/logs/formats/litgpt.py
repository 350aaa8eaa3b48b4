"""litgpt's `pretrain` output, in its three forms.

    Epoch 1 | iter 128 step 1 | loss train: 10.970, val: n/a | iter time: 510.21 ms (step) remaining time: 5 days, …
    iter 128 | step 1: loss 10.9700, iter time: 510.21 ms (step) remaining time: 5 days, …
    iter 1 step 1: loss 10.8259, iter time: 215.69ms (optimizer.step)

An iteration is a micro-batch: a step takes the iterations since the one before. `step N` of a line counts the steps
done. A line in the third form is printed for every iteration, or for every n-th; the loss of a step is their mean. The
first two are printed once per step or less often, with the time of the last iteration alone. `val` repeats the
validation that preceded; `iter N: val loss …` states it with more digits. `remaining time` is the mean time of an
iteration so far times the iterations to come: without the options of the run it shows the length.
"""

import math
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from jaxgpt.logs import reader
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import Evaluation, LogTraits, Step
from jaxgpt.logs.reader import multiply, parse_count, parse_finite, parse_number, parse_step, valid_duration

NAME = "litgpt"
TRAITS = LogTraits(fixed_eval_set=True, optimizer="adamw", default_schedule="cosine")
MARKERS = ("iter time: ", ": val loss ")
PATTERN = re.compile(r"\biter \d+ (?:\| )?step \d+(?: \||:) loss(?: train:)? |\biter \d+: val loss ")
STEP = re.compile(
    r"\biter (?P<iter>\d{1,10}) (?:\| )?step (?P<step>\d{1,10})(?: \||:) loss(?: train:)? (?P<loss>[^\s,|]{1,40}),"
    r"(?: val: (?P<val>[^\s,|]{1,40}) \|)?(?: LR: (?P<lr>[^\s,]{1,40}),)? ?"
    r"iter time: (?P<ms>[\d.]{1,40}) ?ms(?P<end> \((?:optimizer\.)?step\))?"
)
VALIDATION = re.compile(r"\b(?:iter|step) (?P<iter>\d{1,10}): val loss (?P<loss>[^\s,]{1,40})")
PARAMETERS = re.compile(r"\bTotal parameters:? ([\d,]{1,20})")
OPTIONS = re.compile(
    r"\b(global_batch_size|micro_batch_size|lr_warmup_steps|max_tokens|max_steps|max_seq_length|block_size|min_lr"
    r"|weight_decay|lr|padded_vocab_size|n_layer|n_embd)['\"]?(?:=|: )([\d.e+-]{1,30})"
)
OPTIMIZER = re.compile(r"'optimizer': (?:\{'class_path': )?'(?:[\w.]{1,60}\.)?(\w{2,30})'")
REMAINING = re.compile(r"remaining time: (?:(\d{1,5}) days?, )?(\d{1,2}):(\d\d):(\d\d)")
MIN_REMAINING = 3  # lines with a remaining time that show the length
MAX_MISFIT = 0.05  # relative: between the last remaining time and the one that the estimated length explains
ROUNDING = 6e-4  # between a validation loss and its repetition with three digits
NAMES = {"lr_warmup_steps": "warmup_iters", "lr": "learning_rate", "padded_vocab_size": "vocab_size"}


class Iteration(NamedTuple):
    """A micro-batch: the steps before its own, its number, and what its line states. `ends`: it completes the step."""

    after: int
    number: int
    line: int
    loss: float | None = None
    milliseconds: float | None = None
    rate: float | None = None
    ends: bool = False


class Remaining(NamedTuple):
    """The seconds to come after `number` iterations, the last of which took `seconds`."""

    number: int
    remaining: float
    seconds: float


class Reader(reader.Reader):
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._iterations: list[Iteration] = []  # of one step, in the form that prints all of them
        self._origin: tuple[int, int] | None = None  # step and number of the first iteration
        self._prints_ends = False
        self._val: float | None = None  # the validation loss that the lines repeat
        self._iterations_per_step = 1.0
        self._remaining: list[Remaining] = []

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if "iter time" in text and (match := STEP.search(text)):
            if "ms (optimizer" in text or match["end"] is None:
                self._iteration(line_no, match)
            else:
                self._step(line_no, match)
        elif "val loss" in text and (match := VALIDATION.search(text)):
            self._validation(line_no, match)
        elif match := PARAMETERS.search(text):
            self._set_metadata(parameters=parse_count(match[1]))
        elif match := OPTIMIZER.search(text):
            self._log.hyperparameters["optimizer"] = match[1].lower()
        if self._steps_done == 0:
            self._options(text)

    def _iteration(self, line_no: int, match: re.Match[str]) -> None:
        """An iteration in the form that prints each of them, or one of several."""
        number, done = parse_step(match["iter"]), parse_step(match["step"])
        if number is None or done is None:
            return
        self._log.accept()
        ends = match["end"] is not None
        after = done - ends
        if self._iterations and self._iterations[-1].after != after:
            self._add_iterations(Iteration(after, number, line_no))
        loss, milliseconds = parse_number(match["loss"]), parse_finite(match["ms"])
        self._iterations.append(Iteration(after, number, line_no, loss, milliseconds, parse_finite(match["lr"]), ends))
        self._prints_ends = self._prints_ends or ends

    def _add_iterations(self, following: "Iteration") -> None:
        """Adds the step of the iterations so far, as the next ones belong to another step."""
        first, last = self._iterations[0], self._iterations[-1]
        self._origin = self._origin or (first.after, first.number)
        steps, iterations = following.after - self._origin[0], following.number - self._origin[1]
        self._iterations_per_step = iterations / steps if steps > 0 and iterations > 0 else 1.0
        losses = [one.loss for one in self._iterations if one.loss is not None]
        times = [one.milliseconds for one in self._iterations if one.milliseconds is not None]
        loss = sum(losses) / len(losses) if losses else None
        seconds = sum(times) / len(times) / 1e3 * self._iterations_per_step if times else None
        self._iterations = []
        self._steps_done = last.after + 1
        self._log.add(Step(last.after, loss, valid_duration(seconds), last.rate, line=last.line))

    def _finish_step(self) -> None:
        """Adds the step of the iterations so far, unless the last of them is still to come."""
        if self._iterations and (self._iterations[-1].ends or not self._prints_ends):
            last = self._iterations[-1]
            self._add_iterations(Iteration(last.after + 1, last.number + 1, last.line))

    def _step(self, line_no: int, match: re.Match[str]) -> None:
        """A step in the forms that print one line per step, or per several steps."""
        val = parse_number(match["val"])
        if val is not None and self._steps_done > 0 and not (self._val is not None and abs(val - self._val) < ROUNDING):
            self._log.add(Evaluation(self._steps_done, val, line=line_no))
            self._val = val
        seconds = (parse_finite(match["ms"]) or 0.0) / 1e3
        if left := REMAINING.search(match.string, match.end()):
            days, hours, minutes, rest = (int(part or 0) for part in left.groups())
            left_seconds = 86_400 * days + 3600 * hours + 60 * minutes + rest
            self._remaining.append(Remaining(int(match["iter"]), left_seconds, seconds))
        self._add(line_no, match, parse_number(match["loss"]), seconds * self._accumulation(match))

    def _accumulation(self, match: re.Match[str]) -> float:
        """Iterations per step: those counted at this step."""
        step = parse_step(match["step"])
        self._iterations_per_step = int(match["iter"]) / step if step else self._iterations_per_step
        return self._iterations_per_step

    def _add(self, line_no: int, match: re.Match[str], loss: float | None, seconds: float) -> None:
        done = parse_step(match["step"])
        if done:
            self._steps_done = done
            self._log.add(Step(done - 1, loss, valid_duration(seconds), line=line_no))

    def _validation(self, line_no: int, match: re.Match[str]) -> None:
        """A validation after the last step; the lines that follow repeat it with three digits."""
        self._finish_step()
        val = parse_number(match["loss"])
        self._val = val
        self._log.add(Evaluation(self._steps_done, val, line=line_no))

    def _options(self, text: str) -> None:
        for name, value in OPTIONS.findall(text):
            number = parse_finite(value)
            if number is not None:
                self._log.hyperparameters[NAMES.get(name, name)] = number

    def end(self) -> None:
        """Adds the last step, and derives the run's metadata from its options."""
        self._finish_step()
        values = self._log.all_hyperparameters()
        length = parse_finite(values.get("max_seq_length")) or parse_finite(values.get("block_size"))
        batch = multiply(parse_finite(values.get("global_batch_size")), length)
        tokens = parse_finite(values.get("max_tokens"))
        total = parse_step(values.get("max_steps")) or (int(tokens // batch) if tokens and batch else None)
        self._set_metadata(tokens_per_step=batch, total_steps=total)
        iterations = None if total else estimate_length(self._remaining)
        if iterations is not None:
            self._set_metadata(estimated_total_steps=round_to_digits(iterations / self._iterations_per_step))


def estimate_length(lines: Sequence[Remaining]) -> float | None:
    """The iterations of the run, as its remaining times show; None if they do not agree with one length.

    After n of M iterations of r seconds and c seconds at the start, n × remaining = (c + r n) (M − n), so that
    n × remaining + r n² is a line over n with the intercept c M and the slope r M − c.
    """
    if len({line.number for line in lines}) < MIN_REMAINING:
        return None
    seconds = statistics.median(line.seconds for line in lines)
    numbers = [line.number for line in lines]
    values = [line.number * line.remaining + seconds * line.number**2 for line in lines]
    slope, intercept = statistics.linear_regression(numbers, values)
    last = lines[-1]
    root = slope**2 + 4 * seconds * intercept
    if seconds <= 0 or root < 0 or last.number <= 0:
        return None
    length = (slope + math.sqrt(root)) / (2 * seconds)
    explained = (intercept + slope * last.number - seconds * last.number**2) / last.number
    agrees = abs(explained - last.remaining) <= MAX_MISFIT * max(last.remaining, 60.0)
    return length if agrees and length >= last.number else None


def round_to_digits(steps: float) -> int:
    """To three digits, which is what an estimate is worth."""
    return round(float(f"{steps:.3g}"))
