"""Checks before a training starts: whether its step fits on the device."""

from jaxgpt.budget import memory
from jaxgpt.budget.memory import GIB
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError

MAX_JAX_FRACTION = 0.9  # of a device's memory that JAX can be given
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
        help += "; or XLA_PYTHON_CLIENT_MEM_FRACTION=0.9, as JAX takes three quarters of a GPU by default"
    return help
