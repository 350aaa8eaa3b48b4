"""Shows a run to a person: a live panel on a terminal, nanoGPT's lines when the output is piped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from jaxgpt.config import Config
from jaxgpt.errors import visible_controls
from jaxgpt.training.panel import LivePanel
from jaxgpt.training.records import Display, Scores, StepRecord
from jaxgpt.utils.eta import Eta


class PlainConsole(Display):
    """Lines in nanoGPT's format, so that scripts which read it keep working; `time` excludes evaluation and saving."""

    def __init__(self, config: Config, out: TextIO) -> None:
        self._config = config
        self._out = out

    def close(self) -> None:
        self._out.flush()

    def step(self, record: StepRecord, remaining: Eta | None) -> None:
        if record.step % self._config.run.log_every == 0:
            mfu = "" if record.mfu is None else f", mfu {100 * record.mfu:.2f}%"
            self.print(f"iter {record.step}: loss {record.loss:.4f}, time {1000 * record.seconds:.2f}ms{mfu}")

    def scores(self, step: int, scores: Scores) -> None:
        val = f", val loss {scores.val.loss:.4f}" if scores.val else ""
        self.print(f"step {step}: train loss {scores.train.loss:.4f}{val}")

    def saved(self, step: int) -> None:
        self.print(f"saving checkpoint of step {step}")

    def print(self, text: str) -> None:
        print(visible_controls(text), file=self._out, flush=True)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, updated with (bytes done, bytes in total); nothing if stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def open_display(config: Config, out: TextIO | None = None) -> Display:
    """The live panel if `out` (by default stdout) is a terminal, else plain lines."""
    out = out or sys.stdout
    console = Console(file=out)
    return LivePanel(config, console) if console.is_terminal else PlainConsole(config, out)
