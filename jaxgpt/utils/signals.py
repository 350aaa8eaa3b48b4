"""Signals that stop a run, at a point where nothing is lost: after a training step, or between steps of other work."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from jaxgpt.errors import INTERRUPTED, KILLED, PREEMPTED, REPEAT_SECONDS, Stopped

STATUSES = {"SIGINT": INTERRUPTED, "SIGTERM": PREEMPTED, "SIGHUP": PREEMPTED, "SIGUSR1": PREEMPTED}
EXIT_STATUS = {signal.Signals[name]: status for name, status in STATUSES.items() if hasattr(signal, name)}
NOTHING_LOST = "stopped before the first step; nothing is lost"
AT_ONCE = "stopped at once by a second signal; the same command resumes from the last checkpoint"
MAIN_THREAD_SECONDS = 1.0  # that the main thread has to run its signal handler before the watcher ends the process
GRACE_SECONDS = 1.0  # signals within this time of the first one are the same request, delivered more than once
CLOSE_SECONDS = 1.0  # to leave the terminal in order before the process ends at once

Handler = Callable[[int, FrameType | None], Any]


class GracefulShutdown:
    """A context in which a signal of `EXIT_STATUS` asks a run to stop.

    Until `enable_save`, there is nothing to save, and the first signal raises `Stopped` in the main thread. A main
    thread that XLA keeps busy compiling, for minutes perhaps, runs no signal handler: a watcher thread then calls
    `on_abort`, to leave the terminal in order, and ends the process. After `enable_save`, the first signal only sets
    `exit_status`, the status to exit with once the current step is done and saved, and calls `notify`, from a signal
    handler, with a sentence for the user.

    Process managers may send a signal twice: others within `GRACE_SECONDS` of the first are ignored. A later one ends
    the process at once with 128 plus its number, from the watcher thread, whatever the main thread is waiting for. The
    checkpoints stay valid, since each gets its name only when it is complete.
    """

    def __init__(
        self,
        on_abort: Callable[[], object] = lambda: None,
        agree: Callable[[int | None], int | None] = lambda status: status,
    ) -> None:
        self.exit_status: int | None = None
        self.on_abort = on_abort
        self._agree = agree
        self._is_agreed = False
        self.notify: Callable[[str], object] = write_stderr
        self._save_enabled = False
        self._main_thread_responded = threading.Event()
        self._first_arrival: float | None = None

    def enable_save(self) -> None:
        """From now on there is something to save, so a signal waits for the end of the step."""
        self._save_enabled = True

    def is_requested(self) -> bool:
        """Whether a signal has asked the run to stop, by `agree`: this process, or one of those that call this too."""
        if not self._is_agreed:
            agreed = self._agree(self.exit_status)
            self._is_agreed = agreed is not None
            self.exit_status = agreed if self.exit_status is None else self.exit_status
        return self._is_agreed

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
            with signal_handler(self._handle, *heard_signals()):
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
            return  # the watcher ends the process, if this is another request
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
        self._is_agreed = False
        self._first_arrival = None
        self._main_thread_responded.clear()
        threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), self._number)).start()

    def _watch(self, reader: socket.socket) -> None:
        """Runs in the watcher thread: ends the process at a second request, or where the main thread cannot respond."""
        with reader:
            while number := reader.recv(1):
                if number[0] in EXIT_STATUS:
                    self._arrived(signal.Signals(number[0]), time.monotonic())

    def _arrived(self, number: signal.Signals, now: float) -> None:
        first = self._first_arrival
        if first is None:
            self._first_arrival = now
            if not self._save_enabled and not self._main_thread_responded.wait(MAIN_THREAD_SECONDS):
                end_process(NOTHING_LOST, EXIT_STATUS[number], self.on_abort)
        elif now - first > GRACE_SECONDS:
            end_process(AT_ONCE, KILLED + number, self.on_abort)


def end_process(text: str, status: int, on_abort: Callable[[], object]) -> None:
    """Prints `text` and ends the process; `on_abort` leaves the terminal in order, unless something holds it."""

    def leave_terminal() -> None:
        with suppress(Exception):
            on_abort()
        write_stderr(text)

    closer = threading.Thread(target=leave_terminal, daemon=True)
    closer.start()
    closer.join(CLOSE_SECONDS)
    os._exit(status)


def heard_signals() -> list[signal.Signals]:
    """The signals that stop a run; without SIGHUP under nohup, which ignores it: the run continues."""
    hangup = getattr(signal, "SIGHUP", None)
    ignored = hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN
    return [number for number in EXIT_STATUS if not (ignored and number == hangup)]


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
    """Writes `line` to stderr past Python's buffers, which a signal may have interrupted; nothing if it is closed."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
