"""What a run has to teach the plan: its pace, and where its loss stands against the law.

Reads whatever `logs` does. The median of the steps' seconds replaces the kernel model, or scales it where the planned
config is another than the run's. The last evaluation moves the corpus's offset: a run that is not over has its rate
still up, so that what the fall will bring is taken off first, and what is unsure about it goes into the interval.
"""

import math
from dataclasses import dataclass

from jaxgpt import logs
from jaxgpt.budget import query, scaling_law, step_time
from jaxgpt.budget.devices import Device
from jaxgpt.budget.plan import Calibration
from jaxgpt.budget.scaling_law import Corpus
from jaxgpt.budget.step_time import Pace
from jaxgpt.config import Config, schedule
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.errors import ConfigError, DataError

FINISHED_SD, RUNNING_SD = (
    0.010,
    0.026,
)  # nats; the second is what the fall of the rate is unsure by (see LAW.undecayed_lr)
EARLY = 0.25  # before this share of a run its loss says little about its end
SETTLED = 5  # records before which compiling and warming up stand
BELIEVABLE = 0.3  # nats: a shift beyond it is another corpus, tokenizer or an error, and widens the interval
MOST_LOSS = 20.0  # nats: a uniform guess among half a billion tokens; a broken run has any loss
MOST_STEPS = 10_000_000  # what counts further is tokens
SPREAD = 0.02  # of the pace: what a short look cannot see


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a log says: seconds of ordinary steps, evaluations as (step, loss), and the config if it has one."""

    source: str
    seconds: tuple[float, ...]
    evaluations: tuple[tuple[int, float], ...]
    config: Config | None


def read(path: str) -> Record:
    """The record of the run or log at `path`. Raises `ConfigError` C043 if it is none, or holds no step."""
    try:
        found = logs.read(path)
    except DataError as error:
        what = f"there is no run or log at {path!r}" if error.code == "D043" else f"'{path}' holds no step of a run"
        raise ConfigError("C043", what, error.help) from error
    settled = found.steps[SETTLED:] if found.format == logs.jaxgpt_log.NAME else found.steps
    seconds = tuple(step.seconds for step in settled if step.pure and step.seconds is not None)
    losses = [(e.step, e.train if e.val is None else e.val) for e in found.evaluations]
    evaluations = tuple((step, loss) for step, loss in losses if loss is not None and possible(step, loss))
    if not seconds and not evaluations:
        raise ConfigError("C043", f"'{path}' holds no step of a run that can be measured", logs.KNOWN_ARE)
    return Record(source=str(path), seconds=seconds, evaluations=evaluations, config=found.config)


def possible(step: int, loss: float) -> bool:
    """Whether a run that learns can have that loss there."""
    return step <= MOST_STEPS and 0 < loss < MOST_LOSS


def calibration(
    record: Record, config: Config, device: Device | None, corpus: Corpus, unique: float | None
) -> Calibration:
    """What `record` teaches about a run of `config` on `device`."""
    ran = record.config or config
    shift, sd = _shift(record, ran, corpus, unique)
    return Calibration(source=record.source, pace=_pace(record, ran, config, device), shift=shift, sd=sd)


def _pace(record: Record, ran: Config, config: Config, device: Device | None) -> Pace | None:
    if not record.seconds:
        return None
    ordered = sorted(record.seconds)
    middle = ordered[len(ordered) // 2]
    low, high = ordered[len(ordered) // 10], ordered[min(len(ordered) - 1, 9 * len(ordered) // 10)]
    factor, spread = 1.0, SPREAD
    if (ran.model, ran.data.micro_batch, ran.data.accum) != (config.model, config.data.micro_batch, config.data.accum):
        factor, spread = _work(config, device) / _work(ran, device), 0.10
    low, high = min(low, middle * (1 - spread)), max(high, middle * (1 + spread))
    how = f"measured: the median of {len(ordered)} steps in {record.source}"
    if factor != 1.0:
        how += f", times {factor:.3g} because it trained another model or batch"
    return Pace(seconds=middle * factor, low=low * factor, high=high * factor, why=how)


def _work(config: Config, device: Device | None) -> float:
    """What a step costs, to compare two of them: seconds of the kernel model, or operations where there is none."""
    if device is None:
        return float(config.tokens_per_step * flops_per_token(config.model))
    return step_time.roofline(config, device, "jaxgpt").seconds


def _shift(record: Record, ran: Config, corpus: Corpus, unique: float | None) -> tuple[float | None, float]:
    """How far the run's loss lies above the law, as it would be with the rate fallen, and how sure that is."""
    if not record.evaluations:
        return None, 0.0
    step, loss = max(record.evaluations)
    if step < EARLY * ran.run.steps or step < 1:
        return None, 0.0
    done = step >= ran.run.steps
    asked = query.build_query(ran, step, corpus, unique)
    share = schedule.learning_rate(ran.optim, ran.run.steps, min(step, ran.run.steps - 1)) / ran.optim.learning_rate
    expected = scaling_law.predict_loss(asked)
    unannealed = scaling_law.LAW.undecayed_lr * max(share - 0.1, 0.0)
    fallen = expected.loss - scaling_law.recipe_costs(asked)["undecayed_lr"]
    distance = expected.sigmas["outside the fitted range"]  # a pilot is short: so far from the law it tells less
    shift = loss - unannealed - fallen
    strange = max(abs(shift) - BELIEVABLE, 0.0)
    return shift, math.hypot(FINISHED_SD if done else RUNNING_SD, distance, strange)
