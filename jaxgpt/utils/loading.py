"""What a user sees, and what Ctrl-C does, while a command imports its libraries for seconds."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from jaxgpt.errors import INTERRUPTED
from jaxgpt.utils.signals import signal_handler, write_stderr

CTRL_C = {signal.SIGINT: INTERRUPTED}


@contextmanager
def loading(name: str, statuses: Mapping[signal.Signals, int] = CTRL_C, text: str = "interrupted") -> Iterator[None]:
    """Prints that `name` is loaded, if stderr is a terminal.

    A signal of `statuses`, by default Ctrl-C, ends the process at once, with that status and `text` on stderr. An
    exception would not do: extension modules turn it into an error of their own.
    """
    if sys.stderr.isatty():
        print(f"loading {name} …", file=sys.stderr, flush=True)

    def leave(number: int, _: object) -> None:
        write_stderr(text)
        os._exit(statuses[signal.Signals(number)])

    with signal_handler(leave, *statuses):
        yield
