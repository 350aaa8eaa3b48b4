"""The device mesh and the sharding of each kind of array.

The mesh has one axis, `data`: every micro-batch is sharded over it, and the state is replicated.
"""

import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgpt.config import Mesh as MeshConfig
from jaxgpt.errors import GPU_HELP, ConfigError


def make_mesh(config: MeshConfig, micro_batch: int) -> Mesh:
    """A one-axis mesh of the devices that the config requests.

    Raises `ConfigError` C013 if their number does not fit, C020 if JAX does not see them.
    """
    devices = _devices(config.device)
    count = config.data_parallel or len(devices)
    if count > len(devices):
        raise ConfigError(
            "C013",
            f"mesh.data_parallel = {count}; JAX sees {len(devices)} {devices[0].platform} device(s)",
            f"--mesh.data-parallel {len(devices)}",
        )
    if micro_batch % count:
        lower = micro_batch // count * count
        upper = lower + count
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        raise ConfigError(
            "C013",
            f"data.micro_batch = {micro_batch} is not divisible by {count} devices",
            f"--data.micro-batch {nearest}, or --mesh.data-parallel 1",
        )
    return Mesh(np.array(devices[:count]), ("data",))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array: parameters, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Tokens [accum, micro_batch, window]: each device holds its rows of every micro-batch."""
    return NamedSharding(mesh, PartitionSpec(None, "data", None))


def _devices(platform: str) -> list[jax.Device]:
    try:
        return jax.devices() if platform == "auto" else jax.devices(platform)
    except (RuntimeError, AssertionError) as error:
        message = f"mesh.device is {platform!r}, but JAX sees only: {_visible_platforms()}"
        raise ConfigError("C020", message, GPU_HELP) from error


def _visible_platforms() -> str:
    try:
        return ", ".join(sorted({device.platform for device in jax.devices()}))
    except (RuntimeError, AssertionError):  # none of the platforms in JAX_PLATFORMS works
        return f"none (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')})"
