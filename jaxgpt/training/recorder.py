"""Writes a run's metrics to the log, the trackers and the display, one step late.

A step's metrics are fetched from the device only when the next step has been dispatched, so that the device never
waits for Python. `fetch` is the only place where the training loop reads a device array.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import jax

from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.config.schedule import learning_rates
from jaxgpt.errors import LOWER_LR_HELP, NonFiniteError
from jaxgpt.runs.log import RunLog, warn
from jaxgpt.runs.rewinds import Rewinds
from jaxgpt.training.records import Display, LossForecast, Scores, StepRecord
from jaxgpt.training.step import Metrics
from jaxgpt.training.tracker import Tracker
from jaxgpt.training.watchdog import Watchdog
from jaxgpt.utils.eta import Eta, estimate_eta

MAX_SKIPS = 10  # steps in a row whose loss or gradient is not finite: the run is lost
TRACKED_STEP_VALUES = ("loss", "learning_rate", "grad_norm", "tokens_per_second")


class PendingStep(NamedTuple):
    """A dispatched step, whose metrics the device may still be computing."""

    step: int
    metrics: Metrics


class Recorder:
    """Takes the device metrics of each step and records them when the next step has been dispatched.

    `epoch_windows` is the number of windows of the train split; `peak_flops` is the peak of all devices together in
    FLOP/s, None where it is not known. `rewinds` tells which batch a step reads. The recorder closes the `trackers`.
    """

    def __init__(
        self,
        config: Config,
        log: RunLog,
        display: Display,
        *,
        epoch_windows: int,
        peak_flops: float | None,
        watchdog: Watchdog,
        rewinds: Rewinds | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._config = config
        self._log = log
        self._display = display
        self._learning_rates = learning_rates(config.optim, config.run.steps)
        self._epoch_windows = epoch_windows
        self._peak_flops = peak_flops
        self._windows = config.data.micro_batch * config.data.accum  # of a batch
        self._watchdog = watchdog
        self._rewinds = rewinds or Rewinds()
        self._trackers = trackers
        self._pending: PendingStep | None = None
        self._clock = time.perf_counter()
        self._step_seconds: list[float] = []
        self._paused_seconds = 0.0
        self._compiled = False
        self._skips = 0
        self._skips_in_a_row = 0

    def step(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of step `step`, just dispatched, and records those of the step before it."""
        previous = self._pending
        self._pending = PendingStep(step, metrics)
        if previous:
            self._record(*previous)

    def flush(self) -> None:
        """Records the pending step; afterwards the device is idle."""
        previous = self._pending
        self._pending = None
        if previous:
            self._record(*previous)

    def forget_step(self) -> None:
        """Forgets the pending step, which a rewind makes obsolete."""
        self._pending = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The time of the block (evaluation, saving) does not count as step time. Flushes first."""
        self.flush()
        start = time.perf_counter()
        with self._watchdog.paused():
            yield
        self._clock = time.perf_counter()
        if self._step_seconds:  # the pauses before include compilation
            self._paused_seconds += self._clock - start

    def rewind(self, problem: str, failed: int, restored: int) -> None:
        """Records that the run continues after `restored` steps, without the batch of the step that failed.

        From the second rewind to one checkpoint on, without all batches between the two.
        """
        batches = self._rewinds.add(failed, restored)
        self._log.write("rewind", step=restored, failed_step=failed, batches=batches, windows=self._windows)
        self._log.sync()
        first, last = batches[0] * self._windows, (batches[-1] + 1) * self._windows - 1
        left_out = f"windows {first:,} to {last:,} of the data order are left out"
        warn(f"{problem}: the run continues from step {restored:,}; {left_out}")

    def scores(self, step: int, scores: Scores) -> None:
        """Records an evaluation after `step` steps."""
        self._log.write("eval", step=step, **scores.flat())
        self._track(step, {f"eval/{name}": value for name, value in scores.flat().items()})
        self._display.scores(step, scores)

    def forecast(self, forecast: LossForecast | None) -> None:
        """Shows the loss that is expected at the end of the run."""
        self._display.forecast(forecast)

    def saved(self, step: int) -> None:
        """Records that the checkpoint of `step` is being saved."""
        self._log.write("save", step=step)
        self._display.saved(step)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Records a text that the model continues `prompt` with after `step` steps."""
        self._log.write("sample", step=step, prompt=prompt, text=text)
        self._track(step, {"sample": prompt + text})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            for tracker in self._trackers:
                tracker.close()

    def _record(self, step: int, metrics: Metrics) -> None:
        values = fetch(metrics)
        now = time.perf_counter()
        seconds = now - self._clock
        self._clock = now
        record = self._step_record(step, float(values.loss), float(values.grad_norm), seconds)
        self._log.write("step", **record._asdict())
        self._track(step, {f"train/{name}": getattr(record, name) for name in TRACKED_STEP_VALUES})
        is_finite = self._check_finite(record)
        if self._compiled:
            self._step_seconds.append(seconds)
            self._watchdog.step_done(seconds)
        self._compiled = True
        if is_finite:
            self._display.step(record, self._time_remaining(step))

    def _time_remaining(self, step: int) -> Eta | None:
        overhead = self._paused_seconds / max(len(self._step_seconds), 1)
        return estimate_eta(self._step_seconds, self._config.run.steps - step - 1, overhead)

    def _step_record(self, step: int, loss: float, grad_norm: float, seconds: float) -> StepRecord:
        tokens_per_second = self._config.tokens_per_step / seconds
        flops_per_second = tokens_per_second * flops_per_token(self._config.model)
        windows = (self._rewinds.batch(step) + 1) * self._windows
        return StepRecord(
            step=step,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=float(self._learning_rates[step]),
            seconds=seconds,
            tokens_per_second=tokens_per_second,
            mfu=self._peak_flops and flops_per_second / self._peak_flops,
            epoch=windows / self._epoch_windows,
        )

    def _check_finite(self, record: StepRecord) -> bool:
        """Whether the step's loss and gradient norm are finite.

        Otherwise its update was skipped, if `run.on_nonfinite` is "skip" or if only the gradient overflowed in float16
        (its loss scale is halved then). Raises `NonFiniteError` N001 in other cases and after `MAX_SKIPS` such steps in
        a row.
        """
        values = {"loss": record.loss, "gradient norm": record.grad_norm}
        name = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if name is None:
            self._skips_in_a_row = 0
            return True
        problem = f"the {name} of step {record.step} is not finite (loss {record.loss}, norm {record.grad_norm})"
        is_overflow = self._config.model.dtype == "float16" and math.isfinite(record.loss)
        if self._config.run.on_nonfinite != "skip" and not is_overflow:
            raise NonFiniteError("N001", problem, LOWER_LR_HELP, step=record.step)
        self._skips += 1
        self._skips_in_a_row += 1
        if self._skips_in_a_row == MAX_SKIPS:
            raise NonFiniteError("N001", f"{problem}, the {MAX_SKIPS}th in a row", LOWER_LR_HELP)
        first = self._rewinds.batch(record.step) * self._windows
        self._log.write("skip", step=record.step, first_window=first, windows=self._windows, skips=self._skips)
        batch = f"windows {first:,} to {first + self._windows - 1:,} of the data order"
        if not is_overflow:
            warn(f"{problem}: its update was skipped, {self._skips} so far; the batch is {batch}")
        return False

    def _track(self, step: int, values: dict[str, Any]) -> None:
        known = {name: value for name, value in values.items() if isinstance(value, float | str)}
        for tracker in self._trackers:
            tracker.write(step, known)


def fetch(metrics: Any) -> Any:
    """The arrays of `metrics` on the host; waits for the step that computes them."""
    return jax.device_get(metrics)
