"""Checks before a training starts: whether its step fits on the device, and whether the run is worth its cost."""

from pathlib import Path

from jaxgpt.budget import devices, memory, plan, speed, suggestion
from jaxgpt.budget.devices import Device
from jaxgpt.budget.memory import GIB
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.utils.formatting import format_rough_duration

MAX_JAX_FRACTION = 0.9  # of a device's memory that JAX can be given
MAX_SECONDS = 3 * 86_400.0  # of a run that starts without a confirmation
TOLERANCE = 0.9  # the estimate can be a tenth too high: only what exceeds the limit even so is refused


def check_memory(config: Config, limit: int | None, devices: int = 1) -> None:
    """Raises `ConfigError` C022 if a step needs more than `limit` bytes on each device; None: the limit is unknown."""
    rows = max(1, config.data.micro_batch // devices)
    needed = memory.estimate(config, rows).total
    if limit is None or TOLERANCE * needed <= limit:
        return
    message = f"a training step needs about {needed / GIB:.1f} GiB per device, and JAX may use {limit / GIB:.1f} GiB"
    raise ConfigError("C022", message, _memory_help(config, limit, rows, devices))


def _memory_help(config: Config, limit: int, rows: int, devices: int) -> str:
    """How to make the step fit: a smaller micro-batch, remat, or a larger share of the device for JAX."""
    needed = memory.estimate(config, rows).total
    with_remat = memory.estimate(config, rows, remat=memory.REMAT_BLOCKS).total
    remat_help = f"--model.remat blocks needs about {with_remat / GIB:.1f} GiB, for a slower step"
    largest = memory.max_micro_batch(config, limit / GIB) * devices
    if not largest:
        return remat_help if with_remat <= limit else "no micro-batch of this model fits: choose a smaller one"
    sequences = config.data.micro_batch * config.data.accum
    size = max(n for n in range(1, largest + 1) if sequences % n == 0)
    help = f"--data.micro-batch {size} --data.accum {sequences // size} keeps the step and fits"
    if with_remat <= limit:
        help += f"; or {remat_help}"
    if needed <= MAX_JAX_FRACTION / memory.JAX_MEMORY_FRACTION * limit:
        help += "; or, on a GPU, XLA_PYTHON_CLIENT_MEM_FRACTION=0.9: JAX takes three quarters of it by default"
    return help


def check_cost(config: Config, tokens: int, device_kind: str, device_count: int = 1) -> None:
    """Raises `ConfigError` C066 if a run on `tokens` training tokens is longer than a user is likely to want.

    That is a run of more than 20 epochs, or of more than three days even at the fast end of the step time's interval.
    The kind of device is JAX's name of it; of a GPU that is not in the table the time is unknown.
    """
    device = devices.lookup(device_kind)
    epochs = config.run.steps * config.tokens_per_step / tokens
    seconds = 0.0
    if device is not None or device_kind == devices.CPU:
        seconds_per_step = speed.expected(config, device, device_count).low
        seconds = plan.run_seconds(config, config.run.steps, seconds_per_step)
    if epochs <= plan.MAX_EPOCHS and seconds <= MAX_SECONDS:
        return
    costs = []
    if epochs > plan.MAX_EPOCHS:
        costs.append(f"read the training data {epochs:,.0f} times")
    if seconds > MAX_SECONDS:
        costs.append(f"take at least {format_rough_duration(seconds)} on this device")
    message = f"{config.run.steps:,} steps would {' and '.join(costs)}"
    raise ConfigError("C066", message, f"{_better_run(config, device)}or add --yes to start it as it is")


def _better_run(config: Config, device: Device | None) -> str:
    """The suggested run for the config's data, as the start of a help text; empty if there is none."""
    try:
        suggested = suggestion.suggest_run(Path(config.data.path), device)
    except JaxgptError:
        return ""
    return f"train {suggested.sentence()}: {suggested.command()}; " if suggested else ""
