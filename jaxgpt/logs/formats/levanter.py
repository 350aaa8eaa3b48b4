"""Levanter's progress lines: `Progress on:train 971it/10.0kit rate:2.1it/s remaining:… elapsed:… postfix:loss=3.225`.

`971it` counts the steps done; from 1,000 on the lines have three digits (`1.23kit`), so that several lines may count
the same. The loss is that of the last step. `validation loss: 3.456` and `eval loss: 3.456` follow the last step.
"""

import re

from jaxgpt.logs import reader
from jaxgpt.logs.history import LogTraits, Step
from jaxgpt.logs.reader import parse_finite, parse_number, parse_step, valid_duration

NAME = "levanter"
TRAITS = LogTraits(fixed_eval_set=True)
MARKERS = ("Progress on:train ",)
PATTERN = re.compile(r"Progress on:train [\d.]{1,12}[kMG]?it/")
LINE = re.compile(
    r"Progress on:train (?P<done>[\d.]{1,12})(?P<unit>[kMG]?)it/(?P<total>[\d.]{1,12})(?P<total_unit>[kMG]?)it "
    r"rate:(?P<rate>[\d.]{1,12})(?P<rate_unit>[kM]?it/s|s/it)(?=.{0,200}?\bloss=(?P<loss>[^\s,]{1,40}))"
)
VALIDATION = re.compile(r"\b(?:validation|eval) loss: (?P<loss>[^\s,]{1,40})")
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
EXACT = 1000  # smaller counts are not rounded


class Reader(reader.Reader):
    """Reads line by line into a `Collector`."""

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if "Progress on:train" in text and (match := LINE.search(text)):
            self._step(line_no, match)
        elif " loss: " in text and (match := VALIDATION.search(text)):
            self._add_evaluation(line_no, match)
        elif "Progress on:" in text:  # of an evaluation
            self._log.accept()

    def _step(self, line_no: int, match: re.Match[str]) -> None:
        done = _count(match["done"], match["unit"])
        if not done:
            self._log.accept()
            return
        self._steps_done = done
        self._set_metadata(total_steps=_count(match["total"], match["total_unit"]))
        if done >= EXACT:
            self._log.note("the lines round the number of steps to three digits")
        seconds = valid_duration(_step_time(match["rate"], match["rate_unit"]))
        self._log.add(Step(done - 1, parse_number(match["loss"]), seconds, line=line_no))


def _count(text: str, unit: str) -> int | None:
    value = parse_finite(text)
    return None if value is None else parse_step(round(min(value * UNITS[unit], 1e18)))


def _step_time(text: str, unit: str) -> float | None:
    """Seconds per step of a rate in steps per second, or in seconds per step."""
    rate = parse_finite(text)
    if not rate:
        return None
    return rate if unit == "s/it" else 1 / (rate * UNITS[unit.removesuffix("it/s")])
