"""Errors for the user: one sentence with the value and where it is, what to do next, a code and an exit status.

`jaxgpt/error_codes.toml` lists every code with its class, exit status and documentation (docs/errors.md). `run` is the
one place where errors become text and exit statuses; it knows no command.
"""

import difflib
import errno
import io
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self

EXIT_STATUS = {"C": 2, "D": 3, "K": 4, "N": 5, "H": 6, "S": 7}  # by the first letter of the code
REPEAT_SECONDS = 0.05  # after which an interrupt that Python dropped is raised again
PREEMPTED = 75
INTERRUPTED = 130
KILLED = 128  # plus the number of the signal that ended the process at once
STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
KEPT_CONTROLS = "\n\t\u200c\u200d"  # the last two join or separate letters and emoji
LOWER_LR_HELP = "continue from the last checkpoint with a lower --optim.learning-rate: --run.name NEW --fork RUN"


class JaxgptError(Exception):
    """An error that the user can fix.

    `code` is a letter and three digits: C config or command line, D data, K checkpoint, N not finite, H hang and S
    storage.
    `message` says what is wrong, with the value and where it is; `help` says what to do next.
    """

    def __init__(self, code: str, message: str, help: str = "") -> None:
        super().__init__(code, message, help)
        self.code = code
        self.message = message
        self.help = help

    def __str__(self) -> str:
        text = f"error[{self.code}]: {printable(self.message)}"
        return f"{text}\n  help: {printable(self.help)}" if self.help else text

    @property
    def exit_status(self) -> int:
        """The exit status of a command that ends with this error."""
        return EXIT_STATUS[self.code[0]]

    def replace(self, *, message: str | None = None, help: str | None = None) -> Self:
        """The same error with another message or help."""
        new_message = self.message if message is None else message
        return type(self)(self.code, new_message, self.help if help is None else help)


class ConfigError(JaxgptError):
    """A configuration or command line that cannot be run (exit status 2)."""


class DataError(JaxgptError):
    """Token data that cannot be used (exit status 3)."""


class NoShardsError(DataError):
    """A folder without token shards (D002)."""


class NoLogError(DataError):
    """There is no run or log of that name (D043)."""


class CheckpointError(JaxgptError):
    """A checkpoint or run folder that does not fit (exit status 4)."""


class NonFiniteError(JaxgptError):
    """A loss, or a model's output, that became NaN or infinite (exit status 5); in training with its step, from 0."""

    def __init__(self, code: str, message: str, help: str = "", *, step: int | None = None) -> None:
        super().__init__(code, message, help)
        self.step = step


class HangError(JaxgptError):
    """A step that does not end (exit status 6)."""


class StorageError(JaxgptError):
    """A disk or folder that cannot be used (exit status 7)."""


class Stopped(Exception):
    """The run was asked to stop, and everything is saved. `status` is the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def cuda_install(requirement: str = "'jaxgpt[cuda13]'") -> str:
    """The command that installs JAX for a GPU."""
    return f"pip install {requirement}, or cuda12 for drivers below 580"


GPU_HELP = f"{cuda_install()}; python -m jaxgpt.doctor says what is missing"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """`did you mean 'train'? ` with the name that is most like `word`, or an empty string if none is."""
    close = nearest(word, names)
    return f"did you mean {close!r}? " if close else ""


def nearest(word: str, names: Iterable[str], similarity: float = 0.6) -> str | None:
    """The name that is most like `word`; None if none has that `similarity`, between 0 and 1."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=similarity)
    return close[0] if close else None


def printable(text: str) -> str:
    """`text` with control characters escaped, so that a file name cannot control the user's terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def visible_controls(text: str) -> str:
    """`text` of a model or a document for a terminal: line ends, tabs and joiners stay, other controls are escaped.

    These are ESC and the rest of C0 and C1, and the characters that change the direction of text.
    """
    return "".join(c.encode("unicode_escape").decode() if _controls_terminal(c) else c for c in text)


def _controls_terminal(character: str) -> bool:
    return character not in KEPT_CONTROLS and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command, prints its error if it has one, and returns its exit status.

    With `--debug` among the arguments errors keep their tracebacks; other exceptions than those for the user always do.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for locales without signs such as → and ±
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # jaxgpt/__init__.py sets it while modules are imported
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with _repeated_interrupts():
            main([argument for argument in arguments if argument != "--debug"])
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            raise
        return _report(error)
    return 0


@contextmanager
def _repeated_interrupts() -> Iterator[None]:
    """Raises a Ctrl-C again that Python dropped, with a traceback, in a destructor or a garbage collector's callback.

    JAX has such a callback, which runs often while JAX is imported.
    """
    previous = sys.unraisablehook

    def hook(event: "sys.UnraisableHookArgs") -> None:
        if event.exc_type is not KeyboardInterrupt:
            previous(event)
            return
        threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = previous


def _report(error: BaseException) -> int:
    """Prints an error for the user and returns its exit status; raises any other exception."""
    if isinstance(error, JaxgptError):
        return _print_error(str(error), error.exit_status)
    if isinstance(error, Stopped):
        return _print_error(printable(error.message), error.status)
    if isinstance(error, KeyboardInterrupt):
        return _print_error("interrupted", INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        sys.stdout = None  # nobody reads the output any more: nothing is left to flush
        return 0
    if isinstance(error, OSError) and is_storage_problem(error):
        path = f": {error.filename}" if error.filename else ""
        storage_error = StorageError("S009", f"{error.strerror}{path}", "fix this file, folder or disk, and run again")
        return _print_error(str(storage_error), storage_error.exit_status)
    raise error


def is_storage_problem(error: OSError) -> bool:
    """True for an error of a file or disk, which the user can fix; False for one of memory, or of a bug."""
    if error.strerror is None or error.errno == errno.ENOMEM:
        return False
    return error.filename is not None or error.errno in STORAGE_ERRNOS


def _print_error(text: str, status: int) -> int:
    with suppress(OSError, ValueError):  # stderr may be closed: the status says the rest
        print(text, file=sys.stderr)
    return status
