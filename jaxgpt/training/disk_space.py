"""Whether the disk has space for the checkpoints of a run."""

import shutil
from pathlib import Path
from typing import Any

import jax

from jaxgpt.config import Run
from jaxgpt.errors import StorageError
from jaxgpt.runs.log import warn
from jaxgpt.utils.formatting import format_bytes

COMPRESSED = 0.5  # Orbax compresses; float32 of a trained model becomes about 0.93 of its size, rows of zeros vanish


def check_before_run(folder: Path, template: Any, run: Run) -> None:
    """Raises `StorageError` S019 without space for one checkpoint; warns without space for all that are kept.

    `template` is the state, as arrays or `ShapeDtypeStruct`s. What `folder` has already counts as free.
    """
    size = state_bytes(template)
    free = shutil.disk_usage(folder).free + _occupied(folder)
    check(folder, size, free)
    count = run.keep_latest + run.keep_best + 1  # an older one is deleted after the new one is on the disk
    if free < count * size:
        needed = f"{count} checkpoints of {format_bytes(size)}"
        warn(f"the run keeps up to {needed}, but {folder} has space for {format_bytes(free)}")


def check(folder: Path, size: int, free: int | None = None) -> None:
    """Raises `StorageError` S019 if `folder` has no space for a checkpoint of a state of `size` bytes."""
    available = shutil.disk_usage(folder).free if free is None else free
    if available < COMPRESSED * size:
        message = f"{folder} has {format_bytes(available)} of free space; a checkpoint needs {format_bytes(size)}"
        raise StorageError("S019", message, "free space, then run again")


def state_bytes(state: Any) -> int:
    """The size of the arrays of `state`."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _occupied(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
