"""`--backtest`: checks a forecast of a run against a short cooldown that is trained from one of its checkpoints.

The cooldown is a run of its own, `NAME-backtest-STEP`: it starts from the checkpoint, and its learning rate decays
linearly to `optim.min_lr`. Its final loss is forecast, before it starts, from what the log contains up to the
checkpoint. The run itself, its checkpoints and its log are only read. The results are kept in the run's
`backtests.jsonl`, one JSON object per line.
"""

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt import logs
from jaxgpt.config import Config
from jaxgpt.config.fields import OptionGroup, field
from jaxgpt.config.schedule import learning_rate
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.forecast import annealing
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.diagnose.forecast.scenarios import COOLDOWN_FRACTION
from jaxgpt.diagnose.options import MAX_STEPS, Options
from jaxgpt.errors import INTERRUPTED, PREEMPTED, CheckpointError, ConfigError, Stopped, StorageError
from jaxgpt.logs.history import History
from jaxgpt.runs import folder as runfolder
from jaxgpt.runs import training_process
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import read_log

MIN_DECAY = 0.05  # of the run's peak learning rate: the gain of a smaller decay is lost in noise
MAX_REPORTED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backtest:
    """The loss forecast for the end of a cooldown of `steps` steps from `step` on, and the loss observed there."""

    run: str  # the name of the cooldown's run
    step: int
    steps: int
    forecast: Forecast
    observed: float
    time: float  # seconds since 1970

    @property
    def error(self) -> float:
        """Forecast minus observed, in nats."""
        return self.forecast.mean - self.observed

    @property
    def inside80(self) -> bool:
        """Whether the observed loss is inside the 80 % interval."""
        return self.forecast.low80 <= self.observed <= self.forecast.high80

    @property
    def inside95(self) -> bool:
        """Whether the observed loss is inside the 95 % interval."""
        return self.forecast.low95 <= self.observed <= self.forecast.high95

    def __str__(self) -> str:
        level = "80 %" if self.inside80 else "95 %"
        location = f"inside its {level} interval" if self.inside95 else "outside its 95 % interval"
        return (
            f"cooled down from step {self.step:,} in {self.steps:,} steps: forecast {self.forecast.mean:.4f} "
            f"(80 %: {self.forecast.low80:.4f} to {self.forecast.high80:.4f}), observed {self.observed:.4f}; "
            f"error {self.error:+.4f} nats, {location}"
        )


def append_backtest(folder: RunFolder, backtest: Backtest) -> None:
    """Appends the backtest to the run's record."""
    with folder.backtests_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(to_dict(backtest)) + "\n")


def to_dict(backtest: Backtest) -> dict[str, Any]:
    """The backtest as plain JSON values."""
    result = {"error": backtest.error, "inside80": backtest.inside80, "inside95": backtest.inside95}
    return dataclasses.asdict(backtest) | {"forecast": backtest.forecast._asdict()} | result


def load_backtests(folder: RunFolder) -> tuple[Backtest, ...]:
    """The run's backtests in order; lines that cannot be read are skipped."""
    if not folder.backtests_file.is_file():
        return ()
    backtests = (_parse_backtest(record) for record in read_log(folder.backtests_file))
    return tuple(backtest for backtest in backtests if backtest)


def _parse_backtest(record: dict[str, Any]) -> Backtest | None:
    try:
        backtest = Backtest(
            run=str(record["run"]),
            step=int(record["step"]),
            steps=int(record["steps"]),
            forecast=Forecast(**{name: float(record["forecast"][name]) for name in Forecast._fields}),
            observed=float(record["observed"]),
            time=record["time"],
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    is_finite = all(math.isfinite(value) for value in (backtest.observed, *backtest.forecast))
    return backtest if is_finite else None


def summarize(backtests: Sequence[Backtest]) -> str:
    """One sentence on the accuracy of a run's forecasts so far; "" without backtests."""
    if not backtests:
        return ""
    count = len(backtests)
    inside80 = sum(backtest.inside80 for backtest in backtests)
    inside95 = sum(backtest.inside95 for backtest in backtests)
    error = sum(abs(backtest.error) for backtest in backtests) / count
    return (
        f"backtests of this run's forecasts: {count}; inside the 80 % interval {inside80}, "
        f"inside the 95 % interval {inside95}, mean error {error:.4f} nats"
    )


def format_backtests(backtests: Sequence[Backtest]) -> tuple[str, ...]:
    """The summary and the last backtests, as a diagnosis reports them."""
    return (summarize(backtests), *map(str, backtests[-MAX_REPORTED:])) if backtests else ()


class CooldownPlan(NamedTuple):
    """A cooldown: a run with its own `config`, forked from `step` of `source`, that does `steps` more steps."""

    source: RunFolder
    config: Config
    step: int
    steps: int

    @property
    def folder(self) -> RunFolder:
        """The folder of the cooldown's run."""
        return RunFolder.from_config(self.config)


def plan_cooldown(folder: RunFolder, checkpoint: int | None = None, steps: int | None = None) -> CooldownPlan:
    """Plans the cooldown from `checkpoint` (None: the newest) over `steps` steps (None: a tenth of those done).

    Raises `CheckpointError` K003 if there is no such checkpoint, `ConfigError` C057 if its learning rate is too low.
    """
    config = folder.config()
    step = find_checkpoint(folder, checkpoint)
    length = steps or max(1, math.ceil(COOLDOWN_FRACTION * step))
    current_lr = learning_rate(config.optim, config.run.steps, step)
    if current_lr - config.optim.min_lr <= MIN_DECAY * config.optim.learning_rate:
        message = (
            f"the learning rate of step {step:,} is {current_lr:.3g} and optim.min_lr {config.optim.min_lr:.3g}: "
            "it has decayed too far for a backtest"
        )
        raise ConfigError("C057", message, "name an earlier checkpoint with --backtest-at")
    changes: dict[str, dict[str, Any]] = {
        "optim": {"schedule": "wsd", "learning_rate": current_lr, "warmup_steps": 0, "decay_steps": length},
        "run": {
            "dir": str(folder.path.parent),
            "steps": step + length,
            "eval_every": length,
            "save_every": length,
            "keep_every": None,
            "log_every": max(1, length // 20),
            "sample_prompt": "",
            "early_stop": False,
        },
    }
    return CooldownPlan(folder, _with_name(config.replace(changes), folder, step), step, length)


def find_checkpoint(folder: RunFolder, checkpoint: int | None) -> int:
    """The step of the checkpoint. Orbax keeps each complete checkpoint in a folder named after its step."""
    steps = sorted(int(path.name) for path in folder.checkpoints.glob("*") if path.name.isdigit())
    step = steps[-1] if checkpoint is None and steps else checkpoint
    if step is None or step not in steps:
        existing = ", ".join(map(str, steps)) or "none"
        message = f"no checkpoint '{checkpoint or 'latest'}' in {folder.checkpoints}; there are: {existing}"
        raise CheckpointError("K003", message)
    return step


def _with_name(config: Config, folder: RunFolder, step: int) -> Config:
    """`config` with the first name that is free, or that the same cooldown had when it was interrupted."""
    stem = f"{folder.path.name[:80]}-backtest-{step}"
    for number in range(1, 10_000):
        named = config.replace({"run": {"name": stem if number == 1 else f"{stem}-{number}"}})
        existing = RunFolder.from_config(named)
        if not existing.path.exists():
            return named
        if existing.config_file.exists() and not runfolder.changed_fields(existing.config(), named):
            return named
    raise ConfigError("C057", f"every name from {stem} on is taken", "remove old backtests")


def forecast_cooldown(plan: CooldownPlan) -> Forecast:
    """Forecasts the loss at the end of the cooldown from what the run's log contains up to the checkpoint.

    Raises `ConfigError` C057 if that does not suffice.
    """
    history = history_until(logs.read(plan.source.log_file), plan.step)
    context = resolve_context(history, Options())
    posterior, _, reason = forecast_run(history, context)
    if posterior is not None and posterior.curve.usable().sum() < annealing.MIN_EVALUATIONS:
        posterior = None  # a backtest of the scaling law alone would not test the forecast
        reason = "its log has too few validation losses by then"
    if posterior is None:
        raise ConfigError("C057", f"no forecast can be made at step {plan.step:,}: {reason}", "name a later checkpoint")
    return posterior.final_loss(lr_fractions(plan, context.lr_fractions, context.optim.learning_rate))


def history_until(history: History, step: int) -> History:
    """The part of the history that was known after `step` steps."""
    return dataclasses.replace(
        history,
        steps=tuple(record for record in history.steps if record.step < step),
        evaluations=tuple(record for record in history.evaluations if record.step <= step),
        saves=tuple(saved for saved in history.saves if saved <= step),
    )


def lr_fractions(plan: CooldownPlan, run_fractions: NDArray[np.float64], peak_lr: float) -> NDArray[np.float64]:
    """The learning rate of every step over the run's peak: the run's until the checkpoint, then the cooldown's."""
    total = plan.config.run.steps
    cooldown = [learning_rate(plan.config.optim, total, step) for step in range(plan.step, total)]
    return np.concatenate((run_fractions[: plan.step], np.array(cooldown) / peak_lr))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BacktestOptions(OptionGroup, title="backtest", error_code="C056"):
    """Checks a forecast of a jaxgpt run against a short cooldown, trained from a checkpoint."""

    backtest: bool = field(False, "forecast the loss of a cooldown, train it, and compare")
    backtest_at: int | None = field(
        None, "checkpoint that it starts from (default: the newest)", ge=0, le=MAX_STEPS, metavar="STEP"
    )
    backtest_steps: int | None = field(
        None, "steps that it trains (default: a tenth of those done)", ge=1, le=MAX_STEPS
    )

    def check(self) -> None:
        if not self.backtest and (self.backtest_at, self.backtest_steps) != (None, None):
            raise ConfigError("C056", "--backtest-at and --backtest-steps need --backtest", "add --backtest")


def run_backtest(source: str, options: BacktestOptions) -> str:
    """Forecasts and trains a cooldown, keeps the comparison with the run, and returns it as text.

    The progress of the training goes to stderr. The run must not be training meanwhile: its checkpoint is read, and
    both would use the same device. Raises `StorageError` S001 if it is, `ConfigError` C056 if `source` is not a run,
    C057 if nothing can be forecast, C058 if the training fails.
    """
    if Path(source).is_file() or source == "-":
        raise ConfigError("C056", f"'{source}' is a log; a backtest needs a run", "name the folder of a jaxgpt run")
    folder = runfolder.find_run(source)[0]
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.lock())
        except StorageError as error:
            raise error.replace(help="start the backtest when the run has stopped") from error
        plan = plan_cooldown(folder, options.backtest_at, options.backtest_steps)
        forecast = forecast_cooldown(plan)
        print(describe_plan(plan, forecast), flush=True)
        backtest = Backtest(
            run=plan.folder.path.name,
            step=plan.step,
            steps=plan.steps,
            forecast=forecast,
            observed=train_cooldown(plan),
            time=round(time.time(), 3),
        )
        if all(earlier.run != backtest.run for earlier in load_backtests(folder)):
            append_backtest(folder, backtest)
    return f"{backtest}\n{summarize(load_backtests(folder))}"


def describe_plan(plan: CooldownPlan, forecast: Forecast) -> str:
    """The cooldown that is about to be trained, and the loss that is forecast for it."""
    optim = plan.config.optim
    return (
        f"{plan.folder.path}: from step {plan.step:,}, the learning rate decays from {optim.learning_rate:.3g} to "
        f"{optim.min_lr:.3g} in {plan.steps:,} steps\n"
        f"forecast: {forecast.mean:.4f} (80 %: {forecast.low80:.4f} to {forecast.high80:.4f}; "
        f"95 %: {forecast.low95:.4f} to {forecast.high95:.4f})"
    )


def train_cooldown(plan: CooldownPlan) -> float:
    """Trains the cooldown, or the rest of an interrupted one, and returns its final validation loss."""
    checkpoint = plan.source.checkpoints / str(plan.step)
    unfinished = "the backtest is not finished; the same command continues it"
    with tempfile.TemporaryDirectory(prefix="jaxgpt-backtest-") as folder:
        try:
            result = training_process.train_in_subprocess(
                plan.config, Path(folder), "--fork", str(checkpoint), echo=True
            )
        except KeyboardInterrupt as stop:
            raise Stopped(unfinished, INTERRUPTED) from stop
    if result.returncode in (INTERRUPTED, PREEMPTED):
        raise Stopped(unfinished, result.returncode)
    if result.returncode:
        message = f"the backtest could not be trained: {result.stderr_tail}"
        raise ConfigError("C058", message, "fix that and repeat the backtest")
    last = logs.read(plan.folder.log_file).evaluations[-1:]
    if not last or last[0].step != plan.config.run.steps or last[0].val is None:
        message = f"{plan.folder.log_file} has no validation loss of step {plan.config.run.steps:,}"
        raise ConfigError("C058", message, "a backtest needs a validation split")
    return last[0].val
