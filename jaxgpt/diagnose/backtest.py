"""`--backtest`: a forecast put to the test by a short anneal of its own, from a checkpoint of the run.

The backtest is a run of its own, `NAME-backtest-STEP`: it starts from the checkpoint's state, and its learning rate
decays linearly to `optim.min_lr`. Its final loss is forecast, before it starts, from what the log contains up to the
checkpoint. The run itself, its checkpoints and its log are only read.
"""

import argparse
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt import logs
from jaxgpt.config import Config
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

LEAST_FALL = 0.05  # of the run's peak rate: what a shorter fall takes off cannot be told from noise


class CooldownPlan(NamedTuple):
    """The anneal: `config` of a run of its own, forked from `step` of `source`, of `steps` updates more."""

    source: RunFolder
    config: Config
    step: int
    steps: int

    @property
    def folder(self) -> RunFolder:
        return RunFolder.from_config(self.config)


def plan_cooldown(folder: RunFolder, which: str = "latest", steps: int | None = None) -> CooldownPlan:
    """The anneal from checkpoint `which` (a step or "latest") over `steps` updates (None: a tenth of those done).

    Raises `CheckpointError` K003 if there is no such checkpoint, `ConfigError` C057 if its rate cannot fall any more.
    """
    config = folder.config()
    step = find_checkpoint(folder, which)
    length = steps or max(1, math.ceil(COOLDOWN_FRACTION * step))
    rate, peak = learning_rate(config.optim, config.run.steps, step), config.optim.learning_rate
    if rate - config.optim.min_lr <= LEAST_FALL * peak:
        what = f"the learning rate of step {step:,} is {rate:.3g}; optim.min_lr is {config.optim.min_lr:.3g}"
        raise ConfigError(
            "C057", f"{what}: no anneal is left to prove", "name an earlier checkpoint with --backtest-at"
        )
    optim = {"schedule": "wsd", "learning_rate": rate, "warmup_steps": 0, "decay_steps": length}
    run = {"steps": step + length, "eval_every": length, "save_every": length, "keep_every": None, "sample_prompt": ""}
    run |= {"dir": str(folder.path.parent), "early_stop": False, "log_every": max(1, length // 20)}
    return CooldownPlan(folder, _named(config.replace({"optim": optim, "run": run}), folder, step), step, length)


def find_checkpoint(folder: RunFolder, which: str) -> int:
    """The step of that checkpoint, as Orbax keeps it: a folder of that number once it is whole."""
    there = [int(path.name) for path in folder.checkpoints.glob("*") if path.name.isdigit()]
    step = max(there, default=None) if which == "latest" else int(which) if which.isdigit() else None
    if step is None or step not in there:
        have = ", ".join(map(str, sorted(there))) or "none"
        raise CheckpointError("K003", f"no checkpoint {which!r} in {folder.checkpoints}; there are: {have}")
    return step


def _named(config: Config, folder: RunFolder, step: int) -> Config:
    """`config` under the first name that is free, or that this same anneal had when it was interrupted."""
    stem = f"{folder.path.name[:80]}-backtest-{step}"
    for number in range(1, 10_000):
        named = config.replace({"run": {"name": stem if number == 1 else f"{stem}-{number}"}})
        place = RunFolder.from_config(named)
        if not place.path.exists() or (
            place.config_file.exists() and not runfolder.changed_fields(place.config(), named)
        ):
            return named
    raise ConfigError("C057", f"every name from {stem} on is taken", "remove old proofs")


def forecast_cooldown(planned: CooldownPlan) -> Forecast:
    """The loss at the end of the anneal, by what the run's log says up to the checkpoint.

    Raises `ConfigError` C057 if that is too little.
    """
    history = history_until(logs.read(planned.source.log_file), planned.step)
    found = resolve_context(history, Options())
    posterior, _, why = forecast_run(history, found)
    if posterior is not None and posterior.curve.usable().sum() < annealing.MIN_EVALUATIONS:
        posterior, why = None, "its log has too few validation losses by then"  # the planner's law is not on trial
    if posterior is None:
        raise ConfigError("C057", f"no forecast can be made at step {planned.step:,}: {why}", "name a later checkpoint")
    return posterior.final_loss(lr_fractions(planned, found.lr_fractions, found.optim.learning_rate))


def history_until(history: History, step: int) -> History:
    """What was known after `step` updates."""
    return dataclasses.replace(
        history,
        steps=tuple(one for one in history.steps if one.step < step),
        evaluations=tuple(one for one in history.evaluations if one.step <= step),
        saves=tuple(one for one in history.saves if one <= step),
    )


def lr_fractions(planned: CooldownPlan, before: NDArray[np.float64], peak: float) -> NDArray[np.float64]:
    """The rate of every update over the run's peak: the run's own until the checkpoint, then the anneal's."""
    config = planned.config
    ahead = [learning_rate(config.optim, config.run.steps, at) for at in range(planned.step, config.run.steps)]
    return np.concatenate((before[: planned.step], np.array(ahead) / peak))


class BacktestRequest(NamedTuple):
    """Where the anneal begins (a step or "latest"), and how many updates it takes (None: a tenth of those done)."""

    at: str = "latest"
    steps: int | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--backtest` and its two measures, as a group of their own."""
    add = parser.add_argument_group(
        "proof",
        "Puts a forecast of a run of ours to the test by a short anneal from a checkpoint, beside the run.",
    ).add_argument
    add(
        "--backtest",
        action="store_true",
        help="forecast the anneal's loss, train it, compare; the run must stand still",
    )
    add("--backtest-at", metavar="STEP", help="the checkpoint that it begins from (default: the newest)")
    add("--backtest-steps", metavar="N", help="updates that it takes (default: a tenth of those done)")


def parse_request(given: argparse.Namespace) -> BacktestRequest | None:
    """What is to be proved, if anything. Raises `ConfigError` C056 for what makes no proof."""
    if not given.backtest:
        if given.backtest_at is not None or given.backtest_steps is not None:
            raise ConfigError("C056", "--backtest-at and --backtest-steps are measures of a proof", "add --backtest")
        return None
    if given.json or given.html:
        raise ConfigError(
            "C056", "--backtest prints its result, and keeps it with the run", "leave --json and --html out"
        )
    at, steps = given.backtest_at or "latest", given.backtest_steps
    if at != "latest" and not at.isdigit():
        raise ConfigError("C056", f"--backtest-at {at!r} is no step", "--backtest-at 500, the step of a checkpoint")
    if steps is not None and not (steps.isdigit() and 0 < int(steps) <= MAX_STEPS):
        raise ConfigError("C056", f"--backtest-steps {steps!r} is no number of updates", "--backtest-steps 200")
    return BacktestRequest(at, None if steps is None else int(steps))


def run_backtest(source: str, asked: BacktestRequest) -> str:
    """Forecasts, anneals, compares, keeps the result with the run, and says it. The training's lines go to stderr.

    The run must stand still meanwhile: its checkpoint is read, and both would want the same device. Raises
    `StorageError` S001 while it is trained, `ConfigError` C056 if `source` is no run, C057 if nothing can be forecast,
    C058 if the anneal fails.
    """
    if Path(source).is_file() or source == "-":
        raise ConfigError("C056", f"'{source}' is a log; a proof trains on", "name the folder of a run of jaxgpt")
    folder = runfolder.find_run(source)[0]
    with _standing_still(folder):
        planned = plan_cooldown(folder, asked.at, asked.steps)
        forecast = forecast_cooldown(planned)
        print(describe_plan(planned, forecast), flush=True)
        observed, name = train_cooldown(planned), planned.folder.path.name
        proof = Backtest(
            run=name,
            step=planned.step,
            steps=planned.steps,
            forecast=forecast,
            observed=observed,
            time=round(time.time(), 3),
        )
        if all(one.run != name for one in load_backtests(folder)):  # it may have been done before
            append_backtest(folder, proof)
    return f"{proof}\n{summarize(load_backtests(folder))}"


@contextmanager
def _standing_still(folder: RunFolder) -> Iterator[None]:
    """Holds the run's folder, so that nobody trains it on meanwhile."""
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.lock())
        except StorageError as error:
            raise StorageError(error.code, error.message, "prove it when it has stopped or is done") from error
        yield


def describe_plan(planned: CooldownPlan, forecast: Forecast) -> str:
    """What is about to be done, and what is expected of it."""
    return (
        f"{planned.folder.path}: from step {planned.step:,}, the learning rate falls from "
        f"{planned.config.optim.learning_rate:.3g} to {planned.config.optim.min_lr:.3g} in {planned.steps:,} steps\n"
        f"forecast: {forecast.mean:.4f} (80 %: {forecast.low80:.4f} to {forecast.high80:.4f}; "
        f"95 %: {forecast.low95:.4f} to {forecast.high95:.4f})"
    )


def train_cooldown(planned: CooldownPlan) -> float:
    """Trains it, or what is left of it, and returns its final validation loss."""
    fork = planned.source.checkpoints / str(planned.step)
    unfinished = "the anneal is not done; the same command goes on with it"
    with tempfile.TemporaryDirectory(prefix="jaxgpt-backtest-") as place:
        try:
            ended = training_process.train_in_subprocess(planned.config, Path(place), "--fork", str(fork), echo=True)
        except KeyboardInterrupt as stop:
            raise Stopped(unfinished, INTERRUPTED) from stop
    if ended.returncode in (INTERRUPTED, PREEMPTED):
        raise Stopped(unfinished, ended.returncode)
    if ended.returncode:
        raise ConfigError(
            "C058", f"the anneal could not be trained: {ended.stderr_tail}", "mend that, then prove again"
        )
    last = logs.read(planned.folder.log_file).evaluations[-1:]
    if not last or last[0].step != planned.config.run.steps or last[0].val is None:
        what = f"{planned.folder.log_file} has no validation loss of step {planned.config.run.steps:,}"
        raise ConfigError("C058", what, "a proof needs a validation split")
    return last[0].val


SHOWN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backtest:
    """A forecast of the validation loss at the end of an anneal of `steps` updates from `step` on, and what it was."""

    run: str  # the name of the anneal's own run
    step: int
    steps: int
    forecast: Forecast
    observed: float
    time: float  # seconds since 1970

    @property
    def error(self) -> float:
        """Forecast less observed, in nats."""
        return self.forecast.mean - self.observed

    @property
    def inside80(self) -> bool:
        return self.forecast.low80 <= self.observed <= self.forecast.high80

    @property
    def inside95(self) -> bool:
        return self.forecast.low95 <= self.observed <= self.forecast.high95

    def __str__(self) -> str:
        held, where = self.forecast, "80 %" if self.inside80 else "95 %"
        inside = f"inside its {where} interval" if self.inside95 else "outside its 95 % interval"
        return (
            f"annealed from step {self.step:,} in {self.steps:,} steps: forecast {held.mean:.4f} "
            f"(80 %: {held.low80:.4f} to {held.high80:.4f}), "
            f"observed {self.observed:.4f}; error {self.error:+.4f} nats, {inside}"
        )


def append_backtest(folder: RunFolder, proof: Backtest) -> None:
    """Appends the proof to the run's record."""
    with folder.backtests_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(to_dict(proof)) + "\n")


def to_dict(proof: Backtest) -> dict[str, Any]:
    """The proof as plain JSON values."""
    judged = {"error": proof.error, "inside80": proof.inside80, "inside95": proof.inside95}
    return dataclasses.asdict(proof) | {"forecast": proof.forecast._asdict()} | judged


def load_backtests(folder: RunFolder) -> tuple[Backtest, ...]:
    """The run's proofs in order; lines that are none are left out."""
    if not folder.backtests_file.is_file():
        return ()
    found = (_proof(record) for record in read_log(folder.backtests_file))
    return tuple(proof for proof in found if proof)


def _proof(record: dict[str, Any]) -> Backtest | None:
    try:
        forecast = Forecast(**{name: float(record["forecast"][name]) for name in Forecast._fields})
        observed, step, steps = float(record["observed"]), int(record["step"]), int(record["steps"])
        made = Backtest(
            run=str(record["run"]), step=step, steps=steps, forecast=forecast, observed=observed, time=record["time"]
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return made if math.isfinite(observed) and all(map(math.isfinite, forecast)) else None


def summarize(proofs: Sequence[Backtest]) -> str:
    """How the forecasts of a run have done so far, in one sentence; "" where none was put to the test."""
    if not proofs:
        return ""
    count = len(proofs)
    inside80, inside95 = sum(proof.inside80 for proof in proofs), sum(proof.inside95 for proof in proofs)
    error = sum(abs(proof.error) for proof in proofs) / count
    return (
        f"forecasts of this run put to the test: {count}; inside the 80 % interval {inside80}, "
        f"inside the 95 % interval {inside95}, mean error {error:.4f} nats"
    )


def format_backtests(proofs: Sequence[Backtest]) -> tuple[str, ...]:
    """The score and the last proofs, as a diagnosis shows them."""
    return (summarize(proofs), *map(str, proofs[-SHOWN:])) if proofs else ()


def find_backtests(source: str) -> tuple[Backtest, ...]:
    """The proofs of the run whose folder, name or log is at `source`; none where it is no run of ours."""
    for place in (Path(source), Path("runs") / source):
        folder = place if place.is_dir() else place.parent
        if RunFolder(folder).log_file.is_file() and (place.is_dir() or place == RunFolder(folder).log_file):
            return load_backtests(RunFolder(folder))
    return ()
