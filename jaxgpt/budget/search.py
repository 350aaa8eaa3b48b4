"""The other way round: from hours, energy or a target loss to a model, its tokens, its batch and its schedule.

Every size of a ladder of shapes is tried with the device's largest micro-batch that divides a step; each that can be
trained to the law's ratio of tokens to parameters stands on the frontier that the choice is shown with.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgpt.budget import memory, plan, scaling_law, step_time
from jaxgpt.budget.devices import Device
from jaxgpt.budget.plan import Inputs, Row
from jaxgpt.config import Config, Model
from jaxgpt.config.model_size import parameters
from jaxgpt.errors import ConfigError

HEAD = 64
# layers and width: GPT-2's proportions, widths of whole heads
SHAPES = (
    (4, 128), (6, 192), (6, 256), (8, 320), (8, 384), (10, 384), (12, 384), (10, 448), (12, 448), (10, 512), (12, 512),
    (12, 576), (12, 640), (12, 704), (12, 768), (14, 832), (16, 896), (18, 960), (20, 1024), (24, 1024), (24, 1152),
    (24, 1280), (28, 1344), (32, 1408), (36, 1536), (40, 1600), (48, 1600),
)  # fmt: skip
MIN_STEPS = 20
WARMUP_SHARE, MOST_WARMUP = 0.1, 2000
GPT2_MOST_RATE = 1e-3  # the highest rate that a run with learned positions was seen to train well at


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is given: exactly one of them."""

    hours: float | None = None
    kwh: float | None = None
    target_loss: float | None = None

    def __str__(self) -> str:
        if self.hours is not None:
            return f"{self.hours:g} hours"
        return f"{self.kwh:g} kWh" if self.kwh is not None else f"a loss of {self.target_loss:g}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run that keeps to the goal."""

    config: Config
    row: Row
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate that was picked, and the frontier it was picked from, by size."""

    goal: Goal
    best: Candidate
    frontier: tuple[Candidate, ...]
    inputs: Inputs


def best_run(inputs: Inputs, goal: Goal) -> Choice:
    """The best run for the goal on the inputs' device and data. Raises `ConfigError` C044 if there is none.

    For hours and energy the lowest loss wins, for a target the shortest run. Runs stay where the law was fitted: 15
    tokens per parameter or more, 20M to 1.5B parameters; others are taken only if none of those can be trained.
    """
    if inputs.device is None:
        raise ConfigError("C044", "without a GPU's pace nothing can be chosen", "--gpu NAME")
    tried = [c for shape in SHAPES if (c := candidate(inputs, inputs.device, with_shape(inputs.config, *shape), goal))]
    found = [c for c in tried if c.ratio >= scaling_law.FITTED_RATIO] or tried
    inside = [c for c in found if not c.row.expectation.outside] or found
    if not inside:
        raise ConfigError("C044", f"no run on {inputs.device.name} keeps to {goal}", _hint(inputs, goal))
    if goal.target_loss is not None:
        best = min(inside, key=lambda c: c.row.seconds or math.inf)
    else:
        best = min(inside, key=lambda c: c.row.loss)
    return Choice(goal=goal, best=best, frontier=tuple(found), inputs=with_config(inputs, best))


def _hint(inputs: Inputs, goal: Goal) -> str:
    if goal.target_loss is None:
        return "give it more, or choose a faster device with --gpu"
    return f"the corpus's own irreducible loss is {inputs.corpus.offset:.2f}; choose a higher target or a faster device"


def with_shape(config: Config, layers: int, width: int) -> Config:
    """`config` with another shape of the same architecture, its learning rate tuned to its size."""
    model = dataclasses.replace(
        config.model,
        n_layer=layers,
        n_embd=width,
        n_head=width // HEAD,
        n_kv_head=None,
        head_dim=None,
        n_inner=None,
    )
    return config.replace({"model": dataclasses.asdict(model), "optim": rates(model)})


def rates(model: Model) -> dict[str, float]:
    rate = scaling_law.tuned_learning_rate(parameters(model))
    if model.architecture == "gpt2":
        rate = min(rate, GPT2_MOST_RATE)
    rate = float(f"{rate:.1e}")
    return {"learning_rate": rate, "min_lr": float(f"{rate / 10:.1e}")}


def candidate(inputs: Inputs, device: Device, config: Config, goal: Goal) -> Candidate | None:
    """The run of `config`'s shape that keeps to the goal; None if it does not fit, or ends too short."""
    batched = with_batch(config, device)
    if batched is None:
        return None
    inputs = replace(inputs, config=batched)
    pace = step_time.estimate(batched, device)
    if inputs.calibration and inputs.calibration.pace:
        pace = pace.scaled(inputs.calibration.pace.seconds / step_time.estimate(inputs.config, device).seconds)
    steps = _steps(inputs, pace.seconds, device, goal)
    if steps is None or steps < MIN_STEPS:
        return None
    done = with_steps(batched, steps)
    inputs = replace(inputs, config=done)
    count = parameters(done.model)
    ratio = steps * done.tokens_per_step / count
    return Candidate(config=done, row=plan.row(inputs, step_time.estimate(done, device), steps), ratio=ratio)


def with_batch(config: Config, device: Device) -> Config | None:
    """`config` with the largest micro-batch of at most 64 that fits and divides a step; None if not even 1 does."""
    sequences = config.data.micro_batch * config.data.accum
    fits = memory.max_micro_batch(config, device.usable)
    sizes = [size for size in range(1, min(fits, 64, sequences) + 1) if sequences % size == 0]
    return config.replace({"data": {"micro_batch": sizes[-1], "accum": sequences // sizes[-1]}}) if sizes else None


def with_steps(config: Config, steps: int) -> Config:
    warmup = min(MOST_WARMUP, max(1, int(WARMUP_SHARE * steps)))
    return config.replace(
        {"optim": {"warmup_steps": warmup, "decay_steps": None}, "run": {"steps": steps, "name": "planned"}}
    )


def _steps(inputs: Inputs, pace: float, device: Device, goal: Goal) -> int | None:
    """The length that keeps to the goal: the longest in time or energy, the shortest that reaches a loss."""
    if goal.target_loss is not None:
        return _steps_to(inputs, goal.target_loss)
    hours = goal.hours
    if hours is None and goal.kwh is not None:
        hours = goal.kwh / step_time.energy_kwh(device, 3600)
    seconds = (hours or 0.0) * 3600
    steps = int(seconds / pace)
    while steps > 0 and plan.duration(inputs.config, steps, pace) > seconds:
        steps -= max(1, steps // 500)
    return steps


def _steps_to(inputs: Inputs, loss: float) -> int | None:
    """The fewest steps that are expected to end at `loss`; None if none do, as repeated tokens bring it up again."""
    lengths = [round(1.25**n) for n in range(2, 80)]
    reached = next((n for n, steps in enumerate(lengths) if expected(inputs, steps) <= loss), None)
    if reached is None:
        return None
    below, above = (lengths[reached - 1] if reached else 0), lengths[reached]
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if expected(inputs, middle) > loss else (below, middle)
    least = math.ceil(scaling_law.FITTED_RATIO * parameters(inputs.config.model) / inputs.config.tokens_per_step)
    return max(above, least)


def expected(inputs: Inputs, steps: int) -> float:
    config = with_steps(inputs.config, steps)
    return plan.predict_loss(replace(inputs, config=config), steps).loss


def with_config(inputs: Inputs, best: Candidate) -> Inputs:
    """The inputs that plan the chosen run."""
    name = f"a run of {best.row.max_iters:,} steps"  # the config's own name and text speak of another model
    return replace(inputs, config=best.config, name=name, text="", iters=(best.row.max_iters,))


def write_config(choice: Choice, path: Path) -> None:
    """Writes the chosen run as a config file that trains as it is. Raises `ConfigError` C041 where that cannot be."""
    if path.exists():
        raise ConfigError("C041", f"'{path}' exists already", "choose another name: nothing of yours is overwritten")
    try:
        path.write_text(config_text(choice, path.stem), encoding="utf-8")
    except OSError as error:
        raise ConfigError("C041", f"'{path}' cannot be written: {error.strerror}", "choose another place") from error


def config_text(choice: Choice, name: str) -> str:
    """The config as Python: a docstring with what was promised, and every field that is not its default."""
    row = choice.best.row
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:100] or "planned"
    config = choice.best.config.replace({"run": {"name": safe}})
    device, tokens = choice.inputs.device, choice.inputs.tokens
    unique = f"{tokens.unique / 1e9:.12g}B unique tokens" if tokens.unique else "no count of different tokens"
    corpus = choice.inputs.corpus.name
    hours = (
        "" if row.seconds is None else f"about {row.seconds / 3600:.1f} hours on {device.name if device else 'it'}, "
    )
    lines = [
        f'"""Planned for {choice.goal}: {parameters(config.model) / 1e6:.1f}M parameters, {row.max_iters:,} steps.',
        "",
        f"    python -m jaxgpt.train --config {name}.py",
        "",
        f"Promised: {hours}loss {row.loss:.2f} ({row.loss_low:.2f} to {row.loss_high:.2f}) on this corpus; {unique}.",
        f"corpus: {corpus}",
        '"""',
        "",
        "from jaxgpt.config import Config, Data, Mesh, Model, Optim, Run",
        "",
        "config = Config(",
        *_sections(config),
        ")",
        "",
    ]
    return "\n".join(lines)


def _sections(config: Config) -> list[str]:
    lines = []
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        plain = type(section)()
        changed = {
            f.name: getattr(section, f.name)
            for f in dataclasses.fields(section)
            if getattr(section, f.name) != getattr(plain, f.name)
        }
        inside = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        lines.append(f"    {field.name}={type(section).__name__}({inside}),")
    return lines
