"""Devices and what stands where: the mesh, and the sharding of each kind of array.

The model knows nothing of this. One axis, `data`: every micro-batch is split over it and the state is replicated.
"""

import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgpt import config
from jaxgpt.errors import FOR_A_GPU, ConfigError


def make_mesh(settings: config.Mesh, micro_batch: int) -> Mesh:
    """A one-axis mesh of the devices that the config asks for; raises `ConfigError` where they are not there."""
    devices = _devices(settings.device)
    wanted = settings.data_parallel or len(devices)
    if wanted > len(devices):
        raise ConfigError(
            "C013",
            f"mesh.data_parallel = {wanted}; JAX sees {len(devices)} {devices[0].platform} device(s)",
            f"--mesh.data-parallel {len(devices)}",
        )
    if micro_batch % wanted:
        lower, upper = micro_batch // wanted * wanted, -(-micro_batch // wanted) * wanted
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise ConfigError(
            "C013",
            f"data.micro_batch = {micro_batch} is not divisible by {wanted} devices",
            f"--data.micro-batch {near}, or --mesh.data-parallel 1",
        )
    return Mesh(np.array(devices[:wanted]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array: parameters, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Token blocks [accum, micro_batch, window]: each device holds its rows of every micro-batch."""
    return NamedSharding(mesh, PartitionSpec(None, "data", None))


def _devices(wanted: str) -> list[jax.Device]:
    try:
        return jax.devices() if wanted == "auto" else jax.devices(wanted)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("C020", f"{wanted.upper()} asked for, JAX sees only: {_seen()}", FOR_A_GPU) from error


def _seen() -> str:
    try:
        return ", ".join(sorted({device.platform for device in jax.devices()}))
    except (RuntimeError, AssertionError):  # JAX_PLATFORMS names none that works
        return f"none (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')})"
