"""The Rust loader from Python: what it reads, in which order, and who may touch a buffer when.

Each fast path has a slow oracle here: the order is computed with Python's integers, the batches are numpy slices, and
the files are written and read as nanoGPT, llm.c and modded-nanogpt write and read them.
"""

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.shards import Tokens, oracle, run_python, start, write_shards

from jaxgpt import _loader
from jaxgpt._loader import Dataset, Lease, Loader, sample_starts

ORDERS = ["epoch", "random", "sequential"]


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("tokens", "block"), [(2, 1), (11, 5), (1000, 7), (20_000, 64), (2**40, 1024)])
def test_starts_equal_the_oracle(order: str, tokens: int, block: int) -> None:
    for seed, first in [(0, 0), (2**64 - 1, 12_345), (7, 2**63)]:
        expected = [start(tokens, block, order, seed, sample) for sample in range(first, first + 50)]
        assert sample_starts(tokens, block, order, seed, first, 50) == expected


def test_the_order_never_changes() -> None:
    """A resumed run relies on it across versions: these numbers may not change."""
    assert sample_starts(10_000, 100, "epoch", 1337, 0, 6) == [1400, 8100, 9500, 9000, 7600, 800]
    assert sample_starts(10_000, 100, "random", 1337, 0, 6) == [4243, 861, 3054, 9033, 5479, 4286]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_equal_the_oracle(dataset: Dataset, data: Tokens, order: str, threads: int) -> None:
    shape = {"block": 64, "micro_batch": 4, "accum": 3, "order": order, "seed": 5}
    with Loader(dataset, stop_step=60, threads=threads, vocab_size=50257, **shape) as loader:
        assert (loader.shape, loader.dtype, loader.step) == ((3, 4, 65), "uint16", 0)
        for step, lease in enumerate(loader):
            assert lease.step == step
            np.testing.assert_array_equal(np.asarray(lease), oracle(data, step, **shape))
        assert loader.step == 60
        assert next(loader, None) is None


@pytest.mark.parametrize("order", ORDERS)
def test_resuming_at_any_step_continues_the_stream(dataset: Dataset, order: str) -> None:
    shape = {"block": 128, "micro_batch": 8, "order": order, "seed": 3, "stop_step": 50}
    whole = [np.array(lease) for lease in Loader(dataset, **shape)]
    for first in range(51):
        tail = [np.array(lease) for lease in Loader(dataset, start_step=first, **shape)]
        assert len(tail) == 50 - first
        assert all(np.array_equal(a, b) for a, b in zip(tail, whole[first:], strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_a_step_does_not_depend_on_its_division(dataset: Dataset, order: str) -> None:
    def step(accum: int, micro_batch: int, world: int) -> Tokens:
        shape = {"block": 32, "micro_batch": micro_batch, "accum": accum, "order": order, "world": world}
        loaders = [Loader(dataset, rank=rank, start_step=9, **shape) for rank in range(world)]
        parts = [np.asarray(next(loader)) for loader in loaders]
        assert all(part.shape == (accum, micro_batch // world, 33) for part in parts)
        return np.concatenate(parts, axis=1).reshape(32, 33)

    whole = step(1, 32, 1)
    for accum, micro_batch, world in [(8, 4, 1), (1, 32, 8), (8, 4, 4), (2, 16, 2), (32, 1, 1)]:
        np.testing.assert_array_equal(step(accum, micro_batch, world), whole)


def test_an_epoch_has_every_window_once(dataset: Dataset) -> None:
    windows = dataset.windows(64)
    for epoch in range(3):
        starts = sample_starts(dataset.tokens, 64, "epoch", 1, epoch * windows, windows)
        assert sorted(starts) == list(range(0, windows * 64, 64))


# --- slots -----------------------------------------------------------------------------------------------------------


def address(lease: Lease) -> int:
    return lease.__array_interface__["data"][0]


def test_an_array_is_a_read_only_view_that_keeps_its_lease(dataset: Dataset) -> None:
    loader = Loader(dataset, block=64, micro_batch=4)
    lease = next(loader)
    array = np.asarray(lease)
    assert array.base is lease
    assert not array.flags.writeable
    assert (array.ctypes.data, array.nbytes) in loader.buffers()
    assert all(start % os.sysconf("SC_PAGESIZE") == 0 for start, _ in loader.buffers())


def test_a_slot_is_free_when_the_last_view_is_gone(dataset: Dataset) -> None:
    loader = Loader(dataset, block=64, micro_batch=4, slots=1, lease_timeout=0.1)
    array = np.asarray(next(loader))
    view = array[0, 1:, ::2].T
    start = array.ctypes.data
    for _ in range(2):
        with pytest.raises(_loader.SlotsExhaustedError) as caught:
            next(loader)
        assert (caught.value.code, "1 prefetch buffers" in caught.value.message) == ("S006", True)
        array = None  # the view alone keeps it in use
    del view
    lease = next(loader)
    assert (lease.step, address(lease)) == (1, start)


def test_a_block_in_a_reference_cycle_is_collected(dataset: Dataset) -> None:
    loader = Loader(dataset, block=64, micro_batch=4, slots=1, lease_timeout=20)
    cycle: list[object] = [np.asarray(next(loader))]
    cycle.append(cycle)
    gc.collect()  # moves the cycle to the oldest generation, which is rarely collected
    del cycle
    assert next(loader).step == 1


def test_no_slot_is_reused_while_numpy_reads_it(dataset: Dataset, data: Tokens) -> None:
    shape = {"block": 64, "micro_batch": 4, "seed": 2}
    loader = Loader(dataset, slots=6, threads=2, **shape)
    kept: list[tuple[int, Tokens]] = []
    for lease in zip(range(300), loader):
        kept = [*kept, (lease[0], np.asarray(lease[1]))][-4:]
        assert all(np.array_equal(array, oracle(data, step, **shape)) for step, array in kept)


def test_closing_leaves_live_blocks_valid(dataset: Dataset, data: Tokens) -> None:
    loader = Loader(dataset, block=64, micro_batch=4)
    arrays = [np.asarray(next(loader)) for _ in range(3)]
    loader.close()
    loader.close()
    with pytest.raises(ValueError, match="the loader is closed"):
        next(loader)
    del loader
    gc.collect()
    _ = [np.full(10_000, 7, np.uint16) for _ in range(100)]  # would overwrite freed memory
    for step, array in enumerate(arrays):
        np.testing.assert_array_equal(array, oracle(data, step, block=64, micro_batch=4))


def test_closing_stops_the_threads(dataset: Dataset) -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    if not Path("/proc/self/task").is_dir():
        pytest.skip("counts threads in /proc")
    before = threads()
    loaders = [Loader(dataset, block=64, micro_batch=4, threads=4) for _ in range(5)]
    assert threads() >= before + 20
    loaders.pop().close()
    loaders.clear()
    assert threads() <= before + 2  # others (XLA's) may have come, twenty must have gone


def test_jax_aliases_a_block_so_the_hazard_is_real(dataset: Dataset) -> None:
    array = np.asarray(next(Loader(dataset, block=64, micro_batch=4)))
    on_device = jax.device_put(array, jax.devices("cpu")[0])
    assert on_device.unsafe_buffer_pointer() == array.ctypes.data


def test_no_slot_is_reused_while_jax_reads_it(dataset: Dataset, data: Tokens) -> None:
    """Every second block stays on the device for a while; what JAX still uses must not change."""
    shape = {"block": 512, "micro_batch": 8, "seed": 4}
    slots = 8
    loader = Loader(dataset, slots=slots, threads=2, **shape)
    kept: dict[int, jax.Array] = {}
    for step in range(200):
        on_device = jax.device_put(np.asarray(next(loader)), jax.devices("cpu")[step % 2])
        if step % 2:
            kept[step] = on_device
        if len(kept) == slots - 2:
            del kept[min(kept)]
        if step % 10 == 9:
            for old, array in kept.items():
                np.testing.assert_array_equal(array, oracle(data, old, **shape))


def test_no_slot_is_reused_while_a_computation_reads_it(dataset: Dataset, data: Tokens) -> None:
    """The only reference left is that of a running computation: it must finish with the tokens that it was given."""

    @jax.jit
    def slow_sum(busy: jax.Array, tokens: jax.Array) -> jax.Array:
        busy = jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ x), busy)
        late = tokens + (busy[0, 0] > 2).astype(jnp.uint16)  # tanh is never above 2, but XLA cannot know
        return jnp.sum(late.astype(jnp.uint32))

    shape = {"block": 512, "micro_batch": 8, "seed": 6}
    busy = jnp.ones((256, 256), jnp.float32) / 256
    loader = Loader(dataset, slots=3, threads=2, **shape)
    sums = [slow_sum(busy, jax.device_put(np.asarray(next(loader)), busy.device)) for _ in range(40)]
    expected = [int(oracle(data, step, **shape).astype(np.uint32).sum()) for step in range(40)]
    assert [int(total) for total in sums] == expected


# --- waiting ---------------------------------------------------------------------------------------------------------


WAIT = """
import signal, sys
from jaxgpt._loader import Dataset, Loader
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with SIGINT ignored
loader = Loader(Dataset(sys.argv[1:]), block=64, micro_batch=4, slots=1)
lease = next(loader)
print("waiting", flush=True)
try:
    next(loader)
except KeyboardInterrupt:
    print("interrupted", loader.step)
    del lease
    print("resumed", next(loader).step)
"""


def test_control_c_ends_a_wait(tmp_path: Path, data: Tokens) -> None:
    with run_python(WAIT, *write_shards(tmp_path, data, [])) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.3)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted 1\n"
        assert time.monotonic() - sent < 1
        assert (process.stdout.read(), process.stderr.read()) == ("resumed 1\n", "")
    assert process.returncode == 0


FORK = """
import os, sys
from jaxgpt._loader import Dataset, Loader, WorkerError
loader = Loader(Dataset(sys.argv[1:]), block=64, micro_batch=4, threads=2)
lease = next(loader)
if os.fork() == 0:
    try:
        next(loader)
    except WorkerError as error:
        print(error.code, flush=True)
    del lease, loader
    os._exit(0)
os.wait()
print(next(loader).step)
"""


def test_a_forked_child_gets_an_error_and_does_not_hang(tmp_path: Path, data: Tokens) -> None:
    process = run_python(FORK, *write_shards(tmp_path, data, []))
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("S010\n1\n", 0)


def test_waiting_releases_the_gil(dataset: Dataset) -> None:
    """Only another thread can end this wait, after asking for the GIL thousands of times: with the GIL kept while
    waiting, each time would take a millisecond or more."""
    loader = Loader(dataset, block=64, micro_batch=4, slots=1)
    leases = [next(loader)]

    def release() -> None:
        for _ in range(5000):
            time.sleep(0)
        leases.clear()

    began = time.monotonic()
    threading.Thread(target=release).start()
    assert next(loader).step == 1
    assert time.monotonic() - began < 3


@pytest.fixture(autouse=True)
def _no_leaked_arrays() -> Iterator[None]:
    """JAX frees deleted arrays at its next call; collecting makes the tests independent of each other."""
    yield
    gc.collect()
