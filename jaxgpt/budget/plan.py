"""The plan of a run as plain values: time, energy, memory and loss for each length. Nothing here prints."""

import bisect
import math
from dataclasses import dataclass, replace

from jaxgpt.budget import memory, query, scaling_law, speed, step_time, tokens
from jaxgpt.budget.calibration import Calibration
from jaxgpt.budget.devices import CPU, Device
from jaxgpt.budget.memory import GIB, Memory
from jaxgpt.budget.published_runs import PublishedRun, nearest_runs
from jaxgpt.budget.query import TokenCount
from jaxgpt.budget.scaling_law import CORPORA, Corpus, LossPrediction, ScalingQuery
from jaxgpt.budget.step_time import StepTime
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token, non_embedding_parameters, parameters, position_parameters

STARTUP_SECONDS = 120.0  # imports, checking the tokens, compiling: minutes at most (bench/gpu.py measures it)
FORWARD_FRACTION = 1 / 3  # an evaluation only runs forward
MANY_EPOCHS = 4.0
MAX_EPOCHS = 20.0  # more repetition than this is not recommended, whatever the scaling law predicts
# Lengths in steps that a search tries: three digits, 0.5 % apart. They do not depend on the goal, so that a longer
# limit allows all runs of a shorter one and never gives a worse plan.
SEARCH_LENGTHS = tuple(sorted({int(float(f"{1.005**power:.3g}")) for power in range(4200)}))
REPEATED_EVERY = 4  # of these lengths are tried where tokens are repeated


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What to plan. `device` is None for a CPU, whose speed must be measured; `lengths` are numbers of steps.

    `gpus` devices of that kind share each micro-batch.
    `command` trains the config if it was suggested.
    """

    config: Config
    name: str
    command: str = ""
    device: Device | None
    device_reason: str = ""
    gpus: int = 1
    lengths: tuple[int, ...]
    tokens: TokenCount
    corpus: Corpus
    corpus_source: str = ""
    price: float = 0.30
    calibration: Calibration | None = None

    def calibrated(self, calibration: Calibration) -> "Inputs":
        """The inputs with the step time and the corpus offset that a run has taught."""
        if calibration.measured is None and self.calibration:
            measured = self.calibration
            calibration = replace(
                calibration,
                measured=measured.measured,
                measured_config=measured.measured_config,
                measured_device=measured.measured_device,
                software=measured.software,
            )
        return replace(self, calibration=calibration, corpus=calibration.corpus(self.corpus))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run of `total_steps` whose learning rate decays until its end. Times in seconds, None where unknown."""

    total_steps: int
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
    prediction: LossPrediction


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a change brings in nats, and the FLOPs of the whole run with it."""

    nats: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The memory of a step at one micro-batch; `fits` is None without a device."""

    size: int
    gib: float
    fits: bool | None


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """Memory of a step compared with the device, and the micro-batches that fit."""

    memory: Memory
    memory_with_remat: Memory
    usable_gib: float | None
    max_micro_batch: int | None
    max_micro_batch_with_remat: int | None
    micro_batches: tuple[MicroBatch, ...]

    @property
    def fits(self) -> bool | None:
        """Whether the step fits; None without a device."""
        return None if self.usable_gib is None else self.memory.total <= self.usable_gib * GIB


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """Parameters as nanoGPT counts them (learned positions are separate), and operations per token."""

    parameters: int
    non_embedding_parameters: int
    position_parameters: int
    tokens_per_step: int
    flops_per_token: int
    flops_per_token_causal: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the planner knows about a run; `rows` are ordered by length."""

    inputs: Inputs
    model: ModelSummary
    step_times: dict[str, StepTime]
    rows: tuple[Row, ...]
    fit: MemoryFit
    gains: dict[str, Gain]
    nearest_runs: tuple[PublishedRun, ...]
    loss_on_other_corpora: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def last(self) -> Row:
        """The longest run."""
        return self.rows[-1]


def make_plan(inputs: Inputs) -> Plan:
    """Plans a run for each length of `inputs`."""
    times = step_times(inputs)
    rows: list[Row] = []
    for steps in sorted(set(inputs.lengths)):
        rows.append(make_row(inputs, times.get("jaxgpt"), steps, rows[-1] if rows else None))
    last = rows[-1]
    fit = memory_fit(speed.per_device(inputs.config, inputs.gpus), inputs.device)
    return Plan(
        inputs=inputs,
        model=summarize_model(inputs.config),
        step_times=times,
        rows=tuple(rows),
        fit=fit,
        gains=gains(inputs, last.total_steps),
        nearest_runs=tuple(nearest_runs(parameters(inputs.config.model), last.tokens, inputs.corpus.name)),
        loss_on_other_corpora=_loss_on_other_corpora(inputs, last.total_steps),
        warnings=tuple(_warnings(inputs, last, fit, has_step_time="jaxgpt" in times)),
    )


def _loss_on_other_corpora(inputs: Inputs, steps: int) -> dict[str, float]:
    """The loss of the same run on FineWeb and FineWeb-Edu; empty for an unknown corpus."""
    if inputs.corpus.name == "unknown":
        return {}
    names = sorted({"fineweb", "fineweb-edu"} - {inputs.corpus.name})
    return {name: predict_loss(inputs, steps, corpus=CORPORA[name]).loss for name in names}


def summarize_model(config: Config) -> ModelSummary:
    """Size and operations of the model of `config`."""
    model = config.model
    return ModelSummary(
        parameters=parameters(model),
        non_embedding_parameters=non_embedding_parameters(model),
        position_parameters=position_parameters(model),
        tokens_per_step=config.tokens_per_step,
        flops_per_token=flops_per_token(model),
        flops_per_token_causal=flops_per_token(model, causal=True),
    )


def step_times(inputs: Inputs) -> dict[str, StepTime]:
    """Step times of jaxgpt and of nanoGPT-class software; those that only a measurement could tell are missing."""
    times = {}
    own = own_step_time(inputs)
    if own is not None:
        times["jaxgpt"] = own
    calibration = inputs.calibration
    other = None
    if calibration and calibration.software != "jaxgpt":
        other = calibration.measured_time(inputs.config, inputs.device, inputs.gpus)
    if other is None and inputs.device is not None:
        other = speed.estimate(inputs.config, inputs.device, "nanogpt", inputs.gpus)
    if other is not None:
        times["nanogpt"] = other
    return times


def own_step_time(inputs: Inputs) -> StepTime | None:
    """jaxgpt's step time: calibrated, measured or modeled, in this order; None for an unmeasured CPU."""
    if inputs.calibration and inputs.calibration.measured:
        return inputs.calibration.step_time(inputs.config, inputs.device, inputs.gpus)
    if inputs.device is None:
        return None
    return speed.estimate(inputs.config, inputs.device, gpus=inputs.gpus)


def predict_loss(
    inputs: Inputs, steps: int, *, corpus: Corpus | None = None, unique: float | None = None
) -> LossPrediction:
    """The predicted loss of a run of `steps` steps, on request for another corpus or number of unique tokens."""
    unique = inputs.tokens.unique if unique is None else unique
    return scaling_law.predict_loss(query.build_query(inputs.config, steps, corpus or inputs.corpus, unique))


def make_row(inputs: Inputs, time: StepTime | None, steps: int, shorter: Row | None = None) -> Row:
    """The row of a run of `steps` steps; its gain per hour is relative to the run `shorter`."""
    config = inputs.config
    prediction = predict_loss(inputs, steps)
    tokens = steps * config.tokens_per_step
    unique = inputs.tokens.unique
    seconds = None if time is None else run_seconds(config, steps, time.seconds)
    energy = None
    if seconds is not None and inputs.device:
        energy = step_time.energy_kwh(inputs.device, seconds, inputs.gpus)
    gain_per_hour = None
    if shorter is not None and shorter.seconds is not None and seconds is not None:
        gain_per_hour = (shorter.loss - prediction.loss) / ((seconds - shorter.seconds) / 3600)
    return Row(
        total_steps=steps,
        tokens=tokens,
        epochs=None if unique is None else tokens / unique,
        flops=float(tokens) * flops_per_token(config.model),
        seconds=seconds,
        seconds_low=None if time is None else run_seconds(config, steps, time.low),
        seconds_high=None if time is None else run_seconds(config, steps, time.high),
        energy_kwh=energy,
        cost=None if energy is None else energy * inputs.price,
        loss=prediction.loss,
        loss_low=prediction.low,
        loss_high=prediction.high,
        gain_per_hour=gain_per_hour,
        prediction=prediction,
    )


def best_steps(inputs: Inputs, longest: int) -> int:
    """The length up to `longest` steps and 20 epochs with the lowest predicted loss, within 2 % of the best length.

    Where tokens would be repeated, it is one of `SEARCH_LENGTHS`.
    """
    unique = inputs.tokens.unique
    steps_per_epoch = math.inf if unique is None else unique / inputs.config.tokens_per_step
    if longest <= steps_per_epoch:
        return longest  # nothing is repeated, so that each step helps
    first = bisect.bisect(SEARCH_LENGTHS, steps_per_epoch)
    end = bisect.bisect(SEARCH_LENGTHS, min(longest, MAX_EPOCHS * steps_per_epoch))
    repeated = [SEARCH_LENGTHS[n] for n in range(first, end) if n % REPEATED_EVERY == 0]
    return min([search_length(steps_per_epoch), *repeated], key=lambda steps: (comparable_loss(inputs, steps), steps))


def search_length(longest: float) -> int:
    """The longest of `SEARCH_LENGTHS` that is at most `longest`, and at least 1."""
    return SEARCH_LENGTHS[max(0, bisect.bisect(SEARCH_LENGTHS, longest) - 1)]


def comparable_loss(inputs: Inputs, steps: int) -> float:
    """The predicted loss without the limit of guessing, above which all lengths would look the same."""
    asked = query.build_query(inputs.config, steps, inputs.corpus, inputs.tokens.unique)
    return scaling_law.predict_loss(replace(asked, ceiling=math.inf)).loss


def run_seconds(config: Config, steps: int, seconds_per_step: float) -> float:
    """A whole run in seconds: its steps, its evaluations of both splits, and the start."""
    evaluations = steps // config.run.eval_every + 1
    steps_per_evaluation = 2 * config.run.eval_tokens / config.tokens_per_step * FORWARD_FRACTION
    return STARTUP_SECONDS + seconds_per_step * (steps + evaluations * steps_per_evaluation)


def gains(inputs: Inputs, steps: int) -> dict[str, Gain]:
    """What twice the model, twice the steps and twice the unique tokens would each bring to a run of `steps` steps."""
    base = query.build_query(inputs.config, steps, inputs.corpus, inputs.tokens.unique)
    flops = base.tokens * flops_per_token(inputs.config.model)
    more_unique = base if base.unique is None else replace(base, unique=2 * base.unique)
    changes = {
        "double_model": (replace(base, parameters=2 * base.parameters), 2 * flops),
        "double_steps": (replace(base, tokens=2 * base.tokens), 2 * flops),
        "double_unique_data": (more_unique, flops),
    }
    loss = _loss_of_tuned_recipe(base)
    return {
        name: Gain(nats=loss - _loss_of_tuned_recipe(changed), flops=cost) for name, (changed, cost) in changes.items()
    }


def _loss_of_tuned_recipe(query: ScalingQuery) -> float:
    """The predicted loss without the recipe's cost: a gain must not come from the learning rate."""
    prediction = scaling_law.predict_loss(query)
    return prediction.loss - prediction.terms["recipe"]


def memory_fit(config: Config, device: Device | None) -> MemoryFit:
    """Memory of a step of `config`, the part of one device, and which micro-batches fit on `device`."""
    usable = None if device is None else device.usable
    flash = None if device is None or device.has_bfloat16 else False
    micro_batches = []
    for size in memory.candidate_micro_batches(config):
        gib = memory.estimate(config, size, flash=flash).total / GIB
        micro_batches.append(MicroBatch(size=size, gib=gib, fits=None if usable is None else gib <= usable))
    largest = largest_with_remat = None
    if usable is not None:
        largest = memory.max_micro_batch(config, usable, flash=flash)
        largest_with_remat = memory.max_micro_batch(config, usable, remat=memory.REMAT_BLOCKS, flash=flash)
    return MemoryFit(
        memory=memory.estimate(config, flash=flash),
        memory_with_remat=memory.estimate(config, remat=memory.REMAT_BLOCKS, flash=flash),
        usable_gib=usable,
        max_micro_batch=largest,
        max_micro_batch_with_remat=largest_with_remat,
        micro_batches=tuple(micro_batches),
    )


def _warnings(inputs: Inputs, last: Row, fit: MemoryFit, *, has_step_time: bool) -> list[str]:
    """What a reader should know before relying on the plan."""
    texts = [*_device_warnings(inputs, fit, has_step_time=has_step_time)]
    if inputs.corpus.name == "unknown":
        reason = inputs.corpus_source or "no corpus is given"
        texts.append(
            f"the corpus is unknown ({reason}), which alone moves the loss by ±0.3: --corpus NAME, or --calibrate RUN"
        )
    scale = tokens.config_scale(inputs.config)
    if scale.note:
        texts.append(f"losses are per token of this tokenizer; {scale.note}")
    texts += [f"outside the scaling law's fitted range, so the interval is wide: {t}" for t in _outside(last)]
    recipe = query.config_recipe(inputs.config, last.total_steps)
    texts += [f"unlike the fitted runs, the recipe has {difference}" for difference in recipe.differences]
    if inputs.tokens.unique is None:
        texts.append("the number of unique tokens is unknown, so epochs are left out: --unique-tokens N, or --data DIR")
    elif last.epochs and last.epochs > MANY_EPOCHS:
        texts.append(f"{last.epochs:.1f} epochs: repeated tokens bring less and less after the fourth")
    return texts


def _outside(row: Row) -> list[str]:
    return [text for text in (*row.prediction.outside, row.prediction.few_steps) if text]


def _device_warnings(inputs: Inputs, fit: MemoryFit, *, has_step_time: bool) -> list[str]:
    texts = []
    device = inputs.device
    needed = fit.memory.total
    if not has_step_time or (inputs.calibration and inputs.calibration.is_assumed):
        texts.append(f"the speed of a {CPU} is not in the device table: --measure times some steps here")
    if device and device.note:
        texts.append(f"{device.name}: {device.note}")
    if fit.fits is False:
        texts.append(
            f"does not fit: {needed / GIB:.1f} GiB of {fit.usable_gib:.1f} GiB usable; "
            f"the largest micro-batch that fits is {fit.max_micro_batch}"
        )
    if device and fit.fits and needed > memory.JAX_MEMORY_FRACTION * device.memory * GIB:
        texts.append(
            "JAX takes three quarters of a GPU by default: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 for this run"
        )
    return texts
