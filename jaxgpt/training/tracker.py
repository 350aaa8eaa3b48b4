"""TensorBoard files of a run, written by a thread of their own, so that no disk and no library can stop the run."""

import os
import queue
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from jaxgpt.runs.log import warn

MAX_WAITING = 10_000  # entries that wait for the disk, at least so many steps; more than that: the writer is stuck
FLUSH_SECONDS = 10.0  # between writes to the disk
CLOSE_SECONDS = 5.0  # that the end of a run waits for the last entries


class Entry(NamedTuple):
    """Numbers and texts of one step, by name."""

    step: int
    time: float
    values: dict[str, float | str]


class EventFile:
    """A new event file in `folder`, in TensorBoard's format. Raises `OSError` where the disk refuses it."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(str(folder / name))
        self._write_event(wall_time=time.time(), file_version="brain.Event:2")

    def write(self, entry: Entry) -> None:
        from tensorboardX.summary import scalar, text

        for name, value in entry.values.items():
            summary = text(name, value) if isinstance(value, str) else scalar(name, value)
            self._write_event(wall_time=entry.time, step=entry.step, summary=summary)

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write_event(self, **values: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._records.write(Event(**values).SerializeToString())


class Tracker:
    """Takes the values of a run for TensorBoard; never blocks, and never raises an error.

    Entries go to a bounded queue, which a thread empties. The first failure costs one warning and the entries after
    it: an error of any type, or a full queue, because the disk does not answer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: queue.Queue[Entry | None] = queue.Queue(MAX_WAITING)
        self._has_failed = False
        self._thread = threading.Thread(target=self._write_entries, name="tensorboard", daemon=True)
        self._thread.start()

    def write(self, step: int, values: dict[str, float | str]) -> None:
        """Hands over the values of `step`."""
        if self._has_failed:
            return
        try:
            self._entries.put_nowait(Entry(step, time.time(), values))
        except queue.Full:
            self._fail("the disk does not answer")

    def close(self) -> None:
        """Waits for the last entries, but not longer than a few seconds."""
        with suppress(queue.Full):
            self._entries.put_nowait(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._fail("the disk does not answer")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_entries(self) -> None:
        """Runs in the thread, which ends with the run or at the first error."""
        try:
            file = EventFile(self._folder)
            try:
                self._copy_entries(file)
            finally:
                file.close()
        except Exception as error:  # of any type: the system's or a library's
            self._fail(getattr(error, "strerror", None) or repr(error))

    def _copy_entries(self, file: EventFile) -> None:
        flushed = time.monotonic()
        while True:
            with suppress(queue.Empty):
                entry = self._entries.get(timeout=FLUSH_SECONDS)
                if entry is None:
                    return
                file.write(entry)
            if time.monotonic() - flushed >= FLUSH_SECONDS:
                file.flush()
                flushed = time.monotonic()

    def _fail(self, reason: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            warn(f"no TensorBoard files from here on: {self._folder}: {reason}")


def open_tracker(folder: Path) -> Tracker | None:
    """A tracker that writes to `folder`; None if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        return None
    return Tracker(folder)
