"""What a user sees, and what Ctrl-C does, while a command imports its libraries for seconds."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from jaxgpt.errors import INTERRUPTED
from jaxgpt.utils.signals import signal_handler, write_stderr


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Prints that `name` is loaded, if stderr is a terminal; Ctrl-C inside the block ends the process at once.

    An exception would not do: extension modules turn it into an error of their own.
    """
    if sys.stderr.isatty():
        print(f"loading {name} …", file=sys.stderr, flush=True)
    with signal_handler(_exit, signal.SIGINT):
        yield


def _exit(*_: object) -> None:
    write_stderr("interrupted")
    os._exit(INTERRUPTED)
