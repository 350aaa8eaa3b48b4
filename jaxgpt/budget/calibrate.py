"""Calibrates a plan with a run: its step time, and how its loss differs from the scaling law.

Reads every format of `jaxgpt.logs`, and the results of `bench/gpu.py`. The step time replaces the roofline. The last
evaluation shifts the corpus's offset. The learning rate of an unfinished run is still high: the expected annealing gain
is subtracted first, and its uncertainty widens the interval.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import logs
from jaxgpt.budget import devices, query, scaling_law
from jaxgpt.budget.calibration import Calibration
from jaxgpt.budget.devices import Device
from jaxgpt.budget.scaling_law import Corpus
from jaxgpt.budget.step_time import StepTime
from jaxgpt.config import Config, schedule
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError, DataError, JaxgptError, NoLogError
from jaxgpt.utils import eta
from jaxgpt.utils.formatting import pluralize

FINISHED_SD = 0.010  # nats
RUNNING_SD = 0.026  # nats: the uncertainty of the annealing gain (see LAW.undecayed_lr)
MIN_PROGRESS = 0.25  # of a run: before that its loss says little about its end
WARMUP_RECORDS = 5  # records of a jaxgpt run during which it compiles and warms up
BELIEVABLE_SHIFT = 0.3  # nats: a larger one means another corpus or tokenizer or an error, and widens the interval
MAX_LOSS = 20.0  # nats: a uniform guess among half a billion tokens; a diverged run has any loss
MAX_STEPS = 10_000_000  # a larger count is one of tokens
MEASUREMENT_SPREAD = 0.03  # of a step time that `bench/gpu.py` measured


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a log says: seconds of ordinary steps, evaluations as (step, loss), and the config if it has one."""

    source: str
    seconds: tuple[float, ...]
    evaluations: tuple[tuple[int, float], ...]
    config: Config | None


def read_record(path: str) -> RunRecord:
    """The record of the run or log at `path`. Raises `ConfigError` C043 if it has neither step times nor losses."""
    try:
        history = logs.read(path)
    except NoLogError as error:
        raise ConfigError("C043", f"there is no run or log at {path!r}", error.help) from error
    except DataError as error:
        raise ConfigError("C043", f"'{path}' contains no training steps", error.help) from error
    steps = history.steps[WARMUP_RECORDS:] if history.traits.is_jaxgpt_run else history.steps
    seconds = tuple(step.seconds for step in steps if step.step_only and step.seconds is not None)
    evaluations = []
    for evaluation in history.evaluations:
        loss = evaluation.train if evaluation.val is None else evaluation.val
        if loss is not None and _is_plausible(evaluation.step, loss):
            evaluations.append((evaluation.step, loss))
    if not seconds and not evaluations:
        raise ConfigError("C043", f"'{path}' contains no training steps that can be measured", logs.SUPPORTED)
    return RunRecord(source=str(path), seconds=seconds, evaluations=tuple(evaluations), config=history.config)


def _is_plausible(step: int, loss: float) -> bool:
    """Whether a run that learns can have that loss there."""
    return step <= MAX_STEPS and 0 < loss < MAX_LOSS


def calibrate(record: RunRecord, config: Config, corpus: Corpus, unique: float | None) -> Calibration:
    """What `record` teaches about a plan of `config`. A record without a config counts as one of `config`."""
    run_config = record.config or config
    shift, sd = _loss_shift(record, run_config, corpus, unique)
    return Calibration(
        source=record.source,
        measured=_measured_step_time(record),
        measured_config=run_config,
        loss_shift=shift,
        loss_sd=sd,
    )


def _measured_step_time(record: RunRecord) -> StepTime | None:
    """The step time that the console and the diagnosis would use: a wide interval if only one or two are known."""
    estimate = eta.estimate_step_time(record.seconds)
    if estimate is None:
        return None
    basis = f"measured: {pluralize(estimate.steps_used, 'timed step')} in {record.source}"
    return StepTime(seconds=estimate.seconds, low=estimate.low, high=estimate.high, basis=basis)


def _loss_shift(record: RunRecord, config: Config, corpus: Corpus, unique: float | None) -> tuple[float | None, float]:
    """How far the run's loss with a decayed learning rate would lie above the scaling law, and its uncertainty."""
    if not record.evaluations:
        return None, 0.0
    step, loss = max(record.evaluations)
    total_steps = config.run.steps
    if step < MIN_PROGRESS * total_steps or step < 1:
        return None, 0.0
    asked = query.build_query(config, step, corpus, unique)
    prediction = scaling_law.predict_loss(asked)
    lr = schedule.learning_rate(config.optim, total_steps, min(step, total_steps - 1))
    annealing_gain = scaling_law.undecayed_lr_cost(lr / config.optim.learning_rate)
    expected = prediction.loss - scaling_law.recipe_costs(asked)["undecayed_lr"]
    shift = loss - annealing_gain - expected
    own_sd = FINISHED_SD if step >= total_steps else RUNNING_SD
    extrapolation_sd = prediction.sigmas["outside the fitted range"]  # a short pilot says less about a long run
    excess = max(abs(shift) - BELIEVABLE_SHIFT, 0.0)
    return shift, math.hypot(own_sd, extrapolation_sd, excess)


def find_measurement(path: Path, device: Device) -> Calibration | None:
    """The newest result for this kind of device at `path`: a file of `bench/gpu.py`, or a folder of them.

    Results of `--tiny` do not count, nor files of a folder that are not results. Results without a date are older than
    those with one and ordered by name. Raises `ConfigError` C043 if `path` does not exist or is another file.
    """
    if not path.exists():
        raise ConfigError("C043", f"--measurements: there is no file or folder '{path}'", "give a JSON of bench/gpu.py")
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    results = {file.name: result for file in files if (result := _read_result(file)) is not None}
    if path.is_file() and not results:
        raise ConfigError("C043", f"--measurements: '{path}' is not a result of bench/gpu.py", "give one of its JSONs")
    matching = [name for name, result in results.items() if result["device"].name == device.name]
    if not matching:
        return None
    newest = max(matching, key=lambda name: (results[name]["date"], name))
    seconds = results[newest]["seconds"]
    time = StepTime(
        seconds=seconds,
        low=seconds * (1 - MEASUREMENT_SPREAD),
        high=seconds * (1 + MEASUREMENT_SPREAD),
        basis=f"measured on this kind of device ({newest})",
    )
    return Calibration(source=newest, measured=time, measured_config=results[newest]["config"])


def _read_result(path: Path) -> dict[str, Any] | None:
    """Date, device, config and seconds per step of a result; None for other files, unknown devices and `--tiny`."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        seconds = float(result["warm"]["ms_per_step"]) / 1e3
        device = devices.lookup(str(result["about"]["device"]))
        is_tiny = "--tiny" in result.get("command", [])
        config = Config.from_dict(result["config"]) if "config" in result else load_config("fineweb40m")
    except (OSError, ValueError, KeyError, TypeError, JaxgptError):
        return None
    if device is None or is_tiny or not seconds > 0:
        return None
    return {"date": str(result.get("date") or ""), "device": device, "config": config, "seconds": seconds}
