"""Calibrates a plan with a run: its step time, and how its loss differs from the scaling law.

Reads every format of `jaxgpt.logs`, and the results of `bench/gpu.py`. The step time replaces the roofline. The last
evaluation shifts the corpus's offset. The learning rate of an unfinished run is still high: the expected annealing gain
is subtracted first, and its uncertainty widens the interval.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgpt import logs
from jaxgpt.budget import devices, query, scaling_law, tokens
from jaxgpt.budget.calibration import Calibration
from jaxgpt.budget.devices import Device
from jaxgpt.budget.scaling_law import Corpus, ScalingQuery
from jaxgpt.budget.step_time import StepTime
from jaxgpt.budget.tokens import TokenScale
from jaxgpt.config import Config, schedule
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import parameters
from jaxgpt.errors import ConfigError, DataError, JaxgptError, NoLogError
from jaxgpt.utils import eta
from jaxgpt.utils.files import read_json
from jaxgpt.utils.formatting import format_count, pluralize

FINISHED_SD = 0.010  # nats: an evaluation's noise
GAIN_SPREAD = 0.25  # of the annealing gain that is still to come (see LAW.undecayed_lr)
LATE = 2 / 3  # of the steps done: from there on, evaluations of an unfinished run are averaged
MIN_PROGRESS = 0.25  # of a run: before that its loss says little about its end
WARMUP_RECORDS = 5  # records of a jaxgpt run during which it compiles and warms up
BELIEVABLE_SHIFT = 0.3  # nats: a larger one means another corpus or tokenizer or an error, and widens the interval
MAX_LOSS = 20.0  # nats: a uniform guess among half a billion tokens; a diverged run has any loss
MAX_STEPS = 10_000_000  # a larger count is one of tokens
SAME_SIZE = 0.1  # relative: programs count parameters differently
MEASUREMENT_SPREAD = 0.03  # of a step time that `bench/gpu.py` measured


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a log says: seconds of ordinary steps, evaluations as (step, loss), and the config if it has one.

    `device` is its name in the log, `software` "jaxgpt" or "nanogpt" (any other program), and `vocab_size` and
    `bytes_per_token` belong to the tokenizer, and `parameters` and `tokens_per_step` to the run; None where the log
    does not tell.
    """

    source: str
    seconds: tuple[float, ...]
    evaluations: tuple[tuple[int, float], ...]
    config: Config | None
    software: str = "jaxgpt"
    device: str | None = None
    vocab_size: int | None = None
    bytes_per_token: float | None = None
    parameters: float | None = None
    tokens_per_step: float | None = None


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
    vocab_size = history.metadata.hyperparameters.get("vocab_size")
    return RunRecord(
        source=str(path),
        seconds=seconds,
        evaluations=tuple(evaluations),
        config=history.config,
        software="jaxgpt" if history.traits.is_jaxgpt_run else "nanogpt",
        device=history.metadata.device,
        vocab_size=int(vocab_size) if isinstance(vocab_size, int | float) and vocab_size > 1 else None,
        bytes_per_token=history.metadata.bytes_per_token,
        parameters=history.metadata.parameters,
        tokens_per_step=history.metadata.tokens_per_step,
    )


def _is_plausible(step: int, loss: float) -> bool:
    """Whether a run that learns can have that loss there."""
    return step <= MAX_STEPS and 0 < loss < MAX_LOSS


def calibrate(record: RunRecord, config: Config, corpus: Corpus, unique: float | None) -> Calibration:
    """What `record` teaches about a plan of `config`.

    A record without a config counts as one of `config`, unless it tells another size. Without a size it teaches no
    loss. Raises `ConfigError` C043 for a run on characters.
    """
    _check_vocabulary(record, config)
    if record.config is None:
        difference = _difference(record, config)
        if difference:
            note = f"{record.source} calibrates nothing: its run has {difference}. Plan with the config of that run."
            return Calibration(source=record.source, notes=(note,))
    run_config = record.config or config
    if record.config is None and record.vocab_size:
        run_config = config.replace({"model": {"vocab_size": record.vocab_size}})
    notes = _unused_loss(record)
    shift, sd, size = (None, 0.0, None) if notes else _loss_shift(record, run_config, corpus, unique)
    return Calibration(
        source=record.source,
        measured=_measured_step_time(record),
        measured_config=run_config,
        measured_device=devices.lookup(record.device) if record.device else None,
        software=record.software,
        loss_shift=shift,
        loss_sd=math.hypot(sd, _tokenizer_sd(record, run_config, config)),
        run_size=size,
        notes=notes,
    )


def _check_vocabulary(record: RunRecord, config: Config) -> None:
    size = record.config.model.vocab_size if record.config else record.vocab_size
    if size is None or size > tokens.NO_MERGES or size == config.model.vocab_size:
        return
    message = f"'{record.source}' is of a run on characters (a vocabulary of {size}), which says nothing about tokens"
    raise ConfigError("C043", message, f"calibrate by a run with a vocabulary of about {config.model.vocab_size:,}")


def _difference(record: RunRecord, config: Config) -> str:
    """How the run that the log describes differs from `config` in size; empty if it does not, or does not tell."""
    size = parameters(config.model)
    if record.parameters and abs(record.parameters / size - 1) > SAME_SIZE:
        return f"{format_count(record.parameters)} parameters, the config {format_count(size)}"
    if record.tokens_per_step and abs(record.tokens_per_step / config.tokens_per_step - 1) > SAME_SIZE:
        return f"{record.tokens_per_step:,.0f} tokens per step, the config {config.tokens_per_step:,}"
    return ""


def _unused_loss(record: RunRecord) -> tuple[str, ...]:
    """Why the record's loss cannot be used: the size of its model is unknown."""
    if record.config is not None or record.parameters or not record.evaluations:
        return ()
    return (f"The losses of {record.source} are not used, because it does not tell the size of its model.",)


def _measured_step_time(record: RunRecord) -> StepTime | None:
    """The step time that the console and the diagnosis would use: a wide interval if only one or two are known."""
    estimate = eta.estimate_step_time(record.seconds)
    if estimate is None:
        return None
    where = f" on {record.device}" if record.device else ""
    basis = f"measured: {pluralize(estimate.steps_used, 'timed step')} in {record.source}{where}"
    return StepTime(seconds=estimate.seconds, low=estimate.low, high=estimate.high, basis=basis)


def _tokenizer_sd(record: RunRecord, run_config: Config, config: Config) -> float:
    """Of the conversion between the run's tokenizer and the plan's, in nats per GPT-2 token; 0 for the same."""
    if not record.evaluations or run_config.model.vocab_size == config.model.vocab_size:
        return 0.0
    scale = _scale(record, run_config)
    spread = math.hypot(scale.spread, tokens.config_scale(config).spread)
    return spread * record.evaluations[-1][1] / scale.value


def _scale(record: RunRecord, run_config: Config) -> TokenScale:
    if record.bytes_per_token:
        return tokens.token_scale(record.bytes_per_token, run_config.model.vocab_size)
    return tokens.config_scale(run_config)


def _loss_shift(
    record: RunRecord, config: Config, corpus: Corpus, unique: float | None
) -> tuple[float | None, float, tuple[float, float] | None]:
    """How far the run's loss with a decayed learning rate would lie above the scaling law, per GPT-2 token.

    The uncertainty and the run's size follow. Of an unfinished run the late evaluations are averaged.
    """
    total_steps = config.run.steps
    last = max((step for step, _ in record.evaluations), default=0)
    if last < MIN_PROGRESS * total_steps or last < 1:
        return None, 0.0, None
    first = last if last >= total_steps else LATE * last
    scale = _scale(record, config)
    shifts = []
    for step, loss in record.evaluations:
        if step >= max(first, 1):
            asked = replace(query.build_query(config, step, corpus, unique), scale=scale)
            shifts.append(loss / scale.value - _expected_now(asked, config, step))
    shift = sum(shifts) / len(shifts)
    gain = _annealing_gain(config, last)
    asked = query.build_query(config, last, corpus, unique)
    outside = scaling_law.predict_loss(asked).sigmas["outside the fitted range"] / scale.value
    excess = max(abs(shift) - BELIEVABLE_SHIFT, 0.0)
    sd = math.hypot(FINISHED_SD, GAIN_SPREAD * gain, outside, excess)  # a short pilot says less about a long run
    return shift, sd, (asked.parameters, scale.value * asked.tokens)


def _expected_now(asked: ScalingQuery, config: Config, step: int) -> float:
    """The scaling law's loss at that step with the learning rate that it has there, per GPT-2 token."""
    prediction = scaling_law.predict_loss(asked)
    decayed = prediction.loss / asked.scale.value - scaling_law.recipe_costs(asked)["undecayed_lr"]
    return decayed + _annealing_gain(config, step)


def _annealing_gain(config: Config, step: int) -> float:
    total_steps = config.run.steps
    rate = schedule.learning_rate(config.optim, total_steps, min(step, total_steps - 1))
    return scaling_law.undecayed_lr_cost(rate / max(config.optim.learning_rate, 1e-12))


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
        result = read_json(path)
        seconds = float(result["warm"]["ms_per_step"]) / 1e3
        device = devices.lookup(str(result["about"]["device"]))
        is_tiny = "--tiny" in result.get("command", [])
        config = Config.from_dict(result["config"]) if "config" in result else load_config("fineweb40m")
    except (OSError, ValueError, KeyError, TypeError, JaxgptError):
        return None
    if device is None or is_tiny or not seconds > 0:
        return None
    return {"date": str(result.get("date") or ""), "device": device, "config": config, "seconds": seconds}
