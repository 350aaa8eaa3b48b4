"""Asking a run to stop: the first Ctrl-C or SIGTERM ends it after the current step, a second one at once."""

import signal
import sys
import threading
from types import FrameType
from typing import Self

from jaxgpt.errors import INTERRUPTED, PREEMPTED

STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: PREEMPTED}


class StopRequest:
    """A context in which SIGINT and SIGTERM are noted rather than raised; `status` is then the exit status to use."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STATUS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # whatever signal.signal gave us

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.status is not None:
            raise KeyboardInterrupt
        self.status = STATUS[signal.Signals(number)]
        print("stopping after this step, then saving; once more stops at once", file=sys.stderr)
