"""What a run measures, and where it goes: the log, TensorBoard and the reader's screen.

A step's metrics are fetched from the device only when the next step has been dispatched, so that the device never
waits for Python. `fetch` is the one place where the loop reads a device array.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.budget.devices import peak_flops
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.data.dataset import Split
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.errors import GENTLER, NonFiniteError
from jaxgpt.runs.log import RunLog, warn
from jaxgpt.training.optimizer import schedule
from jaxgpt.training.step import Metrics
from jaxgpt.utils.eta import Eta, estimate_eta


class StepRecord(NamedTuple):
    """One update: `step` counts the updates before it; the loss is the mean over the whole batch, in nats."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    tokens_per_second: float
    mfu: float | None
    epoch: float


class Score(NamedTuple):
    """Mean loss in nats per token over `windows` windows, its standard error, and the same in bits per byte."""

    loss: float
    standard_error: float
    windows: int
    bits_per_byte: float | None

    @classmethod
    def of(cls, losses: np.ndarray[Any, Any], tokens_per_byte: float | None = None) -> "Score":
        """The score of `losses`, means per window in nats: their scatter gives the error of their mean."""
        mean = float(np.mean(losses, dtype=np.float64))
        count = len(losses)
        error = float(np.std(losses, ddof=1, dtype=np.float64)) / math.sqrt(count) if count > 1 else math.nan
        return cls(mean, error, count, tokens_per_byte and mean / math.log(2) * tokens_per_byte)

    def __str__(self) -> str:
        bits = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.3f} bits per byte"
        return f"{self.loss:.4f} ± {self.standard_error:.4f}{bits}"


class Scores(NamedTuple):
    """The evaluation of a model; `val` is None where the data has no validation split."""

    train: Score
    val: Score | None

    @property
    def main(self) -> Score:
        """The score by which checkpoints are compared: validation's where there is any."""
        return self.val or self.train

    def flat(self) -> dict[str, float | int | None]:
        """`train_loss`, `val_loss`, `val_standard_error` and so on, for the log."""
        return {
            f"{name}_{field}": value
            for name, score in (("train", self.train), ("val", self.val))
            if score
            for field, value in score._asdict().items()
        }


class Display(Protocol):
    """What shows a run to a person while it runs."""

    def step(self, record: StepRecord, left: Eta | None) -> None: ...
    def scores(self, step: int, scores: Scores) -> None: ...
    def forecast(self, forecast: Forecast | None) -> None: ...
    def saved(self, step: int) -> None: ...


class Recorder:
    """Takes each step's device metrics, one step late, and tells log, TensorBoard and display."""

    def __init__(
        self, config: Config, log: RunLog, display: Display, split: Split, mesh: Mesh, tensorboard: Path
    ) -> None:
        self._config, self._log, self._display = config, log, display
        self._learning_rates = learning_rates(config)
        self._windows = split.windows(config.model.block_size)
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._peak = peak and peak * mesh.devices.size
        self._board: Any = _board(tensorboard) if config.run.tensorboard else None
        self._waiting: tuple[int, Metrics] | None = None
        self._clock = time.perf_counter()
        self._paces: list[float] = []
        self._paused = 0.0
        self._compiled = False

    def step(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of update `step`, just dispatched, and records those of the update before it."""
        before, self._waiting = self._waiting, (step, metrics)
        if before:
            self._record(*before)

    def flush(self) -> None:
        """Records the update that is still waiting; the device is idle then."""
        before, self._waiting = self._waiting, None
        if before:
            self._record(*before)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside (evaluation, saving) is not counted as training time."""
        self.flush()
        begun = time.perf_counter()
        yield
        self._clock = time.perf_counter()
        self._paused += self._clock - begun if self._paces else 0.0  # before the first pace it compiles as well

    def scores(self, step: int, scores: Scores) -> None:
        """Records an evaluation after `step` updates."""
        self._log.write("eval", step=step, **scores.flat())
        self._write_board(step, {f"eval/{name}": value for name, value in scores.flat().items()})
        self._display.scores(step, scores)

    def forecast(self, forecast: Forecast | None) -> None:
        """Shows the loss that is expected at the end."""
        self._display.forecast(forecast)

    def saved(self, step: int) -> None:
        self._log.write("save", step=step)
        self._display.saved(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            if self._board:
                self._board.close()

    def _record(self, step: int, metrics: Metrics) -> None:
        values = fetch(metrics)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        record = self._derive(step, float(values.loss), float(values.grad_norm), seconds)
        self._log.write("step", **record._asdict())
        self._write_board(step, {"train/loss": record.loss, "train/learning_rate": record.learning_rate})
        _check_finite(record)
        if self._compiled:
            self._paces.append(seconds)
        self._compiled = True
        self._display.step(record, self._left(step))

    def _left(self, step: int) -> Eta | None:
        overhead = self._paused / max(len(self._paces), 1)
        return estimate_eta(self._paces, self._config.run.steps - step - 1, overhead)

    def _derive(self, step: int, loss: float, grad_norm: float, seconds: float) -> StepRecord:
        tokens = self._config.tokens_per_step
        rate = tokens / seconds
        windows = (step + 1) * self._config.data.micro_batch * self._config.data.accum
        return StepRecord(
            step=step,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=float(self._learning_rates[step]),
            seconds=seconds,
            tokens_per_second=rate,
            mfu=self._peak and rate * flops_per_token(self._config.model) / self._peak,
            epoch=windows / self._windows,
        )

    def _write_board(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items() if self._board else ():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)


def learning_rates(config: Config) -> np.ndarray[Any, Any]:
    """The learning rate of each step, on the host: asked for one by one, each would wait for the device."""
    return np.asarray(jax.vmap(schedule(config.optim, config.run.steps))(np.arange(config.run.steps)))


def fetch(metrics: Any) -> Any:
    """The arrays of `metrics` on the host; waits for the step that makes them."""
    return jax.device_get(metrics)


def _check_finite(record: StepRecord) -> None:
    if not abs(record.loss) < float("inf") or not abs(record.grad_norm) < float("inf"):
        what = "loss" if not abs(record.loss) < float("inf") else "gradient norm"
        raise NonFiniteError(
            "N001",
            f"the {what} of step {record.step} is not finite (loss {record.loss}, norm {record.grad_norm})",
            GENTLER,
        )


def _board(folder: Path) -> Any:
    """A TensorBoard writer, or None where the extra is missing or, with a warning, where the folder refuses it."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    try:
        return SummaryWriter(str(folder))
    except OSError as error:
        warn(f"no TensorBoard files: {folder}: {error.strerror}")
        return None
