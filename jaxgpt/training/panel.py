"""The live panel of a run on a terminal: progress, losses with their curve, speed and time remaining."""

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import Any, Self

from rich.console import Console, ConsoleRenderable, Group
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxgpt.config import Config
from jaxgpt.errors import visible_controls
from jaxgpt.training.loss_chart import loss_chart
from jaxgpt.training.records import Display, LossForecast, Scores, StepRecord
from jaxgpt.training.terminal import ResizableLive, echo_off
from jaxgpt.utils.eta import Eta
from jaxgpt.utils.formatting import format_duration

MAX_POINTS = 4096  # training losses kept for the curve; every second one is dropped when there are more
MAX_CHART_HEIGHT = 24
FRAME_WIDTH = 4  # characters: the panel's border and padding, left and right
FRAME_HEIGHT = 4  # lines: the border, the progress bar, and a free line below the panel


class LivePanel(Display):
    """A panel that is redrawn in place, as large as the terminal allows."""

    live = True

    def __init__(self, config: Config, console: Console) -> None:
        self._config = config
        self._console = console
        self._losses: dict[int, float] = {}
        self._evaluations: dict[int, float] = {}
        self._record: StepRecord | None = None
        self._remaining: Eta | None = None
        self._scores: tuple[int, Scores] | None = None
        self._forecast: LossForecast | None = None
        self._saved: int | None = None
        self._notice = ""
        self._live = ResizableLive(console=console, refresh_per_second=4, get_renderable=self._render)
        self._terminal = ExitStack()

    def __enter__(self) -> Self:
        self._terminal.enter_context(echo_off())
        self._live.start()
        return self

    def close(self) -> None:
        """Stops redrawing: the panel stays, and the terminal is as it was before."""
        self._notice = ""
        self._live.stop()
        self._terminal.close()

    def restore(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            with suppress(KeyError, TypeError):  # a damaged line costs only that line
                self._restore(record)

    def _restore(self, record: dict[str, Any]) -> None:
        if record["kind"] == "step" and isinstance(record["loss"], float):
            self._add_loss(record["step"], record["loss"])
        elif record["kind"] == "eval":
            self.scores(record["step"], Scores.from_record(record))
        elif record["kind"] == "save":
            self._saved = record["step"]

    def step(self, record: StepRecord, remaining: Eta | None) -> None:
        self._record = record
        self._remaining = remaining
        self._add_loss(record.step, record.loss)

    def scores(self, step: int, scores: Scores) -> None:
        self._scores = (step, scores)
        self._evaluations[step] = scores.main.loss

    def forecast(self, forecast: LossForecast | None) -> None:
        self._forecast = forecast

    def saved(self, step: int) -> None:
        self._saved = step

    def notify(self, text: str) -> None:
        """Shows `text` at the next redraw: a signal handler must not print, as it may interrupt one."""
        self._notice = text

    def print(self, text: str) -> None:
        self._console.print(visible_controls(text), highlight=False, markup=False)

    def _add_loss(self, step: int, loss: float) -> None:
        losses = self._losses
        losses[step] = loss
        if len(losses) > MAX_POINTS:
            self._losses = dict(list(losses.items())[::2])

    def _render(self) -> Panel:
        done = self._record.step + 1 if self._record else max(self._losses, default=-1) + 1
        steps = self._config.run.steps
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_row(f"step {done:,} of {steps:,}", ProgressBar(steps, done), f"{100 * done / steps:.1f} %")
        rows = self._rows()
        parts: list[ConsoleRenderable] = [head, _two_columns(rows)]
        if self._notice:
            parts.insert(0, Text(self._notice, style="bold yellow"))
        width, height = self._console.size
        chart_height = min(height - FRAME_HEIGHT - len(rows) - len(parts) + 2, MAX_CHART_HEIGHT)
        chart = loss_chart(self._losses, self._evaluations, width - FRAME_WIDTH, chart_height)
        return Panel(Group(*parts, *([chart] if chart else [])), title=self._config.run.name)

    def _rows(self) -> list[tuple[str, str]]:
        if self._record is None:
            compiling = "compiling the first step …" if self._scores else "compiling …"
            return [*self._score_rows(), *self._forecast_row(), ("now", compiling)]
        record = self._record
        mfu = "" if record.mfu is None else f"   MFU {100 * record.mfu:.1f} % of this device"
        rows = [
            ("loss", f"{record.loss:.4f}   gradient norm {record.grad_norm:.2f}   lr {record.learning_rate:.2e}"),
            *self._score_rows(),
            *self._forecast_row(),
            ("speed", f"{record.tokens_per_second:,.0f} tokens/s   {1000 * record.seconds:,.0f} ms per step{mfu}"),
            ("data", f"epoch {record.epoch:.2f}   {(record.step + 1) * self._config.tokens_per_step:,} tokens"),
            ("ends in", _format_remaining(self._remaining)),
        ]
        if self._saved is not None:
            rows.append(("saved", f"step {self._saved:,}"))
        return rows

    def _score_rows(self) -> list[tuple[str, str]]:
        """The latest evaluation, and the best one."""
        if self._scores is None:
            return []
        step, scores = self._scores
        name = "val" if scores.val else "train"
        score = scores.main
        best_step = min(self._evaluations, key=lambda step: self._evaluations[step])
        best = f"   best {self._evaluations[best_step]:.4f} at step {best_step:,}" if best_step != step else ""
        rows = [(name, f"{score.loss:.4f} ± {score.standard_error:.4f} at step {step:,}{best}")]
        return rows if score.bits_per_byte is None else [*rows, ("", f"{score.bits_per_byte:.3f} bits per byte")]

    def _forecast_row(self) -> list[tuple[str, str]]:
        forecast = self._forecast
        if forecast is None:
            return []
        interval = f"(80 %: {forecast.low80:.4f} to {forecast.high80:.4f})"
        return [("forecast", f"{forecast.mean:.4f} at the end   {interval}")]


def _two_columns(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value, no_wrap=True, overflow="ellipsis"))
    return table


def _format_remaining(remaining: Eta | None) -> str:
    if remaining is None:
        return "…"
    seconds, low, high = (format_duration(value) for value in remaining)
    return f"{seconds}   (80 %: {low} to {high})"
