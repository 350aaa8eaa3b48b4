"""A terminal while a display is redrawn on it: the display survives a resize, and keys do not move it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import ConsoleRenderable
from rich.control import Control
from rich.live import Live

LOCAL_MODES = 3  # the index in termios's list of attributes


class ResizableLive(Live):
    """A live display that clears the screen when the terminal was resized, which breaks the lines drawn before."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._size = self.console.size

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """The renderables with what moves the cursor to the start of the display before them."""
        shown = super().process_renderables(renderables)
        size = self.console.size
        if size == self._size:
            return shown
        self._size = size
        return [Control.home(), Control.clear(), *shown[1:]]


@contextmanager
def echo_off() -> Iterator[None]:
    """Keys are not echoed inside the block; does nothing without a terminal, or in the background."""
    was_set = _set_echo(False)
    try:
        yield
    finally:
        if was_set:
            _set_echo(True)


if sys.platform == "win32":

    def _set_echo(enabled: bool) -> bool:
        return False

else:
    import termios

    def _set_echo(enabled: bool) -> bool:
        """Whether the terminal of stdin could be set. A background process is not allowed to: it would be suspended."""
        try:
            terminal = sys.stdin.fileno()
            if os.tcgetpgrp(terminal) != os.getpgrp():
                return False
            attributes = termios.tcgetattr(terminal)
        except (OSError, ValueError, AttributeError):  # stdin is closed or not a terminal
            return False
        modes = attributes[LOCAL_MODES]
        attributes[LOCAL_MODES] = modes | termios.ECHO if enabled else modes & ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, attributes)
        return True
