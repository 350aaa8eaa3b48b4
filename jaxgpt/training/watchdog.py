"""Ends a run whose step hangs: a device, a driver or a disk that never answers.

A thread counts how long the current step has taken, in ticks of its own. A tick counts for its own length at most, so
the time in which the process was stopped or the machine slept does not count.
"""

import faulthandler
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from jaxgpt.errors import HangError
from jaxgpt.runs.log import RunLog
from jaxgpt.training import distributed
from jaxgpt.utils.signals import end_process

FACTOR = 10  # times the median step: a step that takes less is slow, not hung
RECENT_STEPS = 100  # for the median
TICK_SECONDS = 1.0
EXIT_SECONDS = 10.0  # in which the process ends after a hang, whatever else does not answer


class Watchdog:
    """Calls `on_hang`, from its thread, when a step takes longer than `seconds` and `FACTOR` times the median step.

    It watches from the second recorded step on, since the first compiles, and not inside `paused`. With `seconds` 0 it
    never watches. A thread that never releases Python's global lock stops the watchdog as well.
    """

    def __init__(self, seconds: float, on_hang: Callable[[str], object]) -> None:
        self._seconds = seconds
        self._on_hang = on_hang
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._steps = 0  # recorded, and pauses that ended: a new number starts the count from 0
        self._pauses = 0
        self._closed = threading.Event()

    def step_done(self, seconds: float) -> None:
        """The step after which this is called took `seconds`; the next one begins."""
        self._recent.append(seconds)
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing inside the block: an evaluation, a save."""
        self._pauses += 1
        try:
            yield
        finally:
            self._steps += 1
            self._pauses -= 1

    @property
    def limit(self) -> float:
        """The seconds that a step may take."""
        return max(self._seconds, FACTOR * statistics.median(list(self._recent)))

    def __enter__(self) -> Self:
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self) -> None:
        tick = min(TICK_SECONDS, self._seconds / 10)
        counted, waited = self._steps, 0.0
        before = time.monotonic()
        while not self._closed.wait(tick):
            now = time.monotonic()
            elapsed, before = min(now - before, 2 * tick), now
            if self._pauses or counted != self._steps or not self._recent:
                counted, waited = self._steps, 0.0
                continue
            waited += elapsed
            if waited > self.limit:
                self._on_hang(f"a step has not ended in {waited:,.0f} s (limit: {self.limit:,.0f} s)")
                return


def end_hung_run(sentence: str, folder: Path, log: RunLog, on_abort: Callable[[], object]) -> None:
    """Writes the stacks of all threads to stderr and to `folder`, and ends the process with status 6."""
    number = distributed.number()
    stacks = folder / (f"stacks-{number}.txt" if number else "stacks.txt")
    help = "the same command resumes from the last checkpoint; --run.watchdog 0 turns this check off"
    error = HangError("H001", f"{sentence}; the stacks of all threads are in {stacks}", help)
    threading.Timer(EXIT_SECONDS, os._exit, (error.exit_status,)).start()
    with suppress(OSError, RuntimeError):
        faulthandler.dump_traceback(2, all_threads=True)
    with suppress(OSError), stacks.open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    log.write("stop", reason=error.code)
    end_process(str(error), error.exit_status, on_abort)
