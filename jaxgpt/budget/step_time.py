"""How long a step takes: a roofline over its kernels, for jaxgpt and for nanoGPT-class software on the same device.

A kernel takes as long as its arithmetic at a fraction of the matrix units' peak or its traffic at a fraction of the
memory bandwidth, whichever is longer, and each launch costs a gap. The fractions are ranges, because they differ
between shapes, drivers and clocks: all low ends together are the slow end of the interval, all high ends the fast one.
No fraction was fitted to a run of this model; `jaxgpt.budget.speed` corrects the result by published speeds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxgpt.budget.devices import Device
from jaxgpt.budget.memory import flash_attention, number_size
from jaxgpt.config import Config, Model
from jaxgpt.config.attention import SCORES_FRACTION
from jaxgpt.config.model_size import (
    block_matrices,
    block_matrix_parameters,
    flops_per_token,
    non_embedding_parameters,
    parameters,
)
from jaxgpt.optimizers import OPTIMIZERS


class Range(NamedTuple):
    """A fraction or a duration in its worst and its best case."""

    worst: float
    best: float


# Matrix products of width 384 to 1,600 reach 70 to 90 % of what power-limited cards sustain: an H200 does 788 of 989
# TFLOP/s (80 %) on 8,192^3 random bf16 numbers, and llm.c's whole step 60 % of an A100. Copies reach 88 % of an H200's
# 4.8 TB/s; fused elementwise kernels with reductions less. Attention of head size 64, forward and backward together,
# counted causally: FlashAttention-2 reaches 35 to 45 % of Hopper's peak and about 60 % where products are half as fast
# relative to the exponentials (Ada and Ampere GeForce). A launch costs 1 to 4 microseconds.
GEMM, BANDWIDTH, LAUNCH = Range(0.70, 0.90), Range(0.75, 0.88), Range(4e-6, 1e-6)
FLASH = {
    "custom": Range(0.20, 0.60),
    "pascal": Range(0.20, 0.40),
    "volta": Range(0.15, 0.30),
    "turing": Range(0.20, 0.35),
    "ampere": Range(0.40, 0.62),
    "ampere-hbm": Range(0.35, 0.55),
    "ada": Range(0.40, 0.62),
    "hopper": Range(0.22, 0.40),
    "blackwell": Range(0.35, 0.60),
    "blackwell-hbm": Range(0.15, 0.35),
}
# cuDNN's kernel relative to FlashAttention-2: 1.7 to 2.3 times as fast on Hopper, equal on an L40S, 0.82 on an A100,
# 0.88 on an RTX PRO 6000 (transformers PR 48163); 126 against 180 TFLOP/s on an RTX 5090 (jax issue 24934).
CUDNN = {
    "custom": Range(0.65, 1.5),
    "pascal": Range(0.7, 1.0),
    "volta": Range(0.7, 1.0),
    "turing": Range(0.7, 1.0),
    "ampere": Range(0.75, 1.0),
    "ampere-hbm": Range(0.75, 0.9),
    "ada": Range(0.80, 1.0),
    "hopper": Range(1.7, 2.3),
    "blackwell": Range(0.65, 0.9),
    "blackwell-hbm": Range(1.5, 2.3),
}
SMALL_HEAD = 64  # a head half as wide does the same products with twice the exponentials
# JAX on one GPU relative to PyTorch, GPT-2 124M, attention and layers as here: 0.87 to 0.95 (jax issue 24411).
JAX_VERSUS_TORCH = Range(0.87, 1.0)
# The peak is that of the rated boost clock. GPU Boost takes a GeForce card above it while power and heat allow, and a
# card at its power limit below: a tenth up is assumed, not measured here. Data-center cards are rated at a clock that
# they do not exceed; what they sustain under their power limit is `Device.sustained_tflops`, within these ranges.
CLOCK_GEFORCE, CLOCK_OTHERS = Range(0.93, 1.10), Range(0.90, 1.05)
# Bytes per logit outside the products, in bf16: read for the sum, at worst also for the maximum, read for the gradient
# and written. PyTorch does the same, at worst through a float32 copy.
LOGIT_BYTES = {"jaxgpt": Range(8, 6), "nanogpt": Range(16, 6)}
# Bytes per token, block and unit of width for norms, residual sums, dropout and their gradients. jaxgpt's stream is
# bf16 and counted in the programs that XLA 0.10.2 makes (bench/program.py): 69 for an H100, 84 for an RTX 4070, of
# which a large cache holds some; dropout masks are generated twice. nanoGPT's stream is float32: each operation fused
# with its neighbors at best, one by one at worst.
STREAM_BYTES = {"jaxgpt": Range(84, 60), "nanogpt": Range(88, 56)}
MASK_BYTES = Range(8, 0)  # of dropout, for nanoGPT: torch.compile regenerates masks or, at worst, stores them
SOFTWARE = {
    "jaxgpt": "this package: bf16 residual stream, bf16 logits in chunks, weights cast once per step",
    "nanogpt": "PyTorch with torch.compile and FlashAttention, as nanoGPT: float32 residual stream under autocast, "
    "weights cast and gradients added in float32 for every micro-batch, bf16 logits in one piece",
}
ASSUMPTIONS = {
    "jaxgpt": "fast if elementwise work is fused, products reach 90 % and the clock is at its best; slow if none of "
    "that is true and JAX reaches 0.87 of PyTorch; not measured",
    "nanogpt": "fast if torch.compile fuses all elementwise work, products reach 90 % and the clock is at its best "
    "(a GeForce card a tenth above its rated one); slow if arrays go through memory one by one and products reach 70 %",
}
KERNELS_PER_BLOCK, KERNELS_ELSEWHERE = 40, 50
BOARD_FRACTION = 0.90  # trainings run close to a card's power limit; 0.9 is between the 0.8 and 1.0 that logs show
HOST_WATTS = 80.0  # processor, memory, fans and the power supply's losses of a desktop


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kind of kernel of a step: its arithmetic, its traffic in bytes, and the seconds it takes in the best case."""

    name: str
    flops: float
    bytes: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds per step with an 80 % interval, what the estimate is based on, and its kernels."""

    seconds: float
    low: float
    high: float
    basis: str
    kernels: tuple[Kernel, ...] = ()

    def scaled(self, factor: float) -> "StepTime":
        """The step time of a step with `factor` times the work."""
        return replace(self, seconds=self.seconds * factor, low=self.low * factor, high=self.high * factor)


def roofline(config: Config, device: Device, software: str = "jaxgpt") -> StepTime:
    """The step time that the kernels' arithmetic and traffic imply, without any measurement."""
    best_kernels = kernels(config, device, software, best=True)
    low = sum(kernel.seconds for kernel in best_kernels)
    high = sum(kernel.seconds for kernel in kernels(config, device, software, best=False))
    if software == "jaxgpt":
        high /= JAX_VERSUS_TORCH.worst
    basis = f"roofline of {device.tflops:g} TFLOP/s and {device.bandwidth:g} GB/s: {ASSUMPTIONS[software]}"
    return StepTime(seconds=math.sqrt(low * high), low=low, high=high, basis=basis, kernels=tuple(best_kernels))


def attention_fraction(device: Device, model: Model, software: str) -> Range:
    """The fraction of the peak that attention reaches on `device`."""
    fraction = FLASH[device.family]
    if software == "jaxgpt":
        ratio = CUDNN[device.family]
        fraction = Range(fraction.worst * ratio.worst, fraction.best * ratio.best)
    small_head = min(1.0, (model.head_size / SMALL_HEAD) ** 0.5)
    return Range(fraction.worst * small_head, fraction.best * small_head)


def kernels(config: Config, device: Device, software: str, *, best: bool) -> list[Kernel]:
    """The kernels of one step with their seconds, in the best or the worst case."""
    attention = attention_fraction(device, config.model, software)[best]
    clock = CLOCK_GEFORCE if device.half_rate else CLOCK_OTHERS
    peak = device.sustained_tflops * 1e12 * clock[best]
    attention *= device.tflops / device.sustained_tflops  # the fractions are those of the rated peak
    bandwidth = device.bandwidth * 1e9 * BANDWIDTH[best]
    timed = []
    for name, flops, moved in _work(config, software, best, flash=device.has_bfloat16):
        fraction = attention if name == "attention" else GEMM[best]
        seconds = max(flops / (peak * fraction), moved / bandwidth)
        timed.append(Kernel(name=name, flops=flops, bytes=moved, seconds=seconds))
    launches = config.data.accum * (config.model.n_layer * KERNELS_PER_BLOCK + KERNELS_ELSEWHERE)
    return [*timed, Kernel(name="launches", flops=0, bytes=0, seconds=launches * LAUNCH[best])]


def _work(config: Config, software: str, best: bool, *, flash: bool) -> Iterator[tuple[str, float, float]]:
    """Name, operations and bytes of each kind of kernel, for a whole step."""
    model = config.model
    accum = config.data.accum
    tokens = config.tokens_per_step
    size = number_size(model)
    is_jaxgpt = software == "jaxgpt"
    is_gpt2 = model.architecture == "gpt2"
    queries = model.n_head * model.head_size
    keys = model.kv_heads * model.head_size
    blocks = non_embedding_parameters(model)
    count = parameters(model)
    ends = 2 * (queries + keys) + 4 * model.n_embd + (2 if is_gpt2 else 3) * model.inner
    yield "blocks", 6.0 * blocks * tokens, 3.0 * size * (model.n_layer * ends * tokens + accum * blocks)
    # Logits: written once, their gradients read by two products.
    logits = float(tokens) * model.vocab_size
    yield "head", 6.0 * logits * model.n_embd, logits * ((size if is_jaxgpt else 2) + 2 * size)
    yield "cross-entropy", 0.0, logits * LOGIT_BYTES[software][best]
    scores = 3.5 * 4 * model.block_size * queries * model.n_layer * float(tokens) / 2  # backward is 2.5 forwards
    spilled = 0.0
    if not flash or not flash_attention(model):
        spilled = 8.0 * model.n_layer * model.n_head * model.block_size * SCORES_FRACTION * tokens
    yield "attention", scores, model.n_layer * tokens * 12.0 * size * queries + spilled
    if model.remat != "none":
        yield from _recomputation(model, float(tokens))
    moved = STREAM_BYTES[software][best] * model.n_embd + (5 if is_gpt2 else 8) * model.inner * size
    if model.dropout and not is_jaxgpt:
        moved += MASK_BYTES[best] * model.n_embd
    if model.architecture == "modern":
        moved += 8 * queries * size  # norms and rotations of queries and keys
    yield "norms, activation, residuals", 0.0, float(model.n_layer * tokens * moved)
    yield "accumulation", 0.0, float(accum * count * ((8 if is_jaxgpt else 16) + size))
    yield "optimizer", optimizer_flops(config), _optimizer_traffic(config)


def optimizer_flops(config: Config) -> float:
    """Operations of the matrix products of one optimizer update."""
    optimizer = OPTIMIZERS[config.optim.optimizer]
    return config.model.n_layer * sum(optimizer.update_flops(*shape) for shape in block_matrices(config.model))


def _optimizer_traffic(config: Config) -> float:
    """Bytes of one optimizer update."""
    matrices = block_matrix_parameters(config.model)
    others = parameters(config.model) - matrices
    chosen = OPTIMIZERS[config.optim.optimizer].update_bytes
    return chosen * matrices + OPTIMIZERS["adamw"].update_bytes * others


def _recomputation(model: Model, tokens: float) -> Iterator[tuple[str, float, float]]:
    """What `model.remat` computes a second time; MFU does not count it as work."""
    queries = model.n_head * model.head_size
    keys = model.kv_heads * model.head_size
    size = number_size(model)
    only_attention = model.remat == "attention"
    projections = model.n_layer * 2 * model.n_embd * (queries + keys)
    weights = projections if only_attention else non_embedding_parameters(model)
    ends = 2 * (queries + keys) + (0 if only_attention else 2 * model.inner)
    yield "recomputed products", 2.0 * weights * tokens, size * model.n_layer * tokens * (2 * model.n_embd + ends)
    scores = 4 * model.block_size * queries * model.n_layer * tokens / 2
    yield "attention", scores, model.n_layer * tokens * 4.0 * size * queries


def mfu(config: Config, seconds: float, device: Device) -> float:
    """nanoGPT's model FLOPs utilization: attention without the causal saving, divided by the device's peak."""
    return config.tokens_per_step * flops_per_token(config.model) / seconds / (device.tflops * 1e12)


def energy_kwh(device: Device, seconds: float, gpus: int = 1) -> float:
    """Energy of the boards and of the rest of the machine."""
    return (gpus * device.watts * BOARD_FRACTION + HOST_WATTS) * seconds / 3.6e6
