"""Calibrates a plan with a run: its step time, and how its loss differs from the scaling law.

Reads every format of `jaxgpt.logs`. The median seconds per step replace the roofline. The last evaluation shifts the
corpus's offset. The learning rate of an unfinished run is still high: the expected annealing gain is subtracted first,
and its uncertainty widens the interval.
"""

import math
from dataclasses import dataclass

from jaxgpt import logs
from jaxgpt.budget import query, scaling_law
from jaxgpt.budget.plan import Calibration
from jaxgpt.budget.scaling_law import Corpus
from jaxgpt.budget.step_time import StepTime
from jaxgpt.config import Config, schedule
from jaxgpt.errors import ConfigError, DataError, NoLogError

FINISHED_SD = 0.010  # nats
RUNNING_SD = 0.026  # nats: the uncertainty of the annealing gain (see LAW.undecayed_lr)
MIN_PROGRESS = 0.25  # of a run: before that its loss says little about its end
WARMUP_RECORDS = 5  # records of a jaxgpt run during which it compiles and warms up
BELIEVABLE_SHIFT = 0.3  # nats: a larger one means another corpus or tokenizer or an error, and widens the interval
MAX_LOSS = 20.0  # nats: a uniform guess among half a billion tokens; a diverged run has any loss
MAX_STEPS = 10_000_000  # a larger count is one of tokens
SPREAD = 0.02  # of the step time: what a short measurement cannot see


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
        raise ConfigError("C043", f"'{path}' holds no step of a run", error.help) from error
    steps = history.steps[WARMUP_RECORDS:] if history.traits.is_jaxgpt_run else history.steps
    seconds = tuple(step.seconds for step in steps if step.step_only and step.seconds is not None)
    evaluations = []
    for evaluation in history.evaluations:
        loss = evaluation.train if evaluation.val is None else evaluation.val
        if loss is not None and _is_plausible(evaluation.step, loss):
            evaluations.append((evaluation.step, loss))
    if not seconds and not evaluations:
        raise ConfigError("C043", f"'{path}' holds no step of a run that can be measured", logs.SUPPORTED)
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
    """The median with the tenth and ninetieth percentile, at least 2 % to either side."""
    if not record.seconds:
        return None
    ordered = sorted(record.seconds)
    count = len(ordered)
    median = ordered[count // 2]
    return StepTime(
        seconds=median,
        low=min(ordered[count // 10], median * (1 - SPREAD)),
        high=max(ordered[min(count - 1, 9 * count // 10)], median * (1 + SPREAD)),
        basis=f"measured: the median of {count} steps in {record.source}",
    )


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
