"""What a checkpoint's manifest costs: time and bytes of a save with and without it, and the time to verify it.

    python bench/checkpoints.py [--megabytes 2 100] [--saves 6]

A state has as many arrays as GPT-2's. Times are medians, in seconds; `cpu` is the time of all threads. The variants
take turns, so that other programs of the machine disturb both alike. The last line of a size is what a checksum of each
array would add: a copy to the host of its own, and the hash of all arrays.
"""

import argparse
import hashlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import _loader
from jaxgpt.config import Config, Run
from jaxgpt.runs.checkpoint_files import MANIFEST, find_damage
from jaxgpt.training import checkpoint
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import TrainState

Timing = tuple[float, float, float]
ARRAYS = 3 * 148  # parameters and both moments


def main() -> None:
    """Prints a row for each size and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[2, 100])
    parser.add_argument("--saves", type=int, default=6)
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    print("MB of state   variant    save s (in the step)  save s (on disk)  cpu s  bytes      verify s  restore s")
    for megabytes in options.megabytes:
        measure(megabytes, options.saves)


def measure(megabytes: float, saves: int) -> None:
    """Saves one state with both variants in turn."""
    elements = int(megabytes * 1e6 / 4 / ARRAYS)
    keys = jax.random.split(jax.random.key(0), ARRAYS)
    leaves = {str(number): jax.random.normal(key, (elements,)) for number, key in enumerate(keys)}
    state = TrainState(jnp.int32(0), leaves, {})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows: dict[str, list[Timing]] = {"manifest": [], "without": []}
        for step in range(1, saves + 2):
            for variant, timings in rows.items():
                timings.append(save(folder / variant / "checkpoints", step, state, variant == "manifest"))
        for variant, timings in rows.items():
            report(folder / variant / "checkpoints" / str(saves + 1), variant, megabytes, timings[1:], state)
    report_hashes(megabytes, state)


def save(folder: Path, step: int, state: TrainState, with_manifest: bool) -> Timing:
    """Seconds until `save` returns, until the checkpoint is on the disk, and of all threads."""
    identity = {"config": Config().to_dict(), "tokens": {}}
    original = checkpoint.sealed_path_class
    with (
        mock.patch.object(checkpoint, "sealed_path_class", original if with_manifest else lambda _: None),
        Checkpoints(folder, Run(keep_latest=2), identity) as checkpoints,
    ):
        checkpoints._manager  # noqa: B018 - made before the clock starts
        start, cpu = time.perf_counter(), time.process_time()
        checkpoints.save(step, state, None)
        returned = time.perf_counter() - start
        checkpoints.wait()
        return returned, time.perf_counter() - start, time.process_time() - cpu


def report(
    step: Path, variant: str, megabytes: float, timings: list[tuple[float, float, float]], state: TrainState
) -> None:
    """Prints the row of a variant, with the times of reading its last checkpoint."""
    returned, on_disk, cpu = (statistics.median(column) for column in zip(*timings, strict=True))
    size = sum(path.stat().st_size for path in step.rglob("*") if path.is_file())
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)
    verify = median_seconds(lambda: find_damage(step)) if (step / MANIFEST).exists() else 0.0
    with Checkpoints(step.parent) as checkpoints:
        checkpoints.verify(int(step.name))  # verified once
        restore = median_seconds(lambda: checkpoints.restore(template, int(step.name)))
    print(
        f"{megabytes:>11g}   {variant:<9}  {returned:>20.3f}  {on_disk:>16.3f}  {cpu:>5.2f}  "
        f"{size:>11,}  {verify:>8.4f}  {restore:>9.3f}"
    )


def report_hashes(megabytes: float, state: TrainState) -> None:
    """Prints the seconds of a copy of `state` to the host, and of the checksums of its arrays."""
    arrays = [np.array(leaf) for leaf in jax.tree.leaves(state.params)]
    copy = median_seconds(lambda: [np.array(leaf) for leaf in jax.tree.leaves(state.params)])
    sha = median_seconds(lambda: [hashlib.sha256(array).digest() for array in arrays])
    xxh3 = median_seconds(lambda: [_loader.hash_bytes(array.tobytes()) for array in arrays])
    print(f"{megabytes:>11g}   of each array: copy {copy:.4f} s, SHA-256 {sha:.4f} s, xxh3-128 {xxh3:.4f} s")


def median_seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """The median of a few repeats."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
