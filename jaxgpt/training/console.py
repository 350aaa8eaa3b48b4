"""Shows a run to a person: a live panel on a terminal, nanoGPT's lines when the output is piped."""

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxgpt.config import Config
from jaxgpt.runs.log import warn
from jaxgpt.training.records import Display, LossForecast, Scores, StepRecord
from jaxgpt.utils.eta import Eta
from jaxgpt.utils.formatting import format_duration

BARS = "▁▂▃▄▅▆▇█"


class PlainConsole:
    """Lines in nanoGPT's format, so that scripts which read it keep working; `time` excludes evaluation and saving."""

    live = False

    def __init__(self, config: Config, out: TextIO) -> None:
        self._config, self._out = config, out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._out.flush()

    def step(self, record: StepRecord, remaining: Eta | None) -> None:
        if record.step % self._config.run.log_every == 0:
            mfu = "" if record.mfu is None else f", mfu {100 * record.mfu:.2f}%"
            self.print(f"iter {record.step}: loss {record.loss:.4f}, time {1000 * record.seconds:.2f}ms{mfu}")

    def scores(self, step: int, scores: Scores) -> None:
        val = f", val loss {scores.val.loss:.4f}" if scores.val else ""
        self.print(f"step {step}: train loss {scores.train.loss:.4f}{val}")

    def forecast(self, forecast: LossForecast | None) -> None:
        """Prints nothing: nanoGPT has no line for it."""

    def saved(self, step: int) -> None:
        self.print(f"saving checkpoint of step {step}")

    def print(self, text: str) -> None:
        try:
            print(text, file=self._out, flush=True)
        except OSError as error:  # the reader of the output is gone, or the disk is full: the run continues
            with open(os.devnull, "w") as null_device:
                os.dup2(null_device.fileno(), self._out.fileno())
            warn(f"nothing is printed from here on: {error.strerror}")


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


class LivePanel:
    """A panel on a terminal, redrawn in place: progress, losses, speed and time remaining."""

    live = True

    def __init__(self, config: Config, console: Console) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=600)
        self._record: StepRecord | None = None
        self._remaining: Eta | None = None
        self._scores: tuple[int, Scores] | None = None
        self._best: tuple[int, float] | None = None
        self._forecast: LossForecast | None = None
        self._saved: int | None = None
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops redrawing: the panel stays, and the terminal is as it was before."""
        self._live.stop()

    def step(self, record: StepRecord, remaining: Eta | None) -> None:
        self._record = record
        self._remaining = remaining
        self._losses.append(record.loss)

    def scores(self, step: int, scores: Scores) -> None:
        self._scores = (step, scores)
        loss = scores.main.loss
        if self._best is None or loss < self._best[1]:
            self._best = (step, loss)

    def forecast(self, forecast: LossForecast | None) -> None:
        self._forecast = forecast

    def saved(self, step: int) -> None:
        self._saved = step

    def print(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)

    def _render(self) -> Panel:
        done = self._record.step + 1 if self._record else 0
        steps = self._config.run.steps
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_row(f"step {done:,} of {steps:,}", ProgressBar(steps, done), f"{100 * done / steps:.1f} %")
        curve = [Text(sparkline(self._losses))] if len(self._losses) > 1 else []
        return Panel(Group(head, self._figures(), *curve), title=self._config.run.name)

    def _figures(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, value in self._rows():
            table.add_row(Text(name, style="dim"), Text(value))
        return table

    def _rows(self) -> list[tuple[str, str]]:
        if self._record is None:
            return [*self._score_rows(), ("now", "compiling the first step …" if self._scores else "compiling …")]
        record = self._record
        mfu = "" if record.mfu is None else f"   MFU {100 * record.mfu:.1f} % of this device"
        rows = [
            ("loss", f"{record.loss:.4f}   gradient norm {record.grad_norm:.2f}   lr {record.learning_rate:.2e}"),
            *self._score_rows(),
            ("speed", f"{record.tokens_per_second:,.0f} tokens/s   {1000 * record.seconds:,.0f} ms per step{mfu}"),
            ("data", f"epoch {record.epoch:.2f}   {(record.step + 1) * self._config.tokens_per_step:,} tokens"),
            ("ends in", _format_remaining(self._remaining)),
        ]
        if self._forecast is not None:
            low, high = self._forecast.low80, self._forecast.high80
            expected = f"{self._forecast.mean:.4f} at the end   (80 %: {low:.4f} to {high:.4f})"
            rows.insert(1 + len(self._score_rows()), ("forecast", expected))
        if self._saved is not None:
            rows.append(("saved", f"step {self._saved:,}"))
        return rows

    def _score_rows(self) -> list[tuple[str, str]]:
        """The latest evaluation, and the best one since this process started."""
        if self._scores is None:
            return []
        step, scores = self._scores
        name = "val" if scores.val else "train"
        score = scores.main
        best = self._best
        best_text = f"   best {best[1]:.4f} at step {best[0]:,}" if best and best[0] != step else ""
        rows = [(name, f"{score.loss:.4f} ± {score.standard_error:.4f} at step {step:,}{best_text}")]
        return rows if score.bits_per_byte is None else [*rows, ("", f"{score.bits_per_byte:.3f} bits per byte")]


def sparkline(values: Iterable[float], width: int = 60) -> str:
    """The finite `values` as one line of at most `width` bars, each the mean of equally many values."""
    numbers = [value for value in values if math.isfinite(value)]
    if len(numbers) < 2:
        return ""
    size = -(-len(numbers) // width)
    chunks = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    means = [sum(chunk) / len(chunk) for chunk in chunks]
    low = min(means)
    high = max(means)
    return "".join(BARS[int(7 * (mean - low) / (high - low or 1))] for mean in means)


def _format_remaining(remaining: Eta | None) -> str:
    if remaining is None:
        return "…"
    seconds, low, high = (format_duration(value) for value in remaining)
    return f"{seconds}   (80 %: {low} to {high})"
