"""One line that tells the user what a command does while nothing else is shown."""

import sys


def show_status(text: str) -> None:
    """Prints `text` on stderr if that is a terminal, so that piped output has nothing but results."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
