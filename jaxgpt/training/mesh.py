"""The device mesh, and how each kind of array is sharded over it.

The mesh has two axes, `data` and `fsdp`. Every micro-batch is sharded over both. The state (parameters, gradients and
optimizer state) is sharded over `fsdp` and replicated over `data`.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgpt.config import Mesh as MeshConfig
from jaxgpt.errors import GPU_HELP, ConfigError

AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, micro_batch: int) -> Mesh:
    """A mesh [data, fsdp] of the devices that the config requests.

    Raises `ConfigError` C013 if their number does not fit, C020 if JAX does not see them.
    """
    devices = _devices(config.device)
    groups = config.data_parallel or max(len(devices) // config.fsdp, 1)
    count = groups * config.fsdp
    if count > len(devices):
        times = f" times mesh.fsdp = {config.fsdp}" if config.fsdp > 1 else ""
        raise ConfigError(
            "C013",
            f"mesh.data_parallel = {groups}{times}; JAX sees {len(devices)} {devices[0].platform} device(s)",
            f"--mesh.data-parallel {max(len(devices) // config.fsdp, 1)}" + (" --mesh.fsdp 1" if times else ""),
        )
    if count < len(devices) and jax.process_count() > 1:
        message = f"the mesh has {count} devices; the {jax.process_count()} processes have {len(devices)}"
        raise ConfigError("C013", message, "leave --mesh.data-parallel out: it is the number of all devices")
    if micro_batch % count:
        lower = micro_batch // count * count
        upper = lower + count
        help = f"--data.micro-batch {f'{lower} or {upper}' if lower else upper}"
        if jax.process_count() == 1:
            help += ", or --mesh.data-parallel 1"
        raise ConfigError("C013", f"data.micro_batch = {micro_batch} is not divisible by {count} devices", help)
    return Mesh(np.array(devices[:count]).reshape(groups, config.fsdp), AXES)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of each array of a state: its largest axis that `fsdp` divides; replicated without such an axis."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _state_spec(leaf.shape, mesh.shape["fsdp"])), tree)


def _state_spec(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    divisible = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * largest, "fsdp")


def gather(tree: Any, specs: Any) -> Any:
    """Inside `shard_map`: the whole arrays of which each device of a group holds the shards `tree`."""

    def gather_leaf(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.lax.all_gather(leaf, "fsdp", axis=len(spec) - 1, tiled=True) if spec else leaf

    return jax.tree.map(gather_leaf, tree, specs)


def scatter_mean(tree: Any, specs: Any) -> Any:
    """Inside `shard_map`: each device's shard of the mean of `tree` over the devices of a group."""
    devices = jax.lax.axis_size("fsdp")

    def scatter_leaf(leaf: jax.Array, spec: PartitionSpec) -> Any:
        if not spec:
            return jax.lax.pmean(leaf, "fsdp")
        return jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=len(spec) - 1, tiled=True) / devices

    return tree if devices == 1 else jax.tree.map(scatter_leaf, tree, specs)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Tokens [accum, micro_batch, window]: each device holds its rows of every micro-batch."""
    return NamedSharding(mesh, PartitionSpec(None, AXES, None))


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
