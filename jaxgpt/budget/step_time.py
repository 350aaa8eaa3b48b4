"""How long a step takes: a roofline over its kernels, for jaxgpt and for nanoGPT-class software on the same device.

A kernel takes as long as its arithmetic at a share of the matrix units' peak or its traffic at a share of the memory's
bandwidth, whichever is longer, and each launch costs its gap. Shares are ranges, because they differ between shapes,
drivers and clocks: the low end of all of them at once is the slow end of the interval, the high end the fast one. No
share was fitted to a run of this model; where a run has been measured here (bench/results/), it takes their place.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jaxgpt
from jaxgpt.budget import devices
from jaxgpt.budget.devices import Device
from jaxgpt.budget.memory import flash_attention, number_size
from jaxgpt.config import Config, Model
from jaxgpt.config.attention import SCORES_FRACTION
from jaxgpt.config.model_size import flops_per_token, non_embedding_parameters, parameters


class Range(NamedTuple):
    """A share or a duration: at its worst and at its best."""

    worst: float
    best: float


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Shares of a device's peak and bandwidth that kernels reach, and the gap in seconds between two launches."""

    gemm: Range
    attention: Range
    bandwidth: Range
    launch: Range
    evidence: str


# Matrix products of width 384 to 1,600 reach 70 to 90 % of what power-limited cards sustain: an H200 does 788 of 989
# TFLOP/s (80 %) on 8,192^3 random bf16 numbers, and llm.c's whole step 60 % of an A100. Copies reach 88 % of an H200's
# 4.8 TB/s; fused elementwise kernels with reductions less. Attention of head size 64, forward and backward together,
# counted causally: FlashAttention-2 reaches 35 to 45 % of Hopper's peak and about 60 % where products are half as fast
# relative to the exponentials (Ada and Ampere GeForce). A launch costs 1 to 4 microseconds.
GEMM, BANDWIDTH, LAUNCH = Range(0.70, 0.90), Range(0.75, 0.88), Range(4e-6, 1e-6)
FLASH = {
    "turing": Range(0.20, 0.35),
    "ampere": Range(0.40, 0.62),
    "ampere-hbm": Range(0.35, 0.55),
    "ada": Range(0.40, 0.62),
    "hopper": Range(0.22, 0.40),
    "blackwell": Range(0.35, 0.60),
    "blackwell-hbm": Range(0.15, 0.35),
}
# cuDNN's kernel beside FlashAttention-2: 1.7 to 2.3 times as fast on Hopper, equal on an L40S, 0.82 on an A100, 0.88 on
# an RTX PRO 6000 (transformers PR 48163); 126 against 180 TFLOP/s on an RTX 5090 (jax issue 24934).
CUDNN = {
    "turing": Range(0.7, 1.0),
    "ampere": Range(0.75, 1.0),
    "ampere-hbm": Range(0.75, 0.9),
    "ada": Range(0.80, 1.0),
    "hopper": Range(1.7, 2.3),
    "blackwell": Range(0.65, 0.9),
    "blackwell-hbm": Range(1.5, 2.3),
}
SMALL_HEADS = 64  # a head half as wide does the same products with twice the exponentials
# JAX on one GPU beside PyTorch, GPT-2 124M, attention and layers as here: 0.87 to 0.95 of its speed (jax issue 24411).
JAX_BESIDE_TORCH = Range(0.87, 1.0)
# The peak stands for the rated boost clock. GPU Boost takes a GeForce card above it while power and heat allow, and a
# card at its power limit below: a tenth up is assumed, not measured here. Data-center cards are rated at a clock that
# they do not exceed, and fall below it under their power limit (the H200's 788 of 989 TFLOP/s above is at that limit).
CLOCK_GEFORCE, CLOCK_OTHERS = Range(0.93, 1.10), Range(0.85, 1.00)
# Bytes per logit outside the products, in bf16: read for the sum, at worst also for the maximum, read for the slope and
# written. PyTorch the same; at worst through a float32 copy.
LOGIT_BYTES = {"jaxgpt": Range(8, 6), "nanogpt": Range(16, 6)}
# Bytes per token, block and unit of width for norms, residual sums, dropout and their gradients. Ours is a bf16 stream,
# and is counted in the programs that XLA 0.10.2 makes (bench/program.py): 69 for an H100, 84 for an RTX 4070, of which
# a large cache keeps some; dropout's masks are drawn again. nanoGPT's is a float32 stream: each fused with its
# neighbours at best, one by one at worst.
STREAM_BYTES = {"jaxgpt": Range(84, 60), "nanogpt": Range(88, 56)}
MASK_BYTES = Range(8, 0)  # of dropout, for nanoGPT: torch.compile makes masks anew or, at worst, keeps them
SOFTWARE = {
    "jaxgpt": "this package: bf16 residual stream, bf16 logits in chunks, weights cast once per step",
    "nanogpt": "PyTorch with torch.compile and FlashAttention, as nanoGPT: float32 residual stream under autocast, "
    "weights cast and gradients added in float32 for every micro-batch, bf16 logits all at once",
}
BECAUSE = {
    "jaxgpt": "fast if elementwise work is fused, products reach 90 % and the clock is at its best; slow if none of "
    "that holds and JAX is 0.87 of PyTorch; not measured",
    "nanogpt": "fast if torch.compile fuses all elementwise work, products reach 90 % and the clock is at its best "
    "(a GeForce card a tenth above its rated one); slow if arrays go through memory one by one and products reach 70 %",
}
KERNELS_PER_BLOCK, KERNELS_ELSEWHERE = 40, 50


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kind of kernel of a step: its arithmetic, its traffic in bytes, and the seconds it takes at its best."""

    name: str
    flops: float
    bytes: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds per step, an 80 % interval around them, what they rest on, and their parts."""

    seconds: float
    low: float
    high: float
    why: str
    kernels: tuple[Kernel, ...] = ()

    def scaled(self, factor: float) -> "Pace":
        return replace(self, seconds=self.seconds * factor, low=self.low * factor, high=self.high * factor)


def estimate(config: Config, device: Device, software: str = "jaxgpt", results: Path | None = None) -> Pace:
    """What a step of `config` takes on `device` under `software`, measured where a result for the device exists."""
    guess = roofline(config, device, software)
    found = measured(device, results) if software == "jaxgpt" else None
    if found is None:
        return guess
    reference, seconds, source = found
    factor = seconds / roofline(reference, device, software).seconds
    known = guess.scaled(factor)
    spread = 0.03 if reference.model == config.model else 0.10
    return replace(
        known,
        low=known.seconds * (1 - spread),
        high=known.seconds * (1 + spread),
        why=f"measured on this kind of device ({source}), the kernel model scaled by {factor:.2f}",
    )


def roofline(config: Config, device: Device, software: str) -> Pace:
    low, high = (sum(k.seconds for k in kernels(config, device, software, best=best)) for best in (True, False))
    if software == "jaxgpt":
        high /= JAX_BESIDE_TORCH.worst
    why = f"roofline of {device.tflops:g} TFLOP/s and {device.bandwidth:g} GB/s: {BECAUSE[software]}"
    listed = tuple(kernels(config, device, software, best=True))
    return Pace(seconds=math.sqrt(low * high), low=low, high=high, why=why, kernels=listed)


def efficiency(device: Device, model: Model, software: str) -> Efficiency:
    """The shares that kernels of `model` reach on `device`."""
    flash = FLASH[device.family]
    if software == "jaxgpt":
        ratio = CUDNN[device.family]
        flash = Range(flash.worst * ratio.worst, flash.best * ratio.best)
    narrow = min(1.0, (model.head_size / SMALL_HEADS) ** 0.5)
    attention = Range(flash.worst * narrow, flash.best * narrow)
    return Efficiency(gemm=GEMM, attention=attention, bandwidth=BANDWIDTH, launch=LAUNCH, evidence=SOFTWARE[software])


def kernels(config: Config, device: Device, software: str, *, best: bool) -> list[Kernel]:
    """The kernels of one whole step with their seconds, at the best or the worst of the shares."""
    shares = efficiency(device, config.model, software)
    gemm, attention, bandwidth, launch = (
        getattr(shares, name)[best] for name in ("gemm", "attention", "bandwidth", "launch")
    )
    clock = (CLOCK_GEFORCE if device.drives_screen else CLOCK_OTHERS)[best]
    peak, traffic = device.tflops * 1e12 * clock, device.bandwidth * 1e9 * bandwidth
    found = []
    for name, flops, moved in _work(config, software, best):
        share = attention if name == "attention" else gemm
        found.append(Kernel(name=name, flops=flops, bytes=moved, seconds=max(flops / (peak * share), moved / traffic)))
    launches = config.data.accum * (config.model.n_layer * KERNELS_PER_BLOCK + KERNELS_ELSEWHERE)
    return [*found, Kernel(name="launches", flops=0, bytes=0, seconds=launches * launch)]


def _work(config: Config, software: str, best: bool) -> Iterator[tuple[str, float, float]]:
    """Name, operations and bytes of each kind of kernel, for a whole step."""
    model, accum, tokens = config.model, config.data.accum, config.tokens_per_step
    size, width, inner = number_size(model), model.n_embd, model.inner
    ours = software == "jaxgpt"
    queries, keys = model.n_head * model.head_size, model.kv_heads * model.head_size
    blocks, count = non_embedding_parameters(model), parameters(model)
    ends = 2 * (queries + keys) + 4 * width + (2 * inner if model.architecture == "gpt2" else 3 * inner)
    yield "blocks", 6.0 * blocks * tokens, 3.0 * size * (model.n_layer * ends * tokens + accum * blocks)
    # Logits: written once, their slopes read by two products.
    vocabulary = float(tokens) * model.vocab_size
    yield "head", 6.0 * vocabulary * width, vocabulary * ((size if ours else 2) + 2 * size)
    yield "cross-entropy", 0.0, vocabulary * LOGIT_BYTES[software][best]
    flash = flash_attention(model)
    scores = 3.5 * 4 * model.block_size * queries * model.n_layer * float(tokens) / 2  # backward is 2.5 forwards
    spilled = 0.0 if flash else 8.0 * model.n_layer * model.n_head * model.block_size * SCORES_FRACTION * tokens
    yield "attention", scores, model.n_layer * tokens * 12.0 * size * queries + spilled
    if model.remat != "none":
        yield from _again(model, float(tokens))
    touched = STREAM_BYTES[software][best] * width + (5 if model.architecture == "gpt2" else 8) * inner * size
    touched += MASK_BYTES[best] * width if model.dropout and not ours else 0
    touched += 8 * queries * size if model.architecture == "modern" else 0  # norms and turns of queries and keys
    yield "norms, activation, residuals", 0.0, float(model.n_layer * tokens * touched)
    yield "accumulation", 0.0, float(accum * count * ((8 + size) if ours else 16 + size))
    yield "optimizer", 0.0, 34.0 * count


def _again(model: Model, tokens: float) -> Iterator[tuple[str, float, float]]:
    """What `model.remat` computes a second time; MFU does not count it as work."""
    queries, keys = model.n_head * model.head_size, model.kv_heads * model.head_size
    projections = model.n_layer * 2 * model.n_embd * (queries + keys)
    weights = projections if model.remat == "attention" else non_embedding_parameters(model)
    size, width = number_size(model), model.n_embd
    ends = 2 * (queries + keys) + (0 if model.remat == "attention" else 2 * model.inner)
    yield "recomputed products", 2.0 * weights * tokens, size * model.n_layer * tokens * (2 * width + ends)
    scores = 4 * model.block_size * queries * model.n_layer * tokens / 2
    yield "attention", scores, model.n_layer * tokens * 4.0 * size * queries


def mfu(config: Config, seconds: float, device: Device) -> float:
    """nanoGPT's model FLOP utilisation: attention counted whole, over the device's peak."""
    return config.tokens_per_step * flops_per_token(config.model) / seconds / (device.tflops * 1e12)


def measured(device: Device, folder: Path | None = None) -> tuple[Config, float, str] | None:
    """The newest result of `bench/gpu.py` for this kind of device: its config, seconds per step and file name.

    Files of `bench/results/` beside the package or in the working folder are read; one that does not fit is ignored.
    Files without a date are older than any with one, and among themselves as their names are.
    """
    places = [folder] if folder else [Path(jaxgpt.__file__).parents[1] / "bench/results", Path("bench/results")]
    found = [_result(path, device) for place in places if place.is_dir() for path in place.glob("*.json")]
    newest = max((result for result in found if result), key=lambda result: (result.date, result.name), default=None)
    return (newest.config, newest.seconds, newest.name) if newest else None


class Result(NamedTuple):
    """A measurement of `bench/gpu.py`: when it began ("" where the file does not say), and what a step took."""

    date: str
    name: str
    config: Config
    seconds: float


def _result(path: Path, device: Device) -> Result | None:
    """The file's measurement if it was made on this kind of device, and not of the small models of `--tiny`."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        config = result_config(result)
        seconds = float(result["warm"]["ms_per_step"]) / 1e3
        known = devices.lookup(str(result["about"]["device"]))
        tiny = "--tiny" in result.get("command", [])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if known is None or known.name != device.name or not seconds > 0 or tiny:
        return None
    return Result(str(result.get("date") or ""), path.name, config, seconds)


def result_config(result: dict[str, Any]) -> Config:
    """The config that a result was measured with: its own, or the reference run, which `bench/gpu.py` trains."""
    if "config" in result:
        return Config.from_dict(result["config"])
    from jaxgpt.config.files import load_config

    return load_config("fineweb40m")


def energy_kwh(device: Device, seconds: float) -> float:
    """Board power at `BOARD_SHARE` for `seconds`, and the rest of the machine."""
    return (device.watts * BOARD_SHARE + HOST_WATTS) * seconds / 3.6e6


BOARD_SHARE = 0.90  # trainings run close to a card's power limit; 0.9 is between the 0.8 and 1.0 that logs show
HOST_WATTS = 80.0  # processor, memory, fans and the supply's losses of a desktop
