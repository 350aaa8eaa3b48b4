"""torchtitan's output: `step: 10  loss:  7.1234  grad_norm:  1.2345  memory: 30.01GiB(37.9%)  tps: 8,123  …`.

Step N is the N-th step, `validate step: N` follows it. A loss is the mean over the batch. `tps` counts the tokens per
second of one device since the line before, without validation; it gives the time of a step if the first lines of the
trainer state the batch. Failing these, the time is the difference of the lines' timestamps.
"""

import re
from math import prod

from jaxgpt.logs import reader
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import LogTraits, Step
from jaxgpt.logs.reader import (
    Clock,
    multiply,
    parse_count,
    parse_finite,
    parse_number,
    parse_step,
    parse_timestamp,
    valid_duration,
)  # fmt: skip

NAME = "torchtitan"
TRAITS = LogTraits(optimizer="adamw")
MARKERS = ("step: ",)
PATTERN = re.compile(r"\bstep: {1,9}\d{1,10} {1,9}loss: {1,9}\S{1,40} {1,9}(?:grad_norm|m?memory|tps|wps): ")
LINE = re.compile(r"(?P<validate>\bvalidate )?\bstep: {1,9}(?P<step>\d{1,10}) {1,9}loss: {1,9}(?P<loss>\S{1,40})")
NORM = re.compile(r"\bgrad_norm: {1,9}(\S{1,40})")
SPEED = re.compile(r"\b[tw]ps: {1,9}([\d,]{1,20})")
TRAINER = re.compile(
    r"local batch size (?P<local>\d{1,9}), global batch size (?P<batch>\d{1,9}), "
    r"(?:gradient accumulation steps (?P<accumulation>\d{1,9}), )?sequence length (?P<length>\d{1,9}), "
    r"total steps (?P<total>\d{1,9})(?: \(warmup (?P<warmup>\d{1,9}))?"
)
MESH = re.compile(r"device mesh with \[[^\]]{1,200}\], \[([\d, ]{1,60})\]")
PARAMETERS = re.compile(r"\bsize: ([\d,]{1,20}) total parameters")
DEVICE = re.compile(r"\b(?:CUDA|HIP|XPU) capacity: (.{1,80}?) with ")
OPTIONS = re.compile(
    r"['\"](lr|weight_decay|min_lr_factor|decay_ratio|decay_type|vocab_size|dataset|name)['\"]: ['\"]?([\w.+-]{1,40})"
)
NAMES = {"lr": "learning_rate", "min_lr_factor": "final_lr_fraction"}
SCHEDULES = ("linear", "cosine")  # the forms of a decay that the readers of schedules know


class Reader(reader.Reader):
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._clock = Clock()
        self._tokens_per_rate: float | None = None  # tokens per step and device

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if "step: " in text and (match := LINE.search(text)):
            if match["validate"]:
                self._add_evaluation(line_no, match)
                self._clock.step_time(self._steps_done, parse_timestamp(text))
            else:
                self._step(line_no, match, text)
        elif match := TRAINER.search(text):
            self._trainer(line_no, match)
        elif match := PARAMETERS.search(text):
            self._set_metadata(parameters=parse_count(match[1]))
        elif match := DEVICE.search(text):
            self._set_metadata(device=match[1])
        elif match := MESH.search(text):
            self._log.header(line_no)
            self._set_metadata(device_count=prod(int(size) for size in match[1].split(",") if size.strip()))
        else:
            self._options(text)

    def _step(self, line_no: int, match: re.Match[str], text: str) -> None:
        done = parse_step(match["step"])
        if not done:
            return
        self._steps_done = done
        norm = NORM.search(text)
        elapsed = self._clock.step_time(done, parse_timestamp(text))
        seconds = self._seconds_by_rate(text) or elapsed
        step = Step(done - 1, parse_number(match["loss"]), seconds, line=line_no)
        self._log.add(step._replace(grad_norm=parse_number(norm[1]) if norm else None))

    def _seconds_by_rate(self, text: str) -> float | None:
        match = SPEED.search(text)
        rate = parse_count(match[1]) if match else None
        return valid_duration(self._tokens_per_rate / rate) if self._tokens_per_rate and rate else None

    def _trainer(self, line_no: int, match: re.Match[str]) -> None:
        """The line in which the trainer states its batch and its length."""
        self._log.header(line_no)
        number = {name: parse_finite(value) for name, value in match.groupdict().items()}
        batch = multiply(number["batch"], number["length"])
        per_device = multiply(number["local"], number["accumulation"] or 1.0, number["length"])
        devices = self._log.metadata.get("device_count")
        self._tokens_per_rate = batch / devices if batch and devices else per_device
        self._set_metadata(tokens_per_step=batch, total_steps=parse_step(number["total"]))
        if number["warmup"] is not None:
            self._log.hyperparameters["warmup_iters"] = number["warmup"]

    def _options(self, text: str) -> None:
        """The options that the trainer prints if it is told to."""
        values = self._log.hyperparameters
        for name, value in OPTIONS.findall(text):
            number = parse_finite(value)
            if number is not None and name != "name":
                values[NAMES.get(name, name)] = number
            elif name == "name" and "adam" in value.lower():
                values["optimizer"] = value
            elif name in ("decay_type", "dataset"):
                values[name] = value

    def end(self) -> None:
        """Derives the schedule from the options."""
        values = self._log.all_hyperparameters()
        ratio = parse_finite(values.get("decay_ratio"))
        total = self._log.metadata.get("total_steps")
        shape = str(values.get("decay_type"))
        if shape not in SCHEDULES:
            return
        if ratio is None:
            self._log.hyperparameters["schedule"] = shape
        elif total and 0 < ratio <= 1:
            self._log.hyperparameters |= {"schedule": "wsd", "warmdown_iters": float(round(ratio * total))}
