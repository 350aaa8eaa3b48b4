"""Checks before a training starts: whether its step fits on the device."""

from jaxgpt.budget import memory
from jaxgpt.budget.memory import GIB
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError

MAX_JAX_FRACTION = 0.9  # of a device's memory that JAX can be given
TOLERANCE = 0.9  # the estimate can be a tenth too high: what exceeds the limit even so is refused


def check_memory(config: Config, limit: int | None, devices: int = 1) -> None:
    """Raises `ConfigError` C022 if a step needs more than `limit` bytes of each device; None is not known."""
    rows = max(1, config.data.micro_batch // devices)
    needed = memory.estimate(config, rows).total
    if limit is None or TOLERANCE * needed <= limit:
        return
    fits = memory.max_micro_batch(config, limit / GIB) * devices
    what = f"needs about {needed / GIB:.1f} GiB, {limit / GIB:.1f} GiB is free"
    recomputed = memory.estimate(config, rows, remat=memory.REMAT_BLOCKS).total
    again = f"--model.remat blocks needs about {recomputed / GIB:.1f} GiB, for a slower step"
    if not fits:
        help = "no micro-batch of this model fits: choose a smaller one"
        raise ConfigError("C022", what, again if recomputed <= limit else help)
    sequences = config.data.micro_batch * config.data.accum
    size = max(n for n in range(1, fits + 1) if sequences % n == 0)
    help = f"--data.micro-batch {size} --data.accum {sequences // size} keeps the step and fits"
    if recomputed <= limit:
        help += f"; or {again}"
    if needed <= MAX_JAX_FRACTION / memory.JAX_MEMORY_FRACTION * limit:
        help += "; or XLA_PYTHON_CLIENT_MEM_FRACTION=0.9, as JAX takes three quarters of a GPU by default"
    raise ConfigError("C022", what, help)
