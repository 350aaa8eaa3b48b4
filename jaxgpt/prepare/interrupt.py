"""Ctrl-C between two steps of the work: in the midst of one, a library may make another error of the interrupt."""

import signal
import threading
from types import FrameType
from typing import Self


class Patience:
    """A context in which the first Ctrl-C is noted, and raised by `look`; a second one is raised at once."""

    def __init__(self) -> None:
        self._noted = False
        self._before: object = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]  # whatever signal.signal gave us

    def _note(self, _: int, __: FrameType | None) -> None:
        if self._noted:
            raise KeyboardInterrupt
        self._noted = True

    def look(self) -> None:
        """Raises `KeyboardInterrupt` if Ctrl-C was pressed."""
        if self._noted:
            raise KeyboardInterrupt
