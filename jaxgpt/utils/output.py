"""Standard output that may go away: its reader ends, its terminal closes, its disk fills."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class TolerantStream:
    """A text stream that goes silent when it cannot be written, with one warning if it is not stderr; never raises."""

    def __init__(self, stream: TextIO, *, warns: bool) -> None:
        self._stream = stream
        self._warns = warns

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:  # a ValueError, if the stream was closed
            self._silence(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._silence(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _silence(self, error: Exception) -> None:
        """Sends what is still to be written nowhere, also what Python flushes at its end."""
        if self._warns:
            self._warns = False
            reason = getattr(error, "strerror", None) or error
            print(f"warning: nothing is printed from here on: {reason}", file=sys.stderr)
        with suppress(OSError, ValueError):
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, self._stream.fileno())
            os.close(null_device)


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Inside the block, stdout and stderr that cannot be written, or were closed from the start, raise no error."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as null_device:  # for a stream that Python did not find open
        sys.stdout = TolerantStream(sys.stdout or null_device, warns=True)
        sys.stderr = TolerantStream(sys.stderr or null_device, warns=False)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # a full disk is noticed here, not when Python ends
            sys.stdout, sys.stderr = before
