"""The plan of a run: everything the command says, as plain values. `plan` puts it together; nothing here prints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxgpt.budget import memory, query, scaling_law, step_time
from jaxgpt.budget.devices import CPU, Device
from jaxgpt.budget.memory import GIB, Memory
from jaxgpt.budget.names import size_warnings
from jaxgpt.budget.published_runs import Reference, nearest
from jaxgpt.budget.query import Tokens
from jaxgpt.budget.scaling_law import CORPORA, Corpus, LossPrediction, ScalingQuery
from jaxgpt.budget.step_time import Pace
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token, non_embedding_parameters, parameters, positions

STARTUP_SECONDS = 120.0  # imports, checking the tokens, compiling: minutes at most (bench/gpu.py measures it)
FORWARD_SHARE = 1 / 3  # an evaluation only goes forward
EPOCHS_OF_CARE = 4.0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was asked. `device` is None on a CPU, whose pace only a measurement tells; `name` is the config's."""

    config: Config
    name: str
    text: str = ""
    device: Device | None
    device_why: str = ""
    iters: tuple[int, ...]
    tokens: Tokens
    corpus: Corpus
    corpus_why: str = ""
    price: float = 0.30
    calibration: "Calibration | None" = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a run has taught: its seconds per step as a `Pace` of the planned config, and the loss offset's shift.

    `shift` in nats is added to the corpus's offset and `sd` takes the place of its standard deviation; None leaves
    the loss as the law has it.
    """

    source: str
    pace: Pace | None = None
    shift: float | None = None
    sd: float = 0.0

    def corpus(self, corpus: Corpus) -> Corpus:
        if self.shift is None:
            return corpus
        return replace(corpus, offset=corpus.offset + self.shift, sd=self.sd, evidence=f"calibrated by {self.source}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run of `max_iters` steps whose learning rate falls until its end. Times in seconds, None where unknown."""

    max_iters: int
    tokens: int
    epochs: float | None
    flops: float
    seconds: float | None
    seconds_low: float | None
    seconds_high: float | None
    energy_kwh: float | None
    cost: float | None
    loss: float
    loss_low: float
    loss_high: float
    gain_per_hour: float | None
    expectation: LossPrediction


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a change brings in nats, and the FLOPs of the whole run with it."""

    nats: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Memory against the device: bytes by kind, GiB usable, and the micro-batches that fit."""

    need: Memory
    remat: Memory
    usable_gib: float | None
    largest: int | None
    largest_remat: int | None
    table: tuple[tuple[int, float, bool | None], ...]

    @property
    def fits(self) -> bool | None:
        return None if self.usable_gib is None else self.need.total <= self.usable_gib * GIB


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The model: counts as nanoGPT makes them, positions apart, and operations per token both ways."""

    parameters: int
    non_embedding_parameters: int
    position_parameters: int
    tokens_per_step: int
    flops_per_token: int
    flops_per_token_causal: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer."""

    inputs: Inputs
    facts: Facts
    paces: dict[str, Pace]
    rows: tuple[Row, ...]
    fit: Fit
    gains: dict[str, Gain]
    nearest: tuple[Reference, ...]
    elsewhere: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def last(self) -> Row:
        return self.rows[-1]


def plan(inputs: Inputs) -> Plan:
    """The plan for `inputs`, rows in the order of their lengths."""
    if inputs.calibration:
        inputs = replace(inputs, corpus=inputs.calibration.corpus(inputs.corpus))
    paces = _paces(inputs)
    rows: list[Row] = []
    for iters in sorted(set(inputs.iters)):
        rows.append(row(inputs, paces.get("jaxgpt"), iters, rows[-1] if rows else None))
    last = rows[-1]
    others = {"fineweb", "fineweb-edu"} - {inputs.corpus.name} if inputs.corpus.name != "unknown" else set()
    return Plan(
        inputs=inputs,
        facts=facts(inputs.config),
        paces=paces,
        rows=tuple(rows),
        fit=fit(inputs.config, inputs.device),
        gains=gains(inputs, last.max_iters),
        nearest=tuple(nearest(parameters(inputs.config.model), last.tokens, inputs.corpus.name)),
        elsewhere={name: predict_loss(inputs, last.max_iters, corpus=CORPORA[name]).loss for name in sorted(others)},
        warnings=tuple(warnings(inputs, last)),
    )


def facts(config: Config) -> Facts:
    model = config.model
    return Facts(
        parameters=parameters(model),
        non_embedding_parameters=non_embedding_parameters(model),
        position_parameters=positions(model),
        tokens_per_step=config.tokens_per_step,
        flops_per_token=flops_per_token(model),
        flops_per_token_causal=flops_per_token(model, causal=True),
    )


def _paces(inputs: Inputs) -> dict[str, Pace]:
    """Seconds per step of jaxgpt and of nanoGPT-class software; none for a device that must be measured first."""
    found = {}
    if inputs.device:
        found = {
            software: step_time.estimate(inputs.config, inputs.device, software) for software in ("jaxgpt", "nanogpt")
        }
    if inputs.calibration and inputs.calibration.pace:
        found["jaxgpt"] = inputs.calibration.pace
    return found


def predict_loss(
    inputs: Inputs, iters: int, *, corpus: Corpus | None = None, unique: float | None = None
) -> LossPrediction:
    """What the law expects of a run of `iters` steps of these inputs, or of another corpus or count of tokens."""
    held = inputs.tokens.unique if unique is None else unique
    return scaling_law.predict_loss(query.build_query(inputs.config, iters, corpus or inputs.corpus, held))


def row(inputs: Inputs, pace: Pace | None, iters: int, above: Row | None = None) -> Row:
    """The row of a run of `iters` steps; `above` is the shorter run that its marginal gain is measured against."""
    config, expected = inputs.config, predict_loss(inputs, iters)
    tokens = iters * config.tokens_per_step
    unique = inputs.tokens.unique
    low, middle, high = (None if pace is None else duration(config, iters, p) for p in _ends(pace))
    energy = step_time.energy_kwh(inputs.device, middle) if middle is not None and inputs.device else None
    gained = None
    if above is not None and middle is not None and above.seconds is not None:
        gained = (above.loss - expected.loss) / ((middle - above.seconds) / 3600)
    return Row(
        max_iters=iters,
        tokens=tokens,
        epochs=None if unique is None else tokens / unique,
        flops=float(tokens) * flops_per_token(config.model),
        seconds=middle,
        seconds_low=low,
        seconds_high=high,
        energy_kwh=energy,
        cost=None if energy is None else energy * inputs.price,
        loss=expected.loss,
        loss_low=expected.low,
        loss_high=expected.high,
        gain_per_hour=gained,
        expectation=expected,
    )


def _ends(pace: Pace | None) -> Sequence[float]:
    return (math.nan,) * 3 if pace is None else (pace.low, pace.seconds, pace.high)


def duration(config: Config, iters: int, seconds_per_step: float) -> float:
    """A whole run in seconds: its steps, its evaluations of both splits, and the start."""
    evaluations = iters // config.run.eval_every + 1
    share = 2 * config.run.eval_tokens / config.tokens_per_step * FORWARD_SHARE
    return STARTUP_SECONDS + seconds_per_step * (iters + evaluations * share)


def gains(inputs: Inputs, iters: int) -> dict[str, Gain]:
    """What twice the model, twice the steps and twice the different tokens would each bring to the run of `iters`."""
    asked = query.build_query(inputs.config, iters, inputs.corpus, inputs.tokens.unique)
    now = _without_recipe(asked)
    flops = asked.tokens * flops_per_token(inputs.config.model)
    more = {
        "double_model": (replace(asked, parameters=2 * asked.parameters), 2 * flops),
        "double_steps": (replace(asked, tokens=2 * asked.tokens), 2 * flops),
    }
    found = {name: Gain(nats=now - _without_recipe(other), flops=cost) for name, (other, cost) in more.items()}
    unique = asked.unique
    varied = now if unique is None else _without_recipe(replace(asked, unique=2 * unique))
    return found | {"double_unique_data": Gain(nats=now - varied, flops=flops)}


def _without_recipe(asked: ScalingQuery) -> float:
    """The expected loss as if the recipe were tuned to each size: a gain is not to be one of the learning rate."""
    expected = scaling_law.predict_loss(asked)
    return expected.loss - expected.terms["recipe"]


def fit(config: Config, device: Device | None) -> Fit:
    """Memory of a step of `config`, and which micro-batches fit on `device`."""
    usable = None if device is None else device.usable
    sizes = {size: memory.estimate(config, size).total / GIB for size in memory.candidate_micro_batches(config)}
    return Fit(
        need=memory.estimate(config),
        remat=memory.estimate(config, remat=memory.REMAT_BLOCKS),
        usable_gib=usable,
        largest=None if usable is None else memory.max_micro_batch(config, usable),
        largest_remat=None if usable is None else memory.max_micro_batch(config, usable, remat=memory.REMAT_BLOCKS),
        table=tuple((size, held, None if usable is None else held <= usable) for size, held in sizes.items()),
    )


def warnings(inputs: Inputs, last: Row) -> list[str]:
    """What the reader should know before believing the rest."""
    found = size_warnings(inputs.name, inputs.text, inputs.config)
    if inputs.device is None and "jaxgpt" not in _paces(inputs):
        found.append(f"the pace of a {CPU} is not in any table: --measure runs some steps here and uses those")
    if inputs.device and inputs.device.note:
        found.append(f"{inputs.device.name}: {inputs.device.note}")
    if (inputs.config.mesh.data_parallel or 1) > 1:
        found.append("pace, energy and memory are those of one device; the config asks for several")
    if inputs.corpus.name == "unknown":
        why = inputs.corpus_why or "no corpus is given"
        found.append(f"corpus unknown ({why}): it alone moves the loss by ±0.3; --corpus NAME, or --calibrate RUN")
    found += [f"outside the law's fitted range, so the interval is wide: {how}" for how in last.expectation.outside]
    found += [f"recipe: {how}" for how in query.config_recipe(inputs.config, last.max_iters).differences]
    if inputs.tokens.unique is None:
        found.append("how many different tokens there are is unknown (--unique-tokens or --data): epochs are left out")
    elif last.epochs and last.epochs > EPOCHS_OF_CARE:
        found.append(f"{last.epochs:.1f} epochs: repeated tokens teach less and less after the fourth")
    room = fit(inputs.config, inputs.device)
    if room.fits is False:
        what = f"does not fit: {room.need.total / GIB:.1f} GiB of {room.usable_gib:.1f} GiB usable"
        found.append(f"{what}; the largest micro-batch that fits is {room.largest}")
    if inputs.device and room.fits and room.need.total > memory.JAX_MEMORY_FRACTION * inputs.device.memory * GIB:
        found.append(
            "JAX takes three quarters of a GPU by default: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 for this run"
        )
    return found
