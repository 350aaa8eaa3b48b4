"""`--prove`: a forecast put to the test by a short anneal of its own, from a checkpoint of the run.

The anneal is a run beside the run, `NAME-prove-STEP`: the checkpoint's state, then the learning rate brought down in a
line from where it stood to the last one. Its final loss is forecast from what the log says up to the checkpoint, before
it begins. The run itself, its checkpoints and its log are only read.
"""

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt import logs
from jaxgpt.config import Config
from jaxgpt.config.schedule import learning_rate
from jaxgpt.diagnose import annealing, diagnosis, proofs, setting
from jaxgpt.diagnose.endings import ANNEAL_SHARE
from jaxgpt.diagnose.mixture import Forecast
from jaxgpt.diagnose.options import MOST_STEPS, Options
from jaxgpt.diagnose.proofs import Proof
from jaxgpt.errors import INTERRUPTED, PREEMPTED, CheckpointError, ConfigError, Stopped, StorageError
from jaxgpt.logs.history import History
from jaxgpt.runs import folder as runfolder
from jaxgpt.runs import training_process
from jaxgpt.runs.folder import RunFolder

LEAST_FALL = 0.05  # of the run's peak rate: what a shorter fall takes off cannot be told from noise


class Plan(NamedTuple):
    """The anneal: `config` of a run of its own, forked from `step` of `source`, of `steps` updates more."""

    source: RunFolder
    config: Config
    step: int
    steps: int

    @property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.config)


def plan(folder: RunFolder, which: str = "latest", steps: int | None = None) -> Plan:
    """The anneal from checkpoint `which` (a step or "latest") over `steps` updates (None: a tenth of those done).

    Raises `CheckpointError` K003 if there is no such checkpoint, `ConfigError` C057 if its rate cannot fall any more.
    """
    config = folder.config()
    step = checkpoint(folder, which)
    length = steps or max(1, math.ceil(ANNEAL_SHARE * step))
    rate, peak = learning_rate(config.optim, config.run.steps, step), config.optim.learning_rate
    if rate - config.optim.min_lr <= LEAST_FALL * peak:
        what = f"the learning rate of step {step:,} is {rate:.3g}; optim.min_lr is {config.optim.min_lr:.3g}"
        raise ConfigError("C057", f"{what}: no anneal is left to prove", "name an earlier checkpoint with --prove-at")
    optim = {"schedule": "wsd", "learning_rate": rate, "warmup_steps": 0, "decay_steps": length}
    run = {"steps": step + length, "eval_every": length, "save_every": length, "keep_every": None, "sample_prompt": ""}
    run |= {"dir": str(folder.path.parent), "early_stop": False, "log_every": max(1, length // 20)}
    return Plan(folder, _named(config.replace({"optim": optim, "run": run}), folder, step), step, length)


def checkpoint(folder: RunFolder, which: str) -> int:
    """The step of that checkpoint, as Orbax keeps it: a folder of that number once it is whole."""
    there = [int(path.name) for path in folder.checkpoints.glob("*") if path.name.isdigit()]
    step = max(there, default=None) if which == "latest" else int(which) if which.isdigit() else None
    if step is None or step not in there:
        have = ", ".join(map(str, sorted(there))) or "none"
        raise CheckpointError("K003", f"no checkpoint {which!r} in {folder.checkpoints}; there are: {have}")
    return step


def _named(config: Config, folder: RunFolder, step: int) -> Config:
    """`config` under the first name that is free, or that this same anneal had when it was interrupted."""
    stem = f"{folder.path.name[:80]}-prove-{step}"
    for number in range(1, 10_000):
        named = config.replace({"run": {"name": stem if number == 1 else f"{stem}-{number}"}})
        place = RunFolder.of(named)
        if not place.path.exists() or (place.config_file.exists() and not runfolder.differences(place.config(), named)):
            return named
    raise ConfigError("C057", f"every name from {stem} on is taken", "remove old proofs")


def predict(planned: Plan) -> Forecast:
    """The loss at the end of the anneal, by what the run's log says up to the checkpoint.

    Raises `ConfigError` C057 if that is too little.
    """
    history = until(logs.read(planned.source.log_file), planned.step)
    found = setting.of(history, Options())
    posterior, _, why = diagnosis.forecast_run(history, found)
    if posterior is not None and posterior.curve.used().sum() < annealing.LEAST_POINTS:
        posterior, why = None, "its log has too few validation losses by then"  # the planner's law is not on trial
    if posterior is None:
        raise ConfigError("C057", f"no forecast can be made at step {planned.step:,}: {why}", "name a later checkpoint")
    return posterior.final(rates(planned, found.rates, found.optim.learning_rate))


def until(history: History, step: int) -> History:
    """What was known after `step` updates."""
    return dataclasses.replace(
        history,
        steps=tuple(one for one in history.steps if one.step < step),
        evaluations=tuple(one for one in history.evaluations if one.step <= step),
        saves=tuple(one for one in history.saves if one <= step),
    )


def rates(planned: Plan, before: NDArray[np.float64], peak: float) -> NDArray[np.float64]:
    """The rate of every update over the run's peak: the run's own until the checkpoint, then the anneal's."""
    config = planned.config
    ahead = [learning_rate(config.optim, config.run.steps, at) for at in range(planned.step, config.run.steps)]
    return np.concatenate((before[: planned.step], np.array(ahead) / peak))


class Request(NamedTuple):
    """Where the anneal begins (a step or "latest"), and how many updates it takes (None: a tenth of those done)."""

    at: str = "latest"
    steps: int | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--prove` and its two measures, as a group of their own."""
    add = parser.add_argument_group(
        "proof",
        "Puts a forecast of a run of ours to the test by a short anneal from a checkpoint, beside the run.",
    ).add_argument
    add("--prove", action="store_true", help="forecast the anneal's loss, train it, compare; the run must stand still")
    add("--prove-at", metavar="STEP", help="the checkpoint that it begins from (default: the newest)")
    add("--prove-steps", metavar="N", help="updates that it takes (default: a tenth of those done)")


def request(given: argparse.Namespace) -> Request | None:
    """What is to be proved, if anything. Raises `ConfigError` C056 for what makes no proof."""
    if not given.prove:
        if given.prove_at is not None or given.prove_steps is not None:
            raise ConfigError("C056", "--prove-at and --prove-steps are measures of a proof", "add --prove")
        return None
    if given.json or given.html:
        raise ConfigError("C056", "--prove prints its result, and keeps it with the run", "leave --json and --html out")
    at, steps = given.prove_at or "latest", given.prove_steps
    if at != "latest" and not at.isdigit():
        raise ConfigError("C056", f"--prove-at {at!r} is no step", "--prove-at 500, the step of a checkpoint")
    if steps is not None and not (steps.isdigit() and 0 < int(steps) <= MOST_STEPS):
        raise ConfigError("C056", f"--prove-steps {steps!r} is no number of updates", "--prove-steps 200")
    return Request(at, None if steps is None else int(steps))


def prove(source: str, asked: Request) -> str:
    """Forecasts, anneals, compares, keeps the result with the run, and says it. The training's lines go to stderr.

    The run must stand still meanwhile: its checkpoint is read, and both would want the same device. Raises
    `StorageError` S001 while it is trained, `ConfigError` C056 if `source` is no run, C057 if nothing can be forecast,
    C058 if the anneal fails.
    """
    if Path(source).is_file() or source == "-":
        raise ConfigError("C056", f"'{source}' is a log; a proof trains on", "name the folder of a run of jaxgpt")
    folder = runfolder.find(source)[0]
    with _standing_still(folder):
        planned = plan(folder, asked.at, asked.steps)
        forecast = predict(planned)
        print(said(planned, forecast), flush=True)
        observed, name = anneal(planned), planned.folder.path.name
        proof = Proof(
            run=name,
            step=planned.step,
            steps=planned.steps,
            forecast=forecast,
            observed=observed,
            time=round(time.time(), 3),
        )
        if all(one.run != name for one in proofs.of(folder)):  # it may have been done before
            proofs.add(folder, proof)
    return f"{proof}\n{proofs.score(proofs.of(folder))}"


@contextmanager
def _standing_still(folder: RunFolder) -> Iterator[None]:
    """Holds the run's folder, so that nobody trains it on meanwhile."""
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.lock())
        except StorageError as error:
            raise StorageError(error.code, error.message, "prove it when it has stopped or is done") from error
        yield


def said(planned: Plan, forecast: Forecast) -> str:
    """What is about to be done, and what is expected of it."""
    return (
        f"{planned.folder.path}: from step {planned.step:,}, the learning rate falls from "
        f"{planned.config.optim.learning_rate:.3g} to {planned.config.optim.min_lr:.3g} in {planned.steps:,} steps\n"
        f"forecast: {forecast.mean:.4f} (80 %: {forecast.low80:.4f} to {forecast.high80:.4f}; "
        f"95 %: {forecast.low95:.4f} to {forecast.high95:.4f})"
    )


def anneal(planned: Plan) -> float:
    """Trains it, or what is left of it, and returns its final validation loss."""
    fork = planned.source.checkpoints / str(planned.step)
    unfinished = "the anneal is not done; the same command goes on with it"
    with tempfile.TemporaryDirectory(prefix="jaxgpt-prove-") as place:
        try:
            ended = training_process.train(planned.config, Path(place), "--fork", str(fork), shown=True)
        except KeyboardInterrupt as stop:
            raise Stopped(unfinished, INTERRUPTED) from stop
    if ended.status in (INTERRUPTED, PREEMPTED):
        raise Stopped(unfinished, ended.status)
    if ended.status:
        raise ConfigError("C058", f"the anneal could not be trained: {ended.words}", "mend that, then prove again")
    last = logs.read(planned.folder.log_file).evaluations[-1:]
    if not last or last[0].step != planned.config.run.steps or last[0].val is None:
        what = f"{planned.folder.log_file} has no validation loss of step {planned.config.run.steps:,}"
        raise ConfigError("C058", what, "a proof needs a validation split")
    return last[0].val
