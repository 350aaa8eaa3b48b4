"""Finds the best run for a goal: hours, energy or a target loss.

Each shape of a ladder of model sizes is planned with the device's largest micro-batch that divides a step. Those that
can train to the fit's ratio of tokens to parameters are the candidates.
"""

import bisect
import dataclasses
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgpt.budget import memory, plan, query, recipes, scaling_law, step_time
from jaxgpt.budget.devices import Device
from jaxgpt.budget.plan import Inputs, Row
from jaxgpt.config import Config, Model, Optim
from jaxgpt.config.files import config_source
from jaxgpt.config.model_size import parameters
from jaxgpt.errors import ConfigError
from jaxgpt.utils.formatting import pluralize

HEAD_SIZE = 64
# layers and width: GPT-2's proportions, widths of whole heads
SHAPES = (
    (4, 128), (6, 192), (6, 256), (8, 320), (8, 384), (10, 384), (12, 384), (10, 448), (12, 448), (10, 512), (12, 512),
    (12, 576), (12, 640), (12, 704), (12, 768), (14, 832), (16, 896), (18, 960), (20, 1024), (24, 1024), (24, 1152),
    (24, 1280), (28, 1344), (32, 1408), (36, 1536), (40, 1600), (48, 1600),
)  # fmt: skip
MIN_STEPS = 20
WANTED_STEPS = 500  # a shorter run gets smaller steps instead, as quickstart's
MAX_MICRO_BATCH, CPU_MICRO_BATCH = 64, 16
CPU_HINT = "name a GPU with --gpu NAME, or give --hours instead"
WARMUP_FRACTION, MAX_WARMUP = 0.1, 2000
MAX_GPT2_LEARNING_RATE = 1e-3  # the highest at which a run with learned positions was seen to train well


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the run may use or should reach: exactly one of the fields is set."""

    hours: float | None = None
    kwh: float | None = None
    target_loss: float | None = None

    def __str__(self) -> str:
        if self.hours is not None:
            return pluralize(self.hours, "hour")
        return f"{self.kwh:g} kWh" if self.kwh is not None else f"a loss of {self.target_loss:g}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run that meets the goal, its tokens per parameter, and its loss without the limit of guessing."""

    config: Config
    row: Row
    ratio: float
    comparable_loss: float


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best candidate, all candidates by size, and the inputs that plan the best one."""

    goal: Goal
    best: Candidate
    candidates: tuple[Candidate, ...]
    inputs: Inputs


def best_run(inputs: Inputs, goal: Goal) -> SearchResult:
    """The best run for the goal on the inputs' device and data. Raises `ConfigError` C044 if there is none.

    For hours and energy the lowest predicted loss wins, for a target loss the shortest run inside the fitted range, if
    there is one. All but the smallest model get at least the fit's 15 tokens per parameter.
    """
    device = inputs.device
    if device is None and goal.kwh is not None:
        raise ConfigError("C044", "--kwh needs a device whose power is known, and this plan is for a CPU", CPU_HINT)
    inputs = replace(inputs, config=with_enough_steps(inputs.config, inputs.tokens.unique))
    candidates = []
    for shape in SHAPES:
        least_ratio = 0.0 if shape == SHAPES[0] else scaling_law.FITTED_RATIO
        candidate = _candidate(inputs, device, with_shape(inputs.config, *shape), goal, least_ratio)
        if candidate is not None:
            candidates.append(candidate)
    if not candidates:
        name = device.name if device else "this CPU"
        raise ConfigError("C044", f"no run on {name} meets the goal of {goal}", _hint(inputs, goal))
    best = _best(candidates, goal)
    steps = best.row.total_steps
    chosen = replace(inputs, config=best.config, name=f"a run of {steps:,} steps", lengths=(steps,))
    return SearchResult(goal=goal, best=best, candidates=tuple(candidates), inputs=chosen)


def _best(candidates: list[Candidate], goal: Goal) -> Candidate:
    if goal.target_loss is None:
        return min(candidates, key=lambda one: one.comparable_loss)
    fitted = [one for one in candidates if not one.row.prediction.outside] or candidates
    return min(fitted, key=lambda one: one.row.seconds or math.inf)


def _hint(inputs: Inputs, goal: Goal) -> str:
    if goal.target_loss is None:
        return "allow more, plan smaller steps (--data.accum), or choose a faster device with --gpu"
    return f"the corpus's irreducible loss is {inputs.corpus.offset:.2f}; choose a higher target or a faster device"


def _candidate(
    inputs: Inputs, device: Device | None, config: Config, goal: Goal, least_ratio: float
) -> Candidate | None:
    """The run of `config`'s shape that meets the goal.

    None if it does not fit, would be too short, or has less than `least_ratio` tokens per parameter.
    """
    batched = with_batch(config, device, inputs.gpus)
    if batched is None:
        return None
    inputs = replace(inputs, config=batched)
    time = plan.own_step_time(inputs)
    if time is None:
        return None
    steps = _steps_for(inputs, time.seconds, device, goal)
    if steps is None or not _is_long_enough(batched, steps, least_ratio):
        return None
    if goal.target_loss is None:
        steps = plan.best_steps(inputs, steps)
        steps = min(steps, _steps_without_dropout(inputs, steps, device, goal))
    if not _is_long_enough(batched, steps, least_ratio):
        return None
    inputs = replace(inputs, config=with_steps(batched, steps, inputs.tokens.unique))
    return Candidate(
        config=inputs.config,
        row=plan.make_row(inputs, plan.own_step_time(inputs), steps),
        ratio=steps * batched.tokens_per_step / parameters(batched.model),
        comparable_loss=plan.comparable_loss(inputs, steps),
    )


def _steps_without_dropout(inputs: Inputs, steps: int, device: Device | None, goal: Goal) -> int:
    """The length that meets the goal for the config as it is trained, which may have lost its dropout."""
    inputs = replace(inputs, config=with_steps(inputs.config, steps, inputs.tokens.unique))
    time = plan.own_step_time(inputs)
    limit = None if time is None else _steps_for(inputs, time.seconds, device, goal)
    return steps if limit is None else limit


def _is_long_enough(config: Config, steps: int, least_ratio: float) -> bool:
    return steps >= max(MIN_STEPS, least_ratio * parameters(config.model) / config.tokens_per_step)


def with_shape(config: Config, layers: int, width: int) -> Config:
    """`config` with another shape of the same architecture and the learning rate tuned for its size."""
    model = dataclasses.replace(
        config.model,
        n_layer=layers,
        n_embd=width,
        n_head=width // HEAD_SIZE,
        n_kv_head=None,
        head_dim=None,
        n_inner=None,
    )
    return config.replace({"model": dataclasses.asdict(model), "optim": learning_rates(config.optim, model)})


def learning_rates(optim: Optim, model: Model) -> dict[str, float]:
    """Peak and final learning rate for a model of that size, to two digits; with Muon it decays to 0."""
    if optim.optimizer != "adamw":
        return {"learning_rate": float(f"{recipes.muon_learning_rate(model.n_embd):.1e}"), "min_lr": 0.0}
    peak = scaling_law.tuned_learning_rate(parameters(model))
    if model.architecture == "gpt2":
        peak = min(peak, MAX_GPT2_LEARNING_RATE)
    peak = float(f"{peak:.1e}")
    return {"learning_rate": peak, "min_lr": float(f"{peak / 10:.1e}")}


def with_batch(config: Config, device: Device | None, gpus: int = 1) -> Config | None:
    """`config` with the largest micro-batch that fits and divides a step; None if none does.

    It is at most 64 per device, and 16 on a CPU (None).
    """
    sequences = config.data.micro_batch * config.data.accum
    largest = CPU_MICRO_BATCH
    if device is not None:
        flash = None if device.has_bfloat16 else False
        largest = min(memory.max_micro_batch(config, device.usable, flash=flash), MAX_MICRO_BATCH)
    limit = min(gpus * largest, sequences)
    sizes = [size for size in range(gpus, limit + 1, gpus) if sequences % size == 0]
    return config.replace({"data": {"micro_batch": sizes[-1], "accum": sequences // sizes[-1]}}) if sizes else None


def with_enough_steps(config: Config, unique: float | None) -> Config:
    """`config` with smaller steps, if 20 epochs of so few tokens would have fewer than 500 of the config's."""
    if unique is None:
        return config
    sequences = config.data.micro_batch * config.data.accum
    limit = plan.MAX_EPOCHS * unique / WANTED_STEPS
    while sequences > 1 and sequences * config.model.block_size > limit:
        sequences = math.ceil(sequences / 2)
    micro_batch = math.gcd(sequences, config.data.micro_batch)
    return config.replace({"data": {"micro_batch": micro_batch, "accum": sequences // micro_batch}})


def with_steps(config: Config, steps: int, unique: float | None) -> Config:
    """`config` as a run of `steps` steps, with a warmup of a tenth of them up to 2,000 and a full decay.

    Text that is read fewer than four times needs no dropout: the run has none then.
    """
    warmup = min(MAX_WARMUP, max(1, int(WARMUP_FRACTION * steps)))
    repeats = unique is not None and steps * config.tokens_per_step >= plan.MANY_EPOCHS * unique
    changes: dict[str, dict[str, Any]] = {
        "optim": {"warmup_steps": warmup, "decay_steps": None},
        "run": {"steps": steps, "name": "planned"},
        "model": {} if repeats else {"dropout": 0.0, "attention_dropout": 0.0},
    }
    return config.replace(changes)


def _steps_for(inputs: Inputs, step_seconds: float, device: Device | None, goal: Goal) -> int | None:
    """The length that meets the goal: the longest in time or energy, the shortest that reaches a loss."""
    if goal.target_loss is not None:
        return _steps_to_loss(inputs, goal.target_loss)
    hours = goal.hours
    if hours is None and goal.kwh is not None and device is not None:
        hours = goal.kwh / step_time.energy_kwh(device, 3600, inputs.gpus)
    seconds = (hours or 0.0) * 3600
    steps = int(seconds / step_seconds)
    while steps > 0 and plan.run_seconds(inputs.config, steps, step_seconds) > seconds:
        steps -= max(1, steps // 500)
    return plan.search_length(steps) if steps else 0


def _steps_to_loss(inputs: Inputs, loss: float) -> int | None:
    """The fewest steps that are expected to end at `loss`; None if repeated tokens keep every length above it."""

    def reaches(steps: int) -> bool:
        config = with_steps(inputs.config, steps, inputs.tokens.unique)
        return plan.predict_loss(replace(inputs, config=config), steps).loss <= loss

    lengths = [round(1.25**n) for n in range(2, 80)]
    index = next((n for n, steps in enumerate(lengths) if reaches(steps)), None)
    if index is None:
        return None
    too_short = lengths[index - 1] if index else 0
    between = range(too_short + 1, lengths[index])
    steps = between.start + bisect.bisect_left(between, True, key=reaches)
    fitted = math.ceil(scaling_law.FITTED_RATIO * parameters(inputs.config.model) / inputs.config.tokens_per_step)
    return max(steps, fitted)


def write_config(result: SearchResult, path: Path) -> None:
    """Writes the best run as a config file that trains as it is. Raises `ConfigError` C041 if that fails."""
    row = result.best.row
    inputs = result.inputs
    corpus = inputs.corpus.name
    if corpus == query.config_corpus(inputs.config)[0].name:
        corpus = inputs.config.data.corpus  # the config says so already
    run_name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-")[:100] or "planned"
    unique = None if inputs.tokens.unique is None else round(inputs.tokens.unique)
    config = result.best.config.replace(
        {"run": {"name": run_name}, "data": {"corpus": corpus, "unique_tokens": unique}}
    )
    time = ""
    if row.seconds is not None and inputs.device is not None:
        time = f"about {row.seconds / 3600:.1f} hours on {inputs.device.name}, "
    docstring = (
        f"Planned for {result.goal}: {parameters(config.model) / 1e6:.1f}M parameters, {row.total_steps:,} steps.\n\n"
        f"    python -m jaxgpt.train --config {path.name}\n\n"
        f"Predicted: {time}loss {row.loss:.2f} ({row.loss_low:.2f} to {row.loss_high:.2f}).\n"
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(config_source(config, docstring))
    except OSError as error:
        raise ConfigError("C041", f"'{path}' cannot be written: {error.strerror}", "choose another path") from error
