"""Ctrl-C and SIGTERM at a point where nothing is lost: after a training step, or between two steps of other work."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from jaxgpt.errors import INTERRUPTED, PREEMPTED, REPEAT_SECONDS, Stopped

EXIT_STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: PREEMPTED}
NOTHING_LOST = "stopped before the first step; nothing is lost"
MAIN_THREAD_SECONDS = 1.0  # that the main thread has to run its signal handler before the watcher ends the process

Handler = Callable[[int, FrameType | None], Any]


class GracefulShutdown:
    """A context in which SIGINT and SIGTERM ask a run to stop; a second signal raises `KeyboardInterrupt`.

    Until `enable_save`, there is nothing to save, and the first signal raises `Stopped` in the main thread. A main
    thread that XLA keeps busy compiling, for minutes perhaps, runs no signal handler: a watcher thread then calls
    `on_abort`, to leave the terminal in order, and ends the process. After `enable_save`, the first signal only sets
    `exit_status`, the status to exit with once the current step is done and saved, and calls `notify`, from a signal
    handler, with a sentence for the user.
    """

    def __init__(self, on_abort: Callable[[], object] = lambda: None) -> None:
        self.exit_status: int | None = None
        self.on_abort = on_abort
        self.notify: Callable[[str], object] = write_stderr
        self._save_enabled = False
        self._main_thread_responded = threading.Event()

    def enable_save(self) -> None:
        """From now on there is something to save, so a signal waits for the end of the step."""
        self._save_enabled = True

    def __enter__(self) -> Self:
        self._context = self._installed()
        self._context.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)

    @contextmanager
    def _installed(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # The system writes the number of each signal to this socket as it arrives, whatever the main thread does.
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        self._previous_hook = sys.unraisablehook
        sys.unraisablehook = self._repeat_if_swallowed
        try:
            with signal_handler(self._handle, *EXIT_STATUS):
                yield
        finally:
            if sys.unraisablehook == self._repeat_if_swallowed:
                sys.unraisablehook = self._previous_hook
            self._main_thread_responded.set()
            signal.set_wakeup_fd(previous)
            writer.close()  # ends the watcher

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Runs in the main thread, between two Python instructions."""
        self._main_thread_responded.set()
        self._number = number
        if self.exit_status is not None:
            raise KeyboardInterrupt
        self.exit_status = EXIT_STATUS[signal.Signals(number)]
        if not self._save_enabled:
            raise Stopped(NOTHING_LOST, self.exit_status)
        self.notify("stopping after this step, then saving; once more stops immediately")

    def _repeat_if_swallowed(self, event: "sys.UnraisableHookArgs") -> None:
        """Sends the signal again if its exception was raised in a destructor or a callback of the garbage collector.

        Python prints and drops such an exception. JAX has a callback of this kind, which is busy during a compilation.
        """
        if event.exc_type is not Stopped:
            self._previous_hook(event)
            return
        self.exit_status = None
        self._main_thread_responded.clear()
        threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), self._number)).start()

    def _watch(self, reader: socket.socket) -> None:
        """Runs in the watcher thread: ends the process where the main thread cannot respond and nothing is lost."""
        with reader:
            while number := reader.recv(1):
                if number[0] not in EXIT_STATUS or self._save_enabled:
                    continue
                if self._main_thread_responded.wait(MAIN_THREAD_SECONDS):
                    continue
                self.on_abort()
                write_stderr(NOTHING_LOST)
                os._exit(EXIT_STATUS[signal.Signals(number[0])])


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Notes Ctrl-C inside the block; the function that it gives raises the `KeyboardInterrupt`. A second one raises it.

    For work in libraries that turn a `KeyboardInterrupt` into another error.
    """
    pending = threading.Event()

    def raise_if_pending() -> None:
        if pending.is_set():
            raise KeyboardInterrupt

    def handle(_: int, __: FrameType | None) -> None:
        raise_if_pending()
        pending.set()

    with signal_handler(handle, signal.SIGINT):
        yield raise_if_pending


@contextmanager
def signal_handler(handler: Handler, *signals: signal.Signals) -> Iterator[None]:
    """Handles `signals` by `handler` inside the block; does nothing outside the main thread, where Python cannot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def write_stderr(line: str) -> None:
    """Writes `line` to stderr past Python's buffers, which a signal may have interrupted."""
    os.write(2, f"{line}\n".encode())
