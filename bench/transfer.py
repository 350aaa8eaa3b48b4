"""Blocks on their way to the device: bit-identical with `dma_map` and without, and no slot reused too early.

    python bench/transfer.py [--blocks 2000] [--out bench/results/transfer-NAME.json]

Identity: the loader's first blocks, through the ordinary road and with the loader's buffers registered, against the
windows that the order contract asks for. Reuse: three slots, filled again as soon as they are free, while the device is
kept busy and each block is read late. Poison: page-aligned buffers of our own, which are overwritten with 0xFF in the
very moment in which JAX lets go of them; each array must still hold what was sent. Exit status 1 if a number differs.
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
    """The block of that step as the order contract asks for it."""
    width, batch = config.model.block_size, config.data.micro_batch * config.data.accum
    starts = _loader.sample_starts(len(ids), width, config.data.order, config.data.seed, step * batch, batch)
    rows = np.stack([ids[start : start + width + 1] for start in starts])
    return rows.reshape(config.data.accum, config.data.micro_batch, width + 1)


def identical(config: Config, direct: bool) -> bool | None:
    """Whether the first blocks are the right ones; None where `dma_map` is asked for and does not work."""
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    split = dataset.open_folder(config.data.path).train
    ids = split.ids(0, split.tokens)
    with data.train_batches(config, split, mesh, 0, common.GPT2_SIZE) as batches:
        if direct and not batches.pinned:
            return None
        if not direct:
            batches._pinned.release()
        found = zip(range(IDENTICAL_BLOCKS), batches, strict=False)
        return all(np.array_equal(np.array(block), windows(config, ids, number)) for number, block in found)


def reuse(config: Config, blocks: int) -> int:
    """How many of `blocks` were other tokens than those of their step when a busy device came to read them."""
    config = config.replace({"data": {"prefetch_buffers": 3}, "optim": {"warmup_steps": 1}, "run": {"steps": blocks}})
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    split = dataset.open_folder(config.data.path).train
    ids, sums = split.ids(0, split.tokens), []
    with data.train_batches(config, split, mesh, 0, common.GPT2_SIZE) as batches:
        busy = at_work()
        for block in batches:
            busy = occupy(busy)
            sums.append(digest(block, busy[0, 0]))  # queued behind the work, while the loader goes on
    wanted = [digest(jnp.array(windows(config, ids, step)), jnp.float32(0)) for step in range(blocks)]
    return sum(int(one) != int(other) for one, other in zip(sums, wanted, strict=True))


def at_work() -> jax.Array:
    """What `occupy` multiplies: some milliseconds for the device, so that it reads a block late."""
    size = 4096 if jax.default_backend() == "gpu" else 512
    return jnp.ones((size, size))


@jax.jit
def occupy(x: jax.Array) -> jax.Array:
    for _ in range(4):
        x = jnp.tanh(x @ x)
    return x


@jax.jit
def digest(block: jax.Array, after: jax.Array) -> jax.Array:
    """A sum over tokens and their places that a changed, lost or moved token changes; waits for `after`."""
    flat = block.reshape(-1).astype(jnp.uint32) + jnp.isnan(after).astype(jnp.uint32)
    return jnp.sum((flat + 1) * (2 * jnp.arange(flat.size, dtype=jnp.uint32) + 1))


class Slot:
    """A page-aligned buffer that is poisoned when the array made of it is let go of."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size)
        self.size, self.free = size, True
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def lend(self, values: np.ndarray) -> np.ndarray:
        """`values` in this buffer; what lies below them is poisoned as soon as nobody holds the array."""
        self.free = False
        owner = (ctypes.c_uint16 * values.size).from_address(self.address)
        array = np.frombuffer(owner, np.uint16).reshape(values.shape)
        array[...] = values
        weakref.finalize(owner, self.poison)
        return array

    def poison(self) -> None:
        ctypes.memset(self.address, POISON, self.size)
        self.free = True


def poisoned(blocks: int, direct: bool, size: int = 2**18, slots: int = 4) -> dict[str, Any] | None:
    """Sends `blocks` arrays through slots that are poisoned on release; None where `dma_map` does not work."""
    device = jax.devices()[0]
    ring = [Slot(size) for _ in range(slots)]
    pinned = data.PinnedBuffers(device, [(slot.address, slot.size) for slot in ring] if direct else [])
    if direct and not pinned.buffers:
        return None
    generator, wrong, released, busy = np.random.default_rng(0), 0, 0, at_work()
    kept: list[tuple[Any, Any]] = []
    for number in range(blocks):
        slot = take(ring, kept)
        values = generator.integers(0, common.GPT2_SIZE, size // 2, dtype=np.uint16)
        busy = occupy(busy)
        array = jax.device_put(slot.lend(values), device)
        kept.append((digest(array, busy[0, 0]), digest(jnp.array(values), jnp.float32(0))))
        del array
        released = max(released, number + 1 - sum(not slot.free for slot in ring))
        if len(kept) >= 64:
            wrong += compared(kept)
    wrong += compared(kept)
    jax.block_until_ready(busy)
    gc.collect()
    pinned.release()
    return {"blocks": blocks, "wrong": wrong, "released": released}


def take(ring: Sequence[Slot], kept: list[tuple[Any, Any]]) -> Slot:
    """A slot that JAX has let go of; it does so at one of its next calls."""
    for _ in range(1000):
        for slot in ring:
            if slot.free:
                return slot
        jax.block_until_ready(kept[-1][0])
        gc.collect()
        jax.device_put(np.zeros(1)).block_until_ready()
    raise RuntimeError("JAX does not let go of the buffers that it was given")


def compared(kept: list[tuple[Any, Any]]) -> int:
    wrong = sum(int(found) != int(sent) for found, sent in kept)
    kept.clear()
    return wrong


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--blocks", type=common.positive_int, default=2000, help="blocks of the stress tests (default: 2000)"
    )
    parser.add_argument("--tiny", action="store_true", help="small blocks, and few")
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    options = parser.parse_args(argv)
    blocks = 40 if options.tiny else options.blocks
    common.check_output_path(options.out)
    jax_setup.configure_jax()
    found: dict[str, Any] = {"about": common.describe_environment()}
    with tempfile.TemporaryDirectory() as place:
        common.random_tokens(Path(place), 200_000 if options.tiny else 50_000_000)
        small = {"micro_batch": 2, "accum": 2} if options.tiny else {}
        config = load_config("fineweb40m").replace({"data": {"path": place, **small}, "mesh": {"data_parallel": 1}})
        found["identical"] = identical(config, direct=False)
        found["identical_with_dma_map"] = identical(config, direct=True)
        found["reused_too_early"] = {"blocks": blocks, "wrong": reuse(config, blocks)}
    found["poisoned"] = poisoned(blocks, direct=False)
    found["poisoned_with_dma_map"] = poisoned(blocks, direct=True)
    print(common.json.dumps({key: value for key, value in found.items() if key != "about"}, indent=2))
    common.write_json(options.out, found)
    stress = [found["reused_too_early"], found["poisoned"], found["poisoned_with_dma_map"] or {"wrong": 0}]
    right = found["identical"] and found["identical_with_dma_map"] is not False and not any(s["wrong"] for s in stress)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(common.run(main))
