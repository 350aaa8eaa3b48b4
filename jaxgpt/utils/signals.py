"""Asking a run to stop: the first Ctrl-C or SIGTERM ends it after the current step, a second one at once.

Before the first step there is nothing to save, and the first signal ends the run at once, even while XLA compiles:
Python's own handlers wait for the compiler, which can take minutes, so a thread of ours answers in their place.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

from jaxgpt.errors import INTERRUPTED, PREEMPTED, Stopped

STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: PREEMPTED}
NOTHING_LOST = "stopped before the first step; nothing is lost"
PATIENCE = 1.0  # seconds that the main thread has for its own answer


class StopRequest:
    """A context in which SIGINT and SIGTERM are noted rather than raised; `status` is then the exit status to use.

    `at_once` is called before the process is ended while its main thread is busy: to leave the terminal in order.
    """

    def __init__(self, at_once: Callable[[], object] = lambda: None) -> None:
        self.status: int | None = None
        self.at_once = at_once
        self._something_to_save = False
        self._left = threading.Event()
        self._before: dict[signal.Signals, object] = {}

    def from_now_on_save(self) -> None:
        """There is something to save: a signal waits for the end of the step."""
        self._something_to_save = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STATUS}
            self._ours, self._systems = socket.socketpair()
            self._systems.setblocking(False)
            self._fd_before = signal.set_wakeup_fd(self._systems.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            self._systems.close()  # ends the thread
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # whatever signal.signal gave us

    def _note(self, number: int, _: FrameType | None) -> None:
        """What the main thread does, between two of its Python instructions."""
        if self.status is not None:
            raise KeyboardInterrupt
        self.status = STATUS[signal.Signals(number)]
        if not self._something_to_save:
            raise Stopped(NOTHING_LOST, self.status)
        tell("stopping after this step, then saving; once more stops at once")

    def _watch(self) -> None:
        """The thread: the system writes each signal's number to the socket the moment it arrives."""
        with self._ours:
            while number := self._ours.recv(1):
                if number[0] not in STATUS or self._something_to_save or self._left.wait(PATIENCE):
                    continue
                self.at_once()
                tell(NOTHING_LOST)
                os._exit(STATUS[signal.Signals(number[0])])


def tell(text: str) -> None:
    """Writes a line to stderr past Python's buffers, which a signal may have interrupted."""
    os.write(2, f"{text}\n".encode())
