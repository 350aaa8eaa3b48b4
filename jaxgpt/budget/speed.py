"""How long a step is expected to take: the roofline, corrected by published speeds, on one or several devices.

The logarithm of observed over modeled time is a sum of terms: one for the width on a data-center card, whose many
multiprocessors small products do not fill; one each for GeForce and Hopper; and one for the program, which is not known
beforehand. `bench/speed.py` fits them to `published_speeds.csv` and writes the errors into docs/budget-accuracy.md. A
step is never planned to be faster than the best case of its kernels.
"""

import math
import os
from dataclasses import dataclass, replace

from jaxgpt.budget import memory, step_time
from jaxgpt.budget.devices import Device
from jaxgpt.budget.step_time import StepTime
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token, parameters
from jaxgpt.errors import ConfigError
from jaxgpt.utils.formatting import pluralize
from jaxgpt.utils.stats import Z80

# What a training reaches in float32: quickstart's 9.6 GFLOP take 140 ms on 2 cores with AVX-512, 34 GFLOP/s a core.
CPU_CORE_FLOPS, CPU_SPREAD = 30e9, 2.0
REFERENCE_WIDTH = 768
FITTED_WIDTHS = (384, 2560)
FASTEST = 0.95  # of the kernels' best case: the model of the traffic is not exact
MIDDLE = 1.05  # of that limit, for a step that is expected at it


@dataclass(frozen=True)
class SpeedFit:
    """Terms of the logarithm of observed over modeled time, and the standard deviation of what they leave.

    `width` counts per factor e above 768. `sd` includes that between programs; `unlike` is added for families of
    devices without a published speed.
    """

    constant: float
    width: float
    geforce: float
    hopper: float
    sd: float
    unlike: float = 0.15


# bench/speed.py: 27 published speeds of 9 programs.
FIT = SpeedFit(constant=0.105, width=-0.142, geforce=-0.197, hopper=0.025, sd=0.31)
COMPARED_FAMILIES = {"ampere", "ampere-hbm", "ada", "hopper"}
# GB/s that an all-reduce moves per device: NVLink inside a machine, otherwise PCIe without peer-to-peer copies.
NVLINK = {"volta": 120.0, "ampere-hbm": 220.0, "hopper": 350.0, "blackwell-hbm": 650.0}
PCIE = 12.0
# Between hosts: assumed, GPUs per host and GB/s of each GPU's network adapter (400 Gb/s), half of it in use.
HOST_GPUS, NETWORK = 8, 25.0


def expected(config: Config, device: Device | None, gpus: int = 1) -> StepTime:
    """jaxgpt's step time on `device` or, without one, on this machine's CPU, without any measurement."""
    if device is not None:
        return estimate(config, device, gpus=gpus)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flops = config.tokens_per_step * flops_per_token(config.model) + step_time.optimizer_flops(config)
    seconds = flops / (CPU_CORE_FLOPS * cores)
    basis = f"assumed: {CPU_CORE_FLOPS / 1e9:g} GFLOP/s on each of {pluralize(cores, 'core')}, within a factor of 2"
    return StepTime(seconds=seconds, low=seconds / CPU_SPREAD, high=seconds * CPU_SPREAD, basis=basis)


def estimate(config: Config, device: Device, software: str = "jaxgpt", gpus: int = 1) -> StepTime:
    """The step time of a program on `gpus` devices of a kind, with an 80 % interval."""
    roofline = step_time.roofline(per_device(config, gpus), device, software)
    shared = communication_seconds(config, device, gpus, NETWORK)
    fastest = FASTEST * roofline.low
    correction, sd = correct(config.model.n_embd, device)
    middle = max(roofline.seconds * math.exp(correction), MIDDLE * fastest)
    basis = f"{roofline.basis}; times {math.exp(correction):.2f} from published speeds (docs/budget-accuracy.md)"
    if gpus > 1:
        basis += f"; communication of {shared:.2g} s among {gpus} devices, at best hidden"
    return replace(
        roofline,
        seconds=middle + shared / 2,
        low=max(middle * math.exp(-Z80 * sd), fastest),
        high=middle * math.exp(Z80 * sd) + shared,
        basis=basis,
    )


def fastest(config: Config, device: Device, gpus: int = 1) -> float:
    """The seconds that a step takes at least, by any program: the best case of its kernels."""
    part = per_device(config, gpus)
    return FASTEST * min(step_time.roofline(part, device, software).low for software in step_time.SOFTWARE)


def correct(width: int, device: Device, fit: SpeedFit = FIT) -> tuple[float, float]:
    """The logarithm of expected over modeled time of an unknown program, and its standard deviation."""
    terms = [value * weight for value, weight in zip(features(width, device), fit_terms(fit), strict=True)]
    unlike = 0.0 if device.family in COMPARED_FAMILIES else fit.unlike
    return sum(terms), math.hypot(fit.sd, unlike)


def fit_terms(fit: SpeedFit) -> tuple[float, float, float, float]:
    """The weights of `features`."""
    return fit.constant, fit.width, fit.geforce, fit.hopper


def features(width: int, device: Device) -> tuple[float, float, float, float]:
    """What the correction depends on: 1; the width on a data-center card; whether it is a GeForce; or a Hopper."""
    low, high = FITTED_WIDTHS
    scaled = math.log(min(max(width, low), high) / REFERENCE_WIDTH)
    is_hopper = device.family in ("hopper", "blackwell-hbm")
    return 1.0, 0.0 if device.half_rate else scaled, float(device.half_rate), float(is_hopper)


def per_device(config: Config, gpus: int) -> Config:
    """The part of a step of `config` that each of `gpus` devices trains. Raises `ConfigError` C038."""
    if gpus == 1:
        return config
    sequences, rest = divmod(config.data.micro_batch, gpus)
    if rest:
        message = f"--gpus {gpus} does not divide data.micro_batch = {config.data.micro_batch}"
        raise ConfigError("C038", message, _divisible_batch(config, gpus))
    return config.replace({"data": {"micro_batch": sequences}})


def _divisible_batch(config: Config, gpus: int) -> str:
    """The options of a step of about as many sequences that `gpus` devices can share."""
    total = config.data.micro_batch * config.data.accum
    if gpus > total:
        return f"a step has {total} sequences: use at most that many devices"
    micro_batch = gpus * max(1, config.data.micro_batch // gpus)
    accum = max(1, round(total / micro_batch))
    sequences = micro_batch * accum
    change = "" if sequences == total else f" ({sequences} sequences per step instead of {total})"
    return f"--data.micro-batch {micro_batch} --data.accum {accum}{change}"


def communication_seconds(config: Config, device: Device, gpus: int, network: float = math.inf) -> float:
    """Seconds of a step's communication between `gpus` devices, in rings; 0 on one device.

    An axis whose devices are on several hosts of `HOST_GPUS` communicates through the network, with `network` GB/s
    for each device; the published speeds are fitted without that limit.
    """
    over_data, over_fsdp = communication_bytes(config, gpus)
    is_on_pcie = device.family not in NVLINK or "PCIe" in device.name
    inside = PCIE if is_on_pcie else NVLINK[device.family]
    between = min(inside, network)
    data_bandwidth = between if gpus > HOST_GPUS else inside
    fsdp_bandwidth = between if min(config.mesh.fsdp, gpus) > HOST_GPUS else inside
    return over_data / (1e9 * data_bandwidth) + over_fsdp / (1e9 * fsdp_bandwidth)


def communication_bytes(config: Config, gpus: int) -> tuple[float, float]:
    """The bytes that each of `gpus` devices sends per step over the axes `data` and `fsdp`.

    Over `data`, an all-reduce of the float32 gradients of a device's shards once per step. Over `fsdp`, devices of a
    group gather the weights in the compute type once per step and reduce-scatter the gradient of every micro-batch.
    """
    fsdp = min(config.mesh.fsdp, gpus)
    groups = max(gpus // fsdp, 1)
    gathered = memory.number_size(config.model) + config.data.accum * memory.FLOAT32
    weights = parameters(config.model)
    over_data = 2 * (groups - 1) / groups * memory.FLOAT32 / fsdp * weights
    over_fsdp = (fsdp - 1) / fsdp * gathered * weights
    return over_data, over_fsdp
