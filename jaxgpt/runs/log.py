"""The run log: one JSON object per line of `log.jsonl`.

Every record has `kind` and `time` (seconds since 1970). Kinds: `start` (config, versions, device), `step` (one
optimizer step), `skip` (a step whose update was skipped, and the windows of its batch), `rewind` (the step of the
checkpoint that was restored, the step that failed, and the batches that are left out), `eval`, `sample` (`prompt` and
the `text` after it), `save`, and `stop` (see `StopReason`; a run that was killed has none). Losses are in nats per
token, as exact as they were measured. A line that a crash cut off is skipped by `read_log` and ended by the next
`RunLog`.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from jaxgpt.errors import printable
from jaxgpt.utils.formatting import LAST_DATE, format_duration

LAST_RECORD_BYTES = 65_536  # at the end of a log: they contain its last record
CLOCK_TOLERANCE = 60.0  # seconds that the clock may go back: time servers correct it, and hosts differ
EARLY_STOP = "early-stop"
SAVED_STOPS = ("done", EARLY_STOP, "Stopped")  # reasons of a stop that waited for the last save
STEP_KINDS = ("start", "step", "skip", "rewind", "eval", "sample", "save")  # whose records have a `step`


class StopReason(NamedTuple):
    """Why a run ended.

    `kind` is "done", "early-stop", an error's code, or the name of the exception that ended the run. `detail` is the
    evidence for an early stop, in one sentence.
    """

    kind: str
    detail: str = ""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "StopReason":
        """The reason in a `stop` record. Logs of jaxgpt 0.1 have "early-stop: DETAIL" as the reason."""
        kind, _, old_detail = str(record.get("reason")).partition(": ")
        return cls(kind, str(record.get("detail", old_detail)))

    @property
    def is_early(self) -> bool:
        return self.kind == EARLY_STOP


DONE = StopReason("done")


class RunLog:
    """Appends records to a run log.

    A disk that refuses a record costs that record and one warning, never the run; `failure` then describes the error.
    On exit it writes the `stop` record: `stop_reason`, or the exception that ended the block.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure = ""
        self.stop_reason = DONE
        self._file = os.fdopen(_open_at_once(path), "ab", buffering=0)
        self._line_is_open = _ends_inside_a_line(path)
        self._last_time = _time_of(_last_record(path))

    def write(self, kind: str, **values: Any) -> None:
        """Appends one record with a single system call, so that it is there before the next one."""
        now = time.time()
        self._check_clock(now)
        finite = {name: _finite(value) for name, value in values.items()}
        record = {"kind": kind, "time": round(now, 3)} | finite
        line = f"{json.dumps(record)}\n".encode()
        data = b"\n" + line if self._line_is_open else line
        try:
            self._line_is_open = self._file.write(data) != len(data)
        except OSError as error:
            if not self.failure:
                self.failure = f"{self.path}: {error.strerror}"
                warn(f"the log has gaps from here on: {self.failure}")

    def _check_clock(self, now: float) -> None:
        """Warns where the clock has gone back since the last record."""
        seconds = self._last_time - now
        self._last_time = now
        if seconds > CLOCK_TOLERANCE:
            warn(
                f"the clock went backwards by {format_duration(seconds)} since the last record of {self.path}: "
                "set this machine's clock, because dates in reports are wrong (training does not depend on it)"
            )

    def sync(self) -> None:
        """Brings the records to the disk, where the log is a file."""
        with suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        reason = self.stop_reason if kind is None else StopReason(getattr(error, "code", kind.__name__))
        detail = {"detail": reason.detail} if reason.detail else {}
        self.write("stop", reason=reason.kind, **detail)
        self.close()


def warn(text: str) -> None:
    """Prints a warning on stderr: something failed that a run can do without."""
    print(f"warning: {printable(text)}", file=sys.stderr)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl` in order, without the lines that are damaged; none for a device."""
    if path.exists() and not path.is_file():
        return []  # reading a device may never end
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and _has_its_step(record):
            records.append(record)
    return records


def _has_its_step(record: Mapping[str, Any]) -> bool:
    """Whether the record has a whole number of steps, where its kind has one: otherwise its line is damaged."""
    needs_step = record.get("kind") in STEP_KINDS
    return not needs_step or type(record.get("step")) is int


def completed_saves(records: Iterable[Mapping[str, Any]]) -> list[int]:
    """The steps whose checkpoints were on the disk according to a log.

    A `save` record is written when the save begins. It has ended when the next one begins, or when the run stops
    without an error.
    """
    completed = []
    saving = None
    for record in records:
        kind = record.get("kind")
        ended = kind == "save" or (kind == "stop" and record.get("reason") in SAVED_STOPS)
        if ended and saving is not None:
            completed.append(saving)
        if kind in ("start", "save", "stop"):
            saving = record.get("step") if kind == "save" else None
    return completed


def read_stop_reason(path: Path) -> StopReason | None:
    """Why the run of the log at `path` ended; None if the log's last record is not a `stop` record."""
    last = _last_record(path)
    return StopReason.from_record(last) if last.get("kind") == "stop" else None


def _last_record(path: Path) -> dict[str, Any]:
    """The last record of the log at `path`; empty if it has none, or is no file."""
    if path.exists() and not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_RECORD_BYTES))
            last = json.loads(file.read(LAST_RECORD_BYTES).splitlines()[-1])
    except (OSError, ValueError, IndexError, RecursionError):
        return {}
    return last if isinstance(last, dict) else {}


def _time_of(record: Mapping[str, Any]) -> float:
    """When the record was written, in seconds since 1970; 0 if it does not say so."""
    value = record.get("time")
    return float(value) if isinstance(value, float | int) and abs(value) < LAST_DATE else 0.0


def _open_at_once(path: Path) -> int:
    """Opens a file to append to it; a pipe that nobody reads is an error, where `open` would wait."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    if sys.platform != "win32":
        flags |= os.O_NONBLOCK
    return os.open(path, flags, 0o666)


def _ends_inside_a_line(path: Path) -> bool:
    """Whether the last line has no end. A device or pipe, which has no size, has no last line either."""
    size = path.stat().st_size
    if not size:
        return False
    with path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) != b"\n"


def _finite(value: Any) -> Any:
    """`value`, or its name if it is NaN or infinite, which JSON cannot express."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
