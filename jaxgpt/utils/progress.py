"""How far a long job is: a bar on a terminal, elsewhere a line now and then."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxgpt.errors import printable
from jaxgpt.utils.formatting import format_bytes, pluralize

LINE_SECONDS = 10.0  # between lines of progress where there is no terminal

_shown: list[Progress] = []  # the bars on the terminal: one display at a time can be there


class ProgressReporter:
    """Progress: a bar on a terminal, elsewhere a line now and then. Counts documents, bytes of text and tokens."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = _bar(self._console)
        self._task = self._bar.add_task("", visible=False, figures="")
        self.begin("")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
            _shown.append(self._bar)
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()
            _shown.remove(self._bar)

    def begin(self, what: str, total: int | None = None, done: tuple[int, int, int] = (0, 0, 0)) -> None:
        """A new stage of `total` bytes of text, None if that is not known yet.

        `done` are documents, bytes and tokens from before an interruption.
        """
        self._what, self._total, self._done = what, total, done
        self._documents, self._bytes, self.tokens = done
        self._began = self._said = time.monotonic()
        self._bar.reset(self._task, description=what, total=total, visible=bool(what), figures="")

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._began, 1e-9)

    @property
    def rate(self) -> float:
        """Tokens per second since the stage began."""
        return (self.tokens - self._done[2]) / self.seconds

    def advance(self, documents: int, size: int, tokens: int = 0) -> None:
        self._documents, self._bytes, self.tokens = (
            self._documents + documents,
            self._bytes + size,
            self.tokens + tokens,
        )
        now = time.monotonic()
        if self._console.is_terminal and now - self._said > 0.1:
            self._said = now
            self._bar.update(self._task, completed=self._bytes, figures=self._figures())
        elif not self._console.is_terminal and now - self._said > LINE_SECONDS:
            self._said = now
            self.say(f"{self._what}: {self._figures()}{self._left()}")

    def _figures(self) -> str:
        read = pluralize(self._documents, "document")
        if not self.tokens:
            return f"{read}, {format_bytes(self._bytes)}"
        return f"{read}, {self.tokens / 1e6:,.1f} M tokens, {self.rate:,.0f} tokens/s"

    def _left(self) -> str:
        fresh = self._bytes - self._done[1]
        if not self._total or fresh <= 0:
            return ""
        return f", {self.seconds * max(self._total - self._bytes, 0) / fresh:,.0f} s left"

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False)


class DownloadProgress:
    """A bar for one file that is fetched, `done` bytes of which are here; where there is no terminal, a line.

    While a `ProgressReporter` is shown, the bar stands under it.
    """

    def __init__(self, name: str, size: int, done: int = 0) -> None:
        self._console = Console(highlight=False, soft_wrap=True, stderr=True)
        self._bar = _shown[-1] if _shown else _bar(self._console)
        self._own = not _shown
        self._name, self._size, self._done = printable(name), size, done

    def __enter__(self) -> Self:
        self._task = self._bar.add_task(self._name, total=self._size, completed=self._done, figures=self._figures())
        if self._own and self._console.is_terminal:
            self._bar.start()
        elif self._own:
            self._console.print(f"fetching {self._name}: {self._figures()}", markup=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.remove_task(self._task)
        if self._own and self._console.is_terminal:
            self._bar.stop()

    def advance(self, count: int) -> None:
        self._done += count
        self._bar.update(self._task, completed=self._done, figures=self._figures())

    def _figures(self) -> str:
        return f"{format_bytes(self._done)} of {format_bytes(self._size)}" if self._done else format_bytes(self._size)


def _bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}", markup=False), BarColumn(12), TextColumn("{task.fields[figures]}")
    return Progress(*columns, TimeRemainingColumn(compact=True), console=console, transient=True)
