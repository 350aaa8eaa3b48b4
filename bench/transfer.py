"""Transfer of token blocks to the device: identical with and without `dma_map`, and no buffer reused too early.

    python bench/transfer.py [--blocks 2000] [--out bench/results/transfer-NAME.json]

Identity: the loader's first blocks, with and without registered buffers, compared with the windows of the data order.
Reuse: three buffers, refilled as soon as they are free, while the device is busy and reads each block late. Poison:
page-aligned buffers that are overwritten with 0xFF as soon as JAX releases them; each array must still hold what was
sent. Exit status 1 if a number differs.
"""

import argparse
import ctypes
import gc
import mmap
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import _loader
from jaxgpt.config import Config
from jaxgpt.config.files import load_config
from jaxgpt.data import dataset
from jaxgpt.training import batches as data
from jaxgpt.training import jax_setup
from jaxgpt.training.mesh import make_mesh

POISON = 0xFF
IDENTICAL_BLOCKS = 6


def windows(config: Config, ids: np.ndarray, step: int) -> np.ndarray:
    """The block of a step, from the definition of the data order."""
    width, batch = config.model.block_size, config.data.micro_batch * config.data.accum
    starts = _loader.sample_starts(len(ids), width, config.data.order, config.data.seed, step * batch, batch)
    rows = np.stack([ids[start : start + width + 1] for start in starts])
    return rows.reshape(config.data.accum, config.data.micro_batch, width + 1)


def identical(config: Config, direct: bool) -> bool | None:
    """Whether the first blocks are correct; None if `dma_map` is requested and does not work."""
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    split = dataset.open_folder(config.data.path).train
    ids = split.ids(0, split.tokens)
    with data.train_batches(config, split, mesh, 0, common.GPT2_SIZE) as batches:
        if direct and not batches.pinned:
            return None
        if not direct:
            batches._pinned.release()
        first_blocks = zip(range(IDENTICAL_BLOCKS), batches, strict=False)
        return all(np.array_equal(np.array(block), windows(config, ids, number)) for number, block in first_blocks)


def reuse(config: Config, blocks: int) -> int:
    """The number of blocks that no longer held the tokens of their step when a busy device read them."""
    config = config.replace({"data": {"prefetch_buffers": 3}, "optim": {"warmup_steps": 1}, "run": {"steps": blocks}})
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    split = dataset.open_folder(config.data.path).train
    ids, sums = split.ids(0, split.tokens), []
    with data.train_batches(config, split, mesh, 0, common.GPT2_SIZE) as batches:
        busy = busy_work()
        for block in batches:
            busy = occupy(busy)
            sums.append(digest(block, busy[0, 0]))  # queued behind the work, while the loader continues
    expected = [digest(jnp.array(windows(config, ids, step)), jnp.float32(0)) for step in range(blocks)]
    return sum(int(one) != int(other) for one, other in zip(sums, expected, strict=True))


def busy_work() -> jax.Array:
    """The input of `occupy`, which keeps the device busy for some milliseconds, so that it reads a block late."""
    size = 4096 if jax.default_backend() == "gpu" else 512
    return jnp.ones((size, size))


@jax.jit
def occupy(x: jax.Array) -> jax.Array:
    for _ in range(4):
        x = jnp.tanh(x @ x)
    return x


@jax.jit
def digest(block: jax.Array, after: jax.Array) -> jax.Array:
    """A checksum that changes with any changed, lost or moved token; it is computed after `after`."""
    flat = block.reshape(-1).astype(jnp.uint32) + jnp.isnan(after).astype(jnp.uint32)
    return jnp.sum((flat + 1) * (2 * jnp.arange(flat.size, dtype=jnp.uint32) + 1))


class PoisonedBuffer:
    """A page-aligned buffer that is overwritten when the array made of it is released."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size)
        self.size, self.free = size, True
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def lend(self, values: np.ndarray) -> np.ndarray:
        """An array with `values` in this buffer, which is poisoned as soon as nothing refers to the array."""
        self.free = False
        owner = (ctypes.c_uint16 * values.size).from_address(self.address)
        array = np.frombuffer(owner, np.uint16).reshape(values.shape)
        array[...] = values
        weakref.finalize(owner, self.poison)
        return array

    def poison(self) -> None:
        ctypes.memset(self.address, POISON, self.size)
        self.free = True


def poisoned(blocks: int, direct: bool, size: int = 2**18, buffers: int = 4) -> dict[str, Any] | None:
    """Sends `blocks` arrays through buffers that are poisoned on release; None if `dma_map` does not work."""
    device = jax.devices()[0]
    ring = [PoisonedBuffer(size) for _ in range(buffers)]
    pinned = data.PinnedBuffers(device, [(buffer.address, buffer.size) for buffer in ring] if direct else [])
    if direct and not pinned.buffers:
        return None
    generator = np.random.default_rng(0)
    wrong = 0
    released = 0
    busy = busy_work()
    checksums: list[tuple[Any, Any]] = []
    for number in range(blocks):
        buffer = wait_for_free(ring, checksums)
        values = generator.integers(0, common.GPT2_SIZE, size // 2, dtype=np.uint16)
        busy = occupy(busy)
        array = jax.device_put(buffer.lend(values), device)
        checksums.append((digest(array, busy[0, 0]), digest(jnp.array(values), jnp.float32(0))))
        del array
        released = max(released, number + 1 - sum(not buffer.free for buffer in ring))
        if len(checksums) >= 64:
            wrong += count_differences(checksums)
    wrong += count_differences(checksums)
    jax.block_until_ready(busy)
    gc.collect()
    pinned.release()
    return {"blocks": blocks, "wrong": wrong, "released": released}


def wait_for_free(ring: Sequence[PoisonedBuffer], checksums: list[tuple[Any, Any]]) -> PoisonedBuffer:
    """A buffer that JAX has released, which it does during one of its next calls."""
    for _ in range(1000):
        for buffer in ring:
            if buffer.free:
                return buffer
        jax.block_until_ready(checksums[-1][0])
        gc.collect()
        jax.device_put(np.zeros(1)).block_until_ready()
    raise RuntimeError("JAX does not release the buffers that it was given")


def count_differences(checksums: list[tuple[Any, Any]]) -> int:
    wrong = sum(int(received) != int(sent) for received, sent in checksums)
    checksums.clear()
    return wrong


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--blocks", type=common.positive_int, default=2000, help="blocks of the stress tests (default: 2000)"
    )
    parser.add_argument("--tiny", action="store_true", help="few small blocks")
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    options = parser.parse_args(argv)
    blocks = 40 if options.tiny else options.blocks
    common.check_output_path(options.out)
    jax_setup.configure_jax()
    results: dict[str, Any] = {"about": common.describe_environment()}
    with tempfile.TemporaryDirectory() as folder:
        common.random_tokens(Path(folder), 200_000 if options.tiny else 50_000_000)
        small = {"micro_batch": 2, "accum": 2} if options.tiny else {}
        config = load_config("fineweb40m").replace({"data": {"path": folder, **small}, "mesh": {"data_parallel": 1}})
        results["identical"] = identical(config, direct=False)
        results["identical_with_dma_map"] = identical(config, direct=True)
        results["reused_too_early"] = {"blocks": blocks, "wrong": reuse(config, blocks)}
    results["poisoned"] = poisoned(blocks, direct=False)
    results["poisoned_with_dma_map"] = poisoned(blocks, direct=True)
    print(common.json.dumps({key: value for key, value in results.items() if key != "about"}, indent=2))
    common.write_json(options.out, results)
    stress = [results["reused_too_early"], results["poisoned"], results["poisoned_with_dma_map"] or {"wrong": 0}]
    right = (
        results["identical"] and results["identical_with_dma_map"] is not False and not any(s["wrong"] for s in stress)
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(common.run(main))
