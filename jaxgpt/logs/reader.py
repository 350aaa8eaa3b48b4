"""What the readers of all formats share: a base class, and the numbers in the text of a log."""

import math
import re
from datetime import UTC, datetime
from typing import Any

from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import Evaluation, Step

MAX_VALUE = 1e18  # of a fact of the run
MAX_STEP = 10**9  # a larger number is not a step
TIMESTAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?", re.ASCII)
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+", re.ASCII)
MAX_TIMESTAMP_END = 80  # characters of a line among which its timestamp is
MULTIPLES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}  # of counts
SECONDS_PER_DAY = 86_400.0  # no step takes longer


class Clock:
    """The seconds per step between two lines that state the seconds since the start."""

    def __init__(self) -> None:
        self._before: tuple[int, float] | None = None

    def step_time(self, done: int, elapsed: float | None) -> float | None:
        """Seconds per step since the line before, after `done` steps; None where the clock was set back.

        Time that passes while `done` stays the same, in an evaluation, does not count.
        """
        if elapsed is None:
            return None
        before = self._before
        self._before = (done, elapsed)
        if before is None or done <= before[0] or elapsed <= before[1]:
            return None
        return valid_duration((elapsed - before[1]) / (done - before[0]))


class Reader:
    """Reads the lines of one format into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        self._log = collector
        self._steps_done = 0  # by the last step
        self._evaluated = -1  # steps done at the last evaluation

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        raise NotImplementedError

    def end(self) -> None:
        """Called after the last line."""

    def _add_step(self, line_no: int, match: re.Match[str], *, first: int = 0, step_only: bool = True) -> None:
        """Adds the step that named groups of `match` describe. The first step of a run has the number `first`."""
        texts = match.groupdict()
        number = parse_step(texts["step"])
        if number is None or number < first:
            return
        self._steps_done = number + 1 - first
        self._log.add(
            Step(
                step=number - first,
                loss=parse_number(texts["loss"]),
                seconds=parse_milliseconds(texts.get("ms")),
                learning_rate=parse_number(texts.get("lr")),
                grad_norm=parse_number(texts.get("norm")),
                line=line_no,
                step_only=step_only,
            )
        )

    def _add_evaluation(self, line_no: int, match: re.Match[str]) -> None:
        """Adds the evaluation that named groups of `match` describe; without a step, it follows the last one read."""
        texts = match.groupdict()
        step = parse_step(texts.get("step", self._steps_done))
        if step is not None:
            self._evaluated = step
            val = parse_number(texts["loss"])
            self._log.add(Evaluation(step, val, parse_number(texts.get("train")), line=line_no))

    def _set_metadata(self, **values: Any) -> None:
        """Sets the facts of the run that are neither unknown nor 0."""
        self._log.metadata |= {name: value for name, value in values.items() if value}


def parse_number(text: Any) -> float | None:
    """The number that `text` spells, NaN and infinities included; None if it does not spell one."""
    if text is None or isinstance(text, bool):
        return None
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        return None


def parse_multiple(text: str) -> float | None:
    """The number that `text` spells, as 100, 0.1k or 1.5M; None if it does not spell one."""
    multiple = MULTIPLES.get(text[-1:].lower())
    value = parse_number(text if multiple is None else text[:-1])
    return value if value is None or multiple is None else round(value * multiple, 6)


def parse_finite(text: Any) -> float | None:
    """The finite number that `text` spells; None if it does not spell one."""
    value = parse_number(text)
    return value if value is not None and math.isfinite(value) else None


def parse_step(text: Any) -> int | None:
    """The step, 0 to `MAX_STEP`, that `text` spells, as 1000 or 1,000; None if it does not spell one."""
    value = parse_finite(text.replace(",", "") if isinstance(text, str) and THOUSANDS.fullmatch(text) else text)
    is_step = value is not None and 0 <= value <= MAX_STEP and value == int(value)
    return int(value) if value is not None and is_step else None


def parse_count(text: str) -> float | None:
    """A positive count with thousands separators, such as 524,288; None if `text` does not spell one."""
    return parse_finite(text.replace(",", "")) or None


def parse_milliseconds(text: Any) -> float | None:
    """The seconds of a step from its milliseconds; None if `text` is not the duration of a step."""
    value = parse_finite(text)
    return None if value is None else valid_duration(value / 1e3)


def parse_timestamp(text: str) -> float | None:
    """The seconds since 1970 of the timestamp at the beginning of a line, in an unknown zone; None without one."""
    match = TIMESTAMP.search(text[:MAX_TIMESTAMP_END])
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction = match.groups()
    try:
        moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=UTC)
    except ValueError:
        return None
    return moment.timestamp() + float(f"0.{fraction or 0}")


def valid_duration(seconds: float | None) -> float | None:
    """`seconds` if a step can take that long, else None."""
    return seconds if seconds is not None and 0 < seconds < SECONDS_PER_DAY else None


def parse_literal(text: str) -> float | bool | str | None:
    """The value of a config's expression: a number, a product of numbers, a boolean or a quoted word; else None."""
    text = text.split("#")[0].strip()
    if text in ("True", "False"):
        return text == "True"
    factors = [parse_number(factor.strip().replace("_", "")) for factor in text.split("*")]
    value = multiply(*factors)
    if value is not None:
        return value
    quoted = re.fullmatch(r"(['\"]?)([\w./-]{1,100})\1", text)
    return quoted[2] if quoted else None


def multiply(*factors: float | None) -> float | None:
    """The product; None if a factor is missing or the product is not below 1e18."""
    result = 1.0
    for factor in factors:
        if factor is None or not abs(result * factor) < MAX_VALUE:
            return None
        result *= factor
    return result
