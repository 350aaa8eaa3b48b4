"""litgpt's `pretrain` output, in its three forms.

    Epoch 1 | iter 128 step 1 | loss train: 10.970, val: n/a | iter time: 510.21 ms (step) remaining time: 5 days, …
    iter 128 | step 1: loss 10.9700, iter time: 510.21 ms (step) remaining time: 5 days, …
    iter 1 step 1: loss 10.8259, iter time: 215.69ms (optimizer.step)

An iteration is a micro-batch: a step takes the iterations since the one before. `step N` of a line counts the steps
done. A line in the third form is printed for every iteration; a step's loss and time are their mean and their sum. The
first two are printed once per step or less often, with the time of the last iteration alone. `val` repeats the
validation that preceded; `iter N: val loss …` states it with more digits.
"""

import re

from jaxgpt.logs import reader
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import Evaluation, LogTraits, Step
from jaxgpt.logs.reader import multiply, parse_count, parse_finite, parse_number, parse_step, valid_duration

NAME = "litgpt"
TRAITS = LogTraits(fixed_eval_set=True, optimizer="adamw")
MARKERS = ("iter time: ", ": val loss ")
PATTERN = re.compile(r"\biter \d+ (?:\| )?step \d+(?: \||:) loss(?: train:)? |\biter \d+: val loss ")
STEP = re.compile(
    r"\biter (?P<iter>\d{1,10}) (?:\| )?step (?P<step>\d{1,10})(?: \||:) loss(?: train:)? (?P<loss>[^\s,|]{1,40}),"
    r"(?: val: (?P<val>[^\s,|]{1,40}) \|)?,? ?iter time: (?P<ms>[\d.]{1,40}) ?ms(?P<end> \((?:optimizer\.)?step\))?"
)
VALIDATION = re.compile(r"\b(?:iter|step) (?P<iter>\d{1,10}): val loss (?P<loss>[^\s,]{1,40})")
PARAMETERS = re.compile(r"\bTotal parameters:? ([\d,]{1,20})")
OPTIONS = re.compile(
    r"\b(global_batch_size|micro_batch_size|lr_warmup_steps|max_tokens|max_steps|max_seq_length|block_size|min_lr"
    r"|weight_decay|lr|padded_vocab_size|n_layer|n_embd)['\"]?(?:=|: )([\d.e+-]{1,30})"
)
OPTIMIZER = re.compile(r"'optimizer': (?:\{'class_path': )?'(?:[\w.]{1,60}\.)?(\w{2,30})'")
ROUNDING = 6e-4  # between a validation loss and its repetition with three digits
NAMES = {"lr_warmup_steps": "warmup_iters", "lr": "learning_rate", "padded_vocab_size": "vocab_size"}


class Reader(reader.Reader):
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._losses: list[float] = []  # of the iterations since the last step, in the form that prints all of them
        self._milliseconds = 0.0
        self._val: float | None = None  # the validation loss that the lines repeat
        self._iterations_per_step = 1.0

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
        """An iteration in the form that prints all of them; the one that ends a step adds it."""
        self._log.accept()
        self._losses.append(parse_number(match["loss"]) or 0.0)
        self._milliseconds += parse_finite(match["ms"]) or 0.0
        if match["end"] is None:
            return
        loss = sum(self._losses) / len(self._losses)
        self._add(line_no, match, loss, self._milliseconds / 1e3)
        self._losses = []
        self._milliseconds = 0.0

    def _step(self, line_no: int, match: re.Match[str]) -> None:
        """A step in the forms that print one line per step, or per several steps."""
        val = parse_number(match["val"])
        if val is not None and self._steps_done > 0 and not (self._val is not None and abs(val - self._val) < ROUNDING):
            self._log.add(Evaluation(self._steps_done, val, line=line_no))
            self._val = val
        milliseconds = (parse_finite(match["ms"]) or 0.0) * self._accumulation(match)
        self._add(line_no, match, parse_number(match["loss"]), milliseconds / 1e3)

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
        val = parse_number(match["loss"])
        self._val = val
        self._log.add(Evaluation(self._steps_done, val, line=line_no))

    def _options(self, text: str) -> None:
        for name, value in OPTIONS.findall(text):
            number = parse_finite(value)
            if number is not None:
                self._log.hyperparameters[NAMES.get(name, name)] = number

    def end(self) -> None:
        """Derives the run's metadata from its options."""
        values = self._log.all_hyperparameters()
        length = parse_finite(values.get("max_seq_length")) or parse_finite(values.get("block_size"))
        batch = multiply(parse_finite(values.get("global_batch_size")), length)
        tokens = parse_finite(values.get("max_tokens"))
        total = parse_step(values.get("max_steps")) or (int(tokens // batch) if tokens and batch else None)
        self._set_metadata(tokens_per_step=batch, total_steps=total)
