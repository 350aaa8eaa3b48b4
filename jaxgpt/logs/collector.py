"""Where the readers of all formats put what they find: runs, seams and repeated steps are told apart here, once."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from jaxgpt.config import Config
from jaxgpt.logs.history import Evaluation, History, Replay, RunMetadata, Step

MOST_STEP = 10**9  # a larger number is no step
MOST_RECORDS = 1_000_000  # beyond, every second one is dropped
A_DAY = 86_400.0  # seconds: no step takes longer


def number(text: Any) -> float | None:
    """The number that a text spells, NaN and infinities too; None if it spells none."""
    try:
        return None if text is None or text is True or text is False else float(text)
    except (TypeError, ValueError, OverflowError):
        return None


def whole(text: Any) -> int | None:
    """The number of a step, 0 to `MOST_STEP`, that a text spells; None if it spells none."""
    value = number(text)
    return int(value) if value is not None and 0 <= value <= MOST_STEP and value == int(value) else None


def finite(text: Any) -> float | None:
    """The finite number that a text spells; None if it spells none."""
    value = number(text)
    return value if value is not None and math.isfinite(value) else None


def duration(value: float | None) -> float | None:
    """`value` if so many seconds are a step's; else None."""
    return value if value is not None and 0 < value < A_DAY else None


class Collector:
    """Takes records in the order of the file; `history` gives the last run.

    A record whose step lies behind that of the one before is a seam (the run went on from an earlier state, and what
    was done beyond it is dropped) or, from step 0, a new run. Without a word of a start before it, a single such line
    decides nothing: if the next one stands ahead of all again, it is sorted in.
    """

    def __init__(self, source: str, format: str) -> None:
        self.source, self.format = source, format
        self.config: Config | None = None
        self.facts: dict[str, Any] = {}
        self.settings: dict[str, float | bool | str] = {}
        self._earlier: dict[str, float | bool | str] = {}
        self._runs, self._header, self._header_line = 1, False, 0
        self._notes: dict[str, None] = {}
        self._waiting: Step | Evaluation | None = None
        self._clear()

    def _clear(self) -> None:
        self.steps: list[Step] = []
        self.evaluations: list[Evaluation] = []
        self.saves: list[int] = []
        self.starts: list[int] = []
        self.replays: list[Replay] = []
        self._last = -1

    def note(self, sentence: str) -> None:
        """Says once how something odd was understood."""
        self._notes[sentence] = None

    def setting(self, name: str, value: float | bool | str) -> None:
        """A setting of the run, in nanoGPT's words."""
        self.settings[name] = value

    def all_settings(self) -> dict[str, float | bool | str]:
        """Those of the last process, and of the run's earlier ones where it is silent."""
        return self._earlier | self.settings

    def header(self, line: int) -> None:
        """The log says that a process begins; where it begins, the next record tells."""
        if not self._header:
            self._header, self._header_line = True, line
            self._earlier, self.settings = self._earlier | self.settings, {}

    def step(self, step: Step) -> None:
        """Takes one update."""
        self._take(step)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Takes one evaluation."""
        self._take(evaluation)

    def saved(self, step: int) -> None:
        self.saves.append(step)

    @property
    def empty(self) -> bool:
        return self._waiting is None and not self.steps and not self.evaluations

    def _take(self, record: Step | Evaluation) -> None:
        if self._waiting is not None:
            self._decide(record)
        if self._header or self._last < 0:
            self._begin(record.step, record.line)
        elif record.step < self._last:
            self._waiting = record
            return
        self._put(record)

    def _decide(self, after: Step | Evaluation) -> None:
        """Whether the record that fell back was a seam: the one after it goes on from there, or a process began."""
        first = self._waiting
        assert first is not None
        if self._header or after.step > self._last:
            self.settle()
            return
        self._waiting = None
        self._begin(first.step, first.line)
        self._put(first)

    def settle(self) -> None:
        """Sorts in a single line that was out of order; what was found is complete then."""
        record, self._waiting = self._waiting, None
        if record is not None:
            self.note(f"line {record.line} is out of order; it was sorted in by its step")
            _sort_in(self.steps if isinstance(record, Step) else self.evaluations, record)

    def _begin(self, done: int, line: int) -> None:
        """A process goes on from `done`: what the log has beyond it happened in a state that was given up."""
        told, self._header = self._header, False
        line = self._header_line if told else line
        if done == 0 and self._last > 0:
            self._runs += 1
            self._earlier = {}
            self._clear()
        elif done <= self._last:
            self._replay(done, line)
        if told or done == 0 or self._last > done:
            self.starts.append(done)
        self._last = done

    def _replay(self, done: int, line: int) -> None:
        lost = [step.step for step in self.steps[_place(self.steps, done) :]]
        if lost:
            self.replays.append(Replay(done, lost[-1], line))
        del self.steps[_place(self.steps, done) :]
        del self.evaluations[_place(self.evaluations, done + 1) :]
        self.saves = [step for step in self.saves if step <= done]

    def _put(self, record: Step | Evaluation) -> None:
        self._last = max(self._last, record.step)
        if isinstance(record, Evaluation):
            _append(self.evaluations, record)
            self._thin(self.evaluations)
            return
        if self.starts and record.step == self.starts[-1]:
            record = record._replace(pure=False)  # it compiles
        _append(self.steps, record)
        self._thin(self.steps)

    def _thin(self, records: list[Any]) -> None:
        if len(records) > MOST_RECORDS:
            del records[1:-1:2]
            self.note(f"of more than {MOST_RECORDS:,} records, every second one of the older half was dropped")

    def history(self, lines: Sequence[str]) -> History:
        """What was found."""
        self.settle()
        if self._runs > 1:
            self.note(f"the file holds {self._runs} runs; the last one is taken")
        for first, last, line in self.replays:
            again = f"steps {first:,} to {last:,}" if last > first else f"step {first:,}"
            self.note(f"{again} stood before line {line} too, where the run goes on from step {first:,}; dropped there")
        return History(
            source=self.source,
            format=self.format,
            steps=tuple(self.steps),
            evaluations=tuple(self.evaluations),
            saves=tuple(self.saves),
            starts=tuple(self.starts),
            replays=tuple(self.replays),
            config=self.config,
            metadata=RunMetadata(hyperparameters=self.all_settings(), **self.facts),
            lines=lines,
            notes=tuple(self._notes),
        )


def _place(records: Sequence[Step | Evaluation], step: int) -> int:
    return bisect_left(records, step, key=lambda record: record.step)


def _append(records: list[Any], record: Any) -> None:
    """Appends; a record of the same step replaces it, and keeps what only the earlier line had."""
    if not records or records[-1].step < record.step:
        records.append(record)
    else:
        records[-1] = merged(records[-1], record)


def merged(old: Any, new: Any) -> Any:
    """`new`, with what it leaves open taken from `old`."""
    return new._replace(**{name: getattr(old, name) for name, value in new._asdict().items() if value is None})


def _sort_in(records: list[Any], record: Any) -> None:
    place = _place(records, record.step)
    if place < len(records) and records[place].step == record.step:
        records[place] = record
    else:
        records.insert(place, record)
