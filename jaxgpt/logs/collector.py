"""Collects the records of every format's reader, and separates runs, restarts and repeated steps."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jaxgpt.config import Config
from jaxgpt.logs.history import BytesPerToken, Evaluation, History, LogTraits, Replay, RunMetadata, Step
from jaxgpt.utils.formatting import pluralize

Hyperparameters = dict[str, float | bool | str]

MISSED_PER_LINE = 10  # more of them show that the format is another one
MAX_NAMES = 6  # of unused columns that are listed
MAX_NAME_CHARS = 40
MAX_RECORDS = 1_000_000  # beyond that, every second record of the older half is dropped


class Collector:
    """Takes records in the order of the file; `history` returns the last run.

    A record whose step is below the one before is either a restart (the run resumed from an earlier state, and the
    steps beyond that state are dropped) or, at step 0, the start of a new run. Without a header before it, one such
    line alone decides nothing: if the next line continues the old sequence, the line is sorted in by its step.
    """

    def __init__(
        self, source: str, format: str, traits: LogTraits, bytes_per_token: BytesPerToken | None = None
    ) -> None:
        self.source = source
        self.format = format
        self.traits = traits
        self.bytes_per_token = bytes_per_token
        self.config: Config | None = None
        self.metadata: dict[str, Any] = {}
        self.hyperparameters: Hyperparameters = {}
        self._earlier: Hyperparameters = {}
        self._runs = 1
        self._header_line: int | None = None
        self.accepted = 0  # lines that were read, or more
        self.unused = Counter[str]()  # values by the column or key that no reader uses
        self._dropped = 0
        self._first_dropped = 0  # a line number
        self._missed = 0
        self._first_missed = 0  # a line number
        self._notes: dict[str, bool] = {}  # whether each is a warning
        self._undecided: Step | Evaluation | None = None
        self._clear()

    def _clear(self) -> None:
        self.steps: list[Step] = []
        self.evaluations: list[Evaluation] = []
        self.saves: list[int] = []
        self.starts: list[int] = []
        self.replays: list[Replay] = []
        self._last = -1

    def note(self, sentence: str, *, is_warning: bool = False) -> None:
        """Records how an irregularity was interpreted; a repeated sentence is kept once."""
        self._notes[sentence] = self._notes.get(sentence, False) or is_warning

    def accept(self) -> None:
        """Counts a line that was read, whose record follows later or is not needed."""
        self.accepted += 1

    def drop(self, line: int) -> None:
        """Counts a line that belongs to the format but could not be read."""
        self._first_dropped = self._first_dropped or line
        self._dropped += 1

    def miss(self, line: int) -> None:
        """Counts a line that names a loss in a form that the reader does not know."""
        self._first_missed = self._first_missed or line
        self._missed += 1

    @property
    def unusable(self) -> bool:
        """Whether nothing was added, or next to nothing of the lines that name a loss."""
        return self.empty or self._missed > MISSED_PER_LINE * self.accepted

    @property
    def unread(self) -> str:
        """What was not read, in one sentence without its end; empty if everything was."""
        parts = []
        if self._dropped:
            parts.append(f"{pluralize(self._dropped, 'line')} could not be read (first: line {self._first_dropped:,})")
        if self._missed > self.accepted:
            parts.append(
                f"{pluralize(self._missed, 'line')} with a loss of unknown form (first: line {self._first_missed:,})"
            )
        if self.unused:
            parts.append(f"not used: {_count_names(self.unused)}")
        return "; ".join(parts)

    def all_hyperparameters(self) -> Hyperparameters:
        """Those of the last process; what it does not log is taken from the run's earlier processes."""
        return self._earlier | self.hyperparameters

    def header(self, line: int) -> None:
        """Records that a process starts. The next record shows at which step."""
        self.accepted += 1
        if self._header_line is None:
            self._header_line = line
            self._earlier = self._earlier | self.hyperparameters
            self.hyperparameters = {}

    def add(self, record: Step | Evaluation) -> None:
        """Adds a step or an evaluation."""
        self.accepted += 1
        if self._undecided is not None:
            self._decide(record)
        if self._header_line is not None or self._last < 0:
            self._start_process(record.step, record.line)
        elif record.step < self._last:
            self._undecided = record
            return
        self._append(record)

    def rewind(self, done: int, line: int) -> None:
        """Goes back to the state after `done` steps, without a new process: what was added since is dropped."""
        self.accepted += 1
        self.flush()
        del self.steps[_index_of(self.steps, done) :]
        del self.evaluations[_index_of(self.evaluations, done + 1) :]
        self._last = done
        self.note(f"in line {line} the run goes back to step {done:,}; what it logged after that step is dropped")

    def add_save(self, step: int) -> None:
        """Adds a checkpoint that was saved after `step` steps."""
        self.accepted += 1
        self.saves.append(step)

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return self._undecided is None and not self.steps and not self.evaluations

    def _decide(self, following: Step | Evaluation) -> None:
        """Treats the undecided record as a restart, unless the record after it continues the old sequence."""
        record = self._undecided
        assert record is not None
        if self._header_line is not None or following.step > self._last:
            self.flush()
            return
        self._undecided = None
        self._start_process(record.step, record.line)
        self._append(record)

    def flush(self) -> None:
        """Sorts in a single record that was out of order. Nothing is undecided afterwards."""
        record = self._undecided
        self._undecided = None
        if record is not None:
            self.note(f"line {record.line} is out of order; it was sorted in by its step")
            _insert(self.steps if isinstance(record, Step) else self.evaluations, record)

    def _start_process(self, done: int, line: int) -> None:
        """A process continues from `done` steps; records beyond them belong to an abandoned state."""
        has_header = self._header_line is not None
        if self._header_line is not None:
            line = self._header_line
            self._header_line = None
        if done == 0 and self._last > 0:
            self._runs += 1
            self._earlier = {}
            self._clear()
        elif done <= self._last:
            self._drop_repeated(done, line)
        if has_header or done == 0 or self._last > done:
            self.starts.append(done)
        self._last = done

    def _drop_repeated(self, done: int, line: int) -> None:
        index = _index_of(self.steps, done)
        if index < len(self.steps):
            self.replays.append(Replay(done, self.steps[-1].step, line))
        del self.steps[index:]
        dropped = self.evaluations[_index_of(self.evaluations, done) :]
        if dropped and not self.replays:
            self._note_restart(dropped, line)
        del self.evaluations[_index_of(self.evaluations, done + 1) :]
        self.saves = [step for step in self.saves if step <= done]

    def _note_restart(self, dropped: Sequence[Evaluation], line: int) -> None:
        """Notes a restart that no repeated training step shows."""
        first, last = dropped[0].step, dropped[-1].step
        self.note(
            f"the steps restart in line {line:,}; the run from there on is read, and the evaluations of steps "
            f"{first:,} to {last:,} before it are not",
            is_warning=True,
        )

    def _append(self, record: Step | Evaluation) -> None:
        self._last = max(self._last, record.step)
        if isinstance(record, Evaluation):
            _append_or_merge(self.evaluations, record)
            self._limit(self.evaluations)
            return
        if self.starts and record.step == self.starts[-1]:
            record = record._replace(step_only=False)  # it compiles
        _append_or_merge(self.steps, record)
        self._limit(self.steps)

    def _limit(self, records: list[Any]) -> None:
        if len(records) > MAX_RECORDS:
            del records[1:-1:2]
            self.note(f"of more than {MAX_RECORDS:,} records, every second one of the older half was dropped")

    def history(self, lines: Sequence[str]) -> History:
        """The last run of the log, whose text is `lines`."""
        self.flush()
        if self._runs > 1:
            self.note(f"the file contains {self._runs} runs; the last one is used")
        for first, last, line in self.replays:
            repeated = f"steps {first:,} to {last:,}" if last > first else f"step {first:,}"
            self.note(f"{repeated} were logged before line {line} too, where the run resumes; those were dropped")
        if self.unread:
            has_losses = any("loss" in name.lower() for name in self.unused)
            self.note(self.unread, is_warning=bool(self._dropped or self._missed or has_losses))
        return History(
            source=self.source,
            format=self.format,
            traits=self.traits,
            steps=tuple(self.steps),
            evaluations=tuple(self.evaluations),
            saves=tuple(self.saves),
            starts=tuple(self.starts),
            replays=tuple(self.replays),
            config=self.config,
            metadata=RunMetadata(hyperparameters=self.all_hyperparameters(), **self.metadata),
            lines=lines,
            notes=tuple(self._notes),
            warnings=tuple(note for note, is_warning in self._notes.items() if is_warning),
        )


def _index_of(records: Sequence[Step | Evaluation], step: int) -> int:
    """The index of the first record from `step` on."""
    return bisect_left(records, step, key=lambda record: record.step)


def _append_or_merge(records: list[Any], record: Any) -> None:
    """Appends. A record of the same step replaces the last one and keeps values that only the earlier line has."""
    if not records or records[-1].step < record.step:
        records.append(record)
        return
    earlier = records[-1]
    missing = {name: getattr(earlier, name) for name, value in record._asdict().items() if value is None}
    records[-1] = record._replace(**missing)


def _insert(records: list[Any], record: Any) -> None:
    """Inserts by step; a record of the same step is replaced."""
    index = _index_of(records, record.step)
    if index < len(records) and records[index].step == record.step:
        records[index] = record
    else:
        records.insert(index, record)


def _count_names(counts: Counter[str]) -> str:
    """The names with their counts: losses first, then the most frequent."""
    ordered = sorted(counts.items(), key=lambda item: ("loss" not in item[0].lower(), -item[1], item[0]))
    listed = [f"{name[:MAX_NAME_CHARS]} ({pluralize(count, 'value')})" for name, count in ordered[:MAX_NAMES]]
    more = len(ordered) - MAX_NAMES
    return ", ".join(listed) + (f" and {pluralize(more, 'other name')}" if more > 0 else "")
