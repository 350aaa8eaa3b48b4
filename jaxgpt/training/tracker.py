"""Sends a run's metrics to its trackers, each from a thread of its own: no disk and no server can stop the run."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Self

from jaxgpt.runs.log import warn
from jaxgpt.training.tracker_backends import BACKENDS, Backend, Entry, TrackedRun

MAX_WAITING = 10_000  # entries that wait for a tracker, at least so many steps; more than that: it is stuck
FLUSH_SECONDS = 10.0  # between writes to the disk
CLOSE_SECONDS = 5.0  # that the end of a run waits for the last entries


class Tracker:
    """Takes the values of a run for one backend; never blocks, and never raises an error.

    Entries go to a bounded queue, which a thread empties. The first failure costs one warning and the entries after
    it: an error of any type, or a full queue, because the disk or the server does not answer.
    """

    def __init__(self, name: str, open_backend: Callable[[], Backend]) -> None:
        self._name = name
        self._open_backend = open_backend
        self._entries: queue.Queue[Entry | None] = queue.Queue(MAX_WAITING)
        self._has_failed = False
        self._thread = threading.Thread(target=self._write_entries, name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, values: dict[str, float | str]) -> None:
        """Hands over the values of `step`."""
        if self._has_failed:
            return
        try:
            self._entries.put_nowait(Entry(step, time.time(), values))
        except queue.Full:
            self._fail("it does not answer")

    def close(self) -> None:
        """Waits for the last entries, but not longer than a few seconds."""
        with suppress(queue.Full):
            self._entries.put_nowait(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._fail("it does not answer")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_entries(self) -> None:
        """Runs in the thread, which ends with the run or at the first error."""
        try:
            backend = self._open_backend()
            try:
                self._copy_entries(backend)
            finally:
                backend.close()
        except (Exception, SystemExit) as error:  # of any type: the system's or a library's
            self._fail(getattr(error, "strerror", None) or str(error) or repr(error))

    def _copy_entries(self, backend: Backend) -> None:
        flushed = time.monotonic()
        while True:
            with suppress(queue.Empty):
                entry = self._entries.get(timeout=FLUSH_SECONDS)
                if entry is None:
                    return
                backend.write(entry)
            if time.monotonic() - flushed >= FLUSH_SECONDS:
                backend.flush()
                flushed = time.monotonic()

    def _fail(self, reason: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            warn(f"nothing more goes to {self._name}: {reason.splitlines()[0]}")


def open_trackers(names: Sequence[str], run: TrackedRun) -> list[Tracker]:
    """A tracker for each of `names`; "auto" is TensorBoard where it is installed."""
    chosen = [name for name in names if name != "auto"]
    if "auto" in names and BACKENDS["tensorboard"].is_installed():
        chosen.append("tensorboard")
    backends = [BACKENDS[name] for name in dict.fromkeys(chosen)]
    return [Tracker(backend.title, partial(backend.open, run)) for backend in backends]
