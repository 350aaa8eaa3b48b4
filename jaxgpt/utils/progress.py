"""Progress of long jobs: a bar on a terminal, elsewhere an occasional line."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxgpt.errors import printable
from jaxgpt.utils.formatting import format_bytes, pluralize

BAR_SECONDS = 0.1  # between updates of a bar
LINE_SECONDS = 10.0  # between lines where there is no terminal

_active: list[Progress] = []  # bars on the terminal, which can show one display at a time


class ProgressReporter:
    """Shows a job's progress in documents, bytes of text and tokens: a bar on a terminal, else occasional lines."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = _progress_bar(self._console)
        self._task = self._bar.add_task("", visible=False, figures="")
        self.start_stage("")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
            _active.append(self._bar)
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()
            _active.remove(self._bar)

    def start_stage(self, name: str, total: int | None = None, done: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Starts a stage of `total` bytes of text, None if unknown.

        `done` are the documents, bytes and tokens from before an interruption.
        """
        self._stage = name
        self._total = total
        self._initial = done
        self._documents, self._bytes, self.tokens = done
        self._start = self._last_shown = time.monotonic()
        self._bar.reset(self._task, description=name, total=total, visible=bool(name), figures="")

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Since the start of the stage."""
        return (self.tokens - self._initial[2]) / self.seconds

    def advance(self, documents: int, size: int, tokens: int = 0) -> None:
        """Adds documents, bytes of text and tokens, and shows them from time to time."""
        self._documents += documents
        self._bytes += size
        self.tokens += tokens
        is_terminal = self._console.is_terminal
        now = time.monotonic()
        if now - self._last_shown <= (BAR_SECONDS if is_terminal else LINE_SECONDS):
            return
        self._last_shown = now
        if is_terminal:
            self._bar.update(self._task, completed=self._bytes, figures=self._figures())
        else:
            self.print(f"{self._stage}: {self._figures()}{self._time_left()}")

    def _figures(self) -> str:
        documents = pluralize(self._documents, "document")
        if not self.tokens:
            return f"{documents}, {format_bytes(self._bytes)}"
        return f"{documents}, {self.tokens / 1e6:,.1f} M tokens, {self.tokens_per_second:,.0f} tokens/s"

    def _time_left(self) -> str:
        new_bytes = self._bytes - self._initial[1]
        if not self._total or new_bytes <= 0:
            return ""
        return f", {self.seconds * max(self._total - self._bytes, 0) / new_bytes:,.0f} s left"

    def print(self, text: str) -> None:
        """Prints `text` above the bar."""
        self._console.print(printable(text), markup=False)


class DownloadProgress:
    """A bar for the download of one file, `done` bytes of which exist already; one line where there is no terminal.

    Appears below the bar of an active `ProgressReporter`.
    """

    def __init__(self, name: str, size: int, done: int = 0) -> None:
        self._console = Console(highlight=False, soft_wrap=True, stderr=True)
        self._is_own_bar = not _active
        self._bar = _progress_bar(self._console) if self._is_own_bar else _active[-1]
        self._name = printable(name)
        self._size = size
        self._done = done

    def __enter__(self) -> Self:
        self._task = self._bar.add_task(self._name, total=self._size, completed=self._done, figures=self._figures())
        if self._is_own_bar and self._console.is_terminal:
            self._bar.start()
        elif self._is_own_bar:
            self._console.print(f"fetching {self._name}: {self._figures()}", markup=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.remove_task(self._task)
        if self._is_own_bar and self._console.is_terminal:
            self._bar.stop()

    def advance(self, count: int) -> None:
        self._done += count
        self._bar.update(self._task, completed=self._done, figures=self._figures())

    def _figures(self) -> str:
        return f"{format_bytes(self._done)} of {format_bytes(self._size)}" if self._done else format_bytes(self._size)


def _progress_bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}", markup=False), BarColumn(12), TextColumn("{task.fields[figures]}")
    return Progress(*columns, TimeRemainingColumn(compact=True), console=console, transient=True)
