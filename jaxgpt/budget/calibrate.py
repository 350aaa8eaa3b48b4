"""What a run has to teach the plan: its pace, and where its loss stands against the law.

Reads a run folder of ours, its `log.jsonl`, or what nanoGPT prints. The median of the steps' seconds replaces the
kernel model, or scales it where the planned config is another than the run's. The last evaluation moves the corpus's
offset: a run that is not over has its rate still up, so that what the fall will bring is taken off first, and what is
unsure about it goes into the interval.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import runlog
from jaxgpt.budget import question, scaling, schedule, time
from jaxgpt.budget.devices import Device
from jaxgpt.budget.flops import flops_per_token
from jaxgpt.budget.plan import Calibration
from jaxgpt.budget.scaling import Corpus
from jaxgpt.budget.time import Pace
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.runfolder import RunFolder

FINISHED_SD, RUNNING_SD = (
    0.010,
    0.026,
)  # nats; the second is what the fall of the rate is unsure by (see LAW.unannealed)
EARLY = 0.25  # before this share of a run its loss says little about its end
SETTLED = 5  # records before which compiling and warming up stand
A_DAY = 86_400.0  # seconds: no step takes longer
BELIEVABLE = 0.3  # nats: a shift beyond it is another corpus, tokenizer or an error, and widens the interval
SPREAD = 0.02  # of the pace: what a short look cannot see
NANOGPT_STEP = re.compile(r"iter (\d+): loss (\S+), time ([\d.]+)ms")
NANOGPT_EVAL = re.compile(r"step (\d+): train loss (\S+), val loss (\S+)")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a log says: seconds of ordinary steps, evaluations as (step, loss), and the config if it has one."""

    source: str
    seconds: tuple[float, ...]
    evaluations: tuple[tuple[int, float], ...]
    config: Config | None


def read(path: str) -> Record:
    """The record of a run folder, a `log.jsonl` or a nanoGPT log. Raises `ConfigError` C043 if it is none of them."""
    place = Path(path)
    if not place.exists() and (Path("runs") / place).exists():
        place = Path("runs") / place
    if place.is_dir():
        place = place / "log.jsonl"
    if not place.is_file():
        raise ConfigError(
            "C043", f"there is no run or log at {path!r}", "a run's folder, its log.jsonl or a nanoGPT log"
        )
    text = place.read_text(encoding="utf-8", errors="replace")
    found = _ours(place) if text.lstrip()[:1] == "{" else _nanogpt(place, text)
    if not found.seconds and not found.evaluations:
        raise ConfigError("C043", f"'{place}' holds no step of a run", "known are our log.jsonl and nanoGPT's output")
    return found


def _ours(place: Path) -> Record:
    records = runlog.read(place)
    try:
        config: Config | None = RunFolder(place.parent).config()
    except JaxgptError:
        config = None
    steps = [record for record in records if record.get("kind") == "step"]
    evaluations = [(r, _number(r.get("val_loss", r.get("train_loss")))) for r in records if r.get("kind") == "eval"]
    return Record(
        source=str(place),
        seconds=_ordinary([_number(step.get("seconds")) for step in steps][SETTLED:] or []),
        evaluations=tuple((int(r["step"]), loss) for r, loss in evaluations if math.isfinite(loss) and "step" in r),
        config=config,
    )


def _nanogpt(place: Path, text: str) -> Record:
    """Iteration 0 compiles and one at an evaluation contains it; the median does not mind the rest."""
    evaluations = tuple(
        (int(n), loss) for n, _, val in NANOGPT_EVAL.findall(text) if math.isfinite(loss := _number(val))
    )
    at = {step for step, _ in evaluations}
    lines = [(int(n), _number(ms) / 1e3) for n, _, ms in NANOGPT_STEP.findall(text)]
    seconds = [duration for step, duration in lines if step > 0 and step not in at]
    return Record(source=str(place), seconds=_ordinary(seconds), evaluations=evaluations, config=None)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _ordinary(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(value for value in seconds if 0 < value < A_DAY)


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
    return time.modelled(config, device, "jaxgpt").seconds


def _shift(record: Record, ran: Config, corpus: Corpus, unique: float | None) -> tuple[float | None, float]:
    """How far the run's loss lies above the law, as it would be with the rate fallen, and how sure that is."""
    if not record.evaluations:
        return None, 0.0
    step, loss = max(record.evaluations)
    if step < EARLY * ran.run.steps or step < 1:
        return None, 0.0
    done = step >= ran.run.steps
    asked = question.ask(ran, step, corpus, unique)
    share = schedule.learning_rate(ran.optim, ran.run.steps, min(step, ran.run.steps - 1)) / ran.optim.learning_rate
    expected = scaling.expect(asked)
    unannealed = scaling.LAW.unannealed * max(share - 0.1, 0.0)
    fallen = expected.loss - scaling.recipe_terms(asked)["unannealed"]
    distance = expected.sigmas["outside the fitted range"]  # a pilot is short: so far from the law it tells less
    shift = loss - unannealed - fallen
    strange = max(abs(shift) - BELIEVABLE, 0.0)
    return shift, math.hypot(FINISHED_SD if done else RUNNING_SD, distance, strange)
