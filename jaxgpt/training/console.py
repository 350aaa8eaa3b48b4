"""What a person sees of a run: a live panel on a terminal, nanoGPT's lines when the output is piped."""

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxgpt.config import Config
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.runs.log import warn
from jaxgpt.training.metrics import Display, Scores, StepRecord
from jaxgpt.utils.eta import Eta
from jaxgpt.utils.formatting import format_duration

BARS = "▁▂▃▄▅▆▇█"


class Screen(Display, Protocol):
    """What shows the run, and what is said below it; `live` if it shows the forecast."""

    live: bool

    def say(self, text: str) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: Any) -> None: ...


class Lines:
    """nanoGPT's line shapes, so that scripts which read them keep working; `time` excludes evaluation and saving."""

    live = False

    def __init__(self, config: Config, out: TextIO) -> None:
        self._config, self._out = config, out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._out.flush()

    def step(self, record: StepRecord, left: Eta | None) -> None:
        if record.step % self._config.run.log_every == 0:
            mfu = "" if record.mfu is None else f", mfu {100 * record.mfu:.2f}%"
            self.say(f"iter {record.step}: loss {record.loss:.4f}, time {1000 * record.seconds:.2f}ms{mfu}")

    def scores(self, step: int, scores: Scores) -> None:
        val = f", val loss {scores.val.loss:.4f}" if scores.val else ""
        self.say(f"step {step}: train loss {scores.train.loss:.4f}{val}")

    def forecast(self, forecast: Forecast | None) -> None:
        """nanoGPT has no line for it."""

    def saved(self, step: int) -> None:
        self.say(f"saving checkpoint of step {step}")

    def say(self, text: str) -> None:
        try:
            print(text, file=self._out, flush=True)
        except OSError as error:  # whoever read our output is gone, or its disk is full: the run goes on
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._out.fileno())
            warn(f"nothing is printed from here on: {error.strerror}")


@contextmanager
def checking(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr for bytes done and bytes in all; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def open_display(config: Config, out: TextIO | None = None) -> Screen:
    """The panel where `out` is a terminal, lines elsewhere."""
    out = out or sys.stdout
    console = Console(file=out)
    return LivePanel(config, console) if console.is_terminal else Lines(config, out)


class LivePanel:
    """One panel that is redrawn in place: progress, losses, speed, and when the run ends."""

    live = True

    def __init__(self, config: Config, console: Console) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=600)
        self._record: StepRecord | None = None
        self._left: Eta | None = None
        self._scores: tuple[int, Scores] | None = None
        self._best: tuple[int, float] | None = None
        self._forecast: Forecast | None = None
        self._saved: int | None = None
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the panel as it is now, and the terminal as it was before."""
        self._live.stop()

    def step(self, record: StepRecord, left: Eta | None) -> None:
        self._record, self._left = record, left
        self._losses.append(record.loss)

    def scores(self, step: int, scores: Scores) -> None:
        self._scores = (step, scores)
        loss = scores.main.loss
        if self._best is None or loss < self._best[1]:
            self._best = (step, loss)

    def forecast(self, forecast: Forecast | None) -> None:
        self._forecast = forecast

    def saved(self, step: int) -> None:
        self._saved = step

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)

    def _render(self) -> Panel:
        done, steps = (self._record.step + 1 if self._record else 0), self._config.run.steps
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
            ("ends in", _span(self._left)),
        ]
        if self._forecast is not None:
            low, high = self._forecast.low80, self._forecast.high80
            expected = f"{self._forecast.mean:.4f} at the end   (80 %: {low:.4f} to {high:.4f})"
            rows.insert(1 + len(self._score_rows()), ("forecast", expected))
        if self._saved is not None:
            rows.append(("saved", f"step {self._saved:,}"))
        return rows

    def _score_rows(self) -> list[tuple[str, str]]:
        """The last evaluation, and how it stands to the best one that this process has seen."""
        if self._scores is None:
            return []
        step, scores = self._scores
        name, score, best = "val" if scores.val else "train", scores.main, self._best
        compared = f"   best {best[1]:.4f} at step {best[0]:,}" if best and best[0] != step else ""
        rows = [(name, f"{score.loss:.4f} ± {score.standard_error:.4f} at step {step:,}{compared}")]
        return rows if score.bits_per_byte is None else [*rows, ("", f"{score.bits_per_byte:.3f} bits per byte")]


def sparkline(values: Iterable[float], width: int = 60) -> str:
    """The last `values` as one line of bars, each the mean of its share."""
    numbers = [value for value in values if math.isfinite(value)]
    if len(numbers) < 2:
        return ""
    size = -(-len(numbers) // width)
    means = [sum(part) / len(part) for part in (numbers[i : i + size] for i in range(0, len(numbers), size))]
    low, high = min(means), max(means)
    return "".join(BARS[int(7 * (mean - low) / (high - low or 1))] for mean in means)


def _span(left: Eta | None) -> str:
    return (
        "…"
        if left is None
        else f"{format_duration(left.seconds)}   (80 %: {format_duration(left.low)} to {format_duration(left.high)})"
    )
