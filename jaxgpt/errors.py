"""What a user sees when something is wrong: one sentence with the value and the place, and what to do next.

Every error has a code whose letter gives the exit status, so that scripts can tell a bad configuration from bad
data. `run` is the one place where errors become text and exit codes; it knows nothing about any command.
"""

import io
import signal
import sys
from collections.abc import Callable, Sequence

EXIT_STATUS = {"C": 2, "D": 3, "K": 4, "N": 5, "H": 6, "S": 7}
PREEMPTED = 75
INTERRUPTED = 130
GENTLER = "go on from the last checkpoint with a lower --optim.learning-rate, under a new --run.name with --fork"
FOR_A_GPU = (
    "pip install 'jaxgpt[cuda13]', or cuda12 for drivers below 580; python -m jaxgpt.doctor says what is missing"
)


class JaxgptError(Exception):
    """An error that its reader can mend.

    `code` is a letter and three digits: C config or command line, D data, K checkpoint, N not finite, H hang, S
    storage. `message` says what is wrong, with the value and the place; `help` says what to do next.
    """

    def __init__(self, code: str, message: str, help: str = "") -> None:
        super().__init__(code, message, help)
        self.code, self.message, self.help = code, message, help

    def __str__(self) -> str:
        text = f"error[{self.code}]: {printable(self.message)}"
        return f"{text}\n  help: {printable(self.help)}" if self.help else text

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS[self.code[0]]


class ConfigError(JaxgptError):
    """A configuration or command line that cannot be run (exit status 2)."""


class DataError(JaxgptError):
    """Token data that cannot be used (exit status 3)."""


class CheckpointError(JaxgptError):
    """A checkpoint or run folder that does not fit (exit status 4)."""


class NonFiniteError(JaxgptError):
    """A loss, or what a model says, that became NaN or infinite (exit status 5)."""


class StorageError(JaxgptError):
    """A disk or folder that cannot be used (exit status 7)."""


class Stopped(Exception):
    """The run was asked to stop, and everything that it had is saved. `status` is the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message, self.status = message, status


def printable(text: str) -> str:
    """`text` with control characters escaped, so that a file name cannot drive the reader's terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status. `--debug` shows tracebacks instead of sentences."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without our signs is no reason to say nothing
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # so it was while modules were imported
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main([argument for argument in arguments if argument != "--debug"])
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            raise
        return _report(error)
    return 0


def _report(error: BaseException) -> int:
    if isinstance(error, JaxgptError):
        return _say(str(error), error.exit_status)
    if isinstance(error, Stopped):
        return _say(error.message, error.status)
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        sys.stdout = None  # the reader of our output is gone: nothing left to flush to
        return 0
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return _say(str(StorageError("S009", f"{error.strerror}{place}", "mend this path and run again")), 7)
    raise error


def _say(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status
