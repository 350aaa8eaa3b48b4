"""The Rust loader from Python: what it reads, in which order, and who may touch a buffer when.

Each fast path has a slow oracle here: the order is computed with Python's integers, the batches are numpy slices, and
the files are written and read as nanoGPT, llm.c and modded-nanogpt write and read them.
"""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import _loader
from jaxgpt._loader import Dataset, Lease, Loader, ShardWriter, sample_starts
from jaxgpt.errors import JaxgptError

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
ORDERS = ["epoch", "random", "sequential"]
Tokens = np.ndarray


# --- the oracle ------------------------------------------------------------------------------------------------------


def mix(value: int) -> int:
    value = (value + GOLDEN) & MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
    return value ^ value >> 31


def hash64(seed: int, counter: int) -> int:
    return mix(mix((seed + GOLDEN) & MASK) ^ counter)


def permute(index: int, n: int, seed: int, epoch: int) -> int:
    bits, key = (n - 1).bit_length(), hash64(seed, epoch)
    while True:
        widths = [bits // 2, bits - bits // 2]
        low, high = index & ((1 << widths[0]) - 1), index >> widths[0]
        for round_ in range(24):
            mixed = (high ^ mix(low ^ (key + round_ * GOLDEN) & MASK)) & ((1 << widths[1]) - 1)
            low, high = mixed, low
            widths.reverse()
        index = high << widths[0] | low
        if index < n:
            return index


def start(tokens: int, block: int, order: str, seed: int, sample: int) -> int:
    windows = (tokens - 1) // block
    if order == "random":
        return hash64(seed, sample) * (tokens - block) >> 64
    window = sample % windows
    return block * (permute(window, windows, seed, sample // windows) if order == "epoch" else window)


def oracle(
    data: Tokens, step: int, *, block: int, micro_batch: int, accum: int = 1, order: str = "epoch", seed: int = 0
):
    samples = range(step * accum * micro_batch, (step + 1) * accum * micro_batch)
    starts = [start(len(data), block, order, seed, sample) for sample in samples]
    return np.stack([data[at : at + block + 1] for at in starts]).reshape(accum, micro_batch, block + 1)


def assert_equals_oracle(loader: Loader, data: Tokens, **shape: int) -> None:
    for step, lease in enumerate(loader):
        np.testing.assert_array_equal(np.asarray(lease), oracle(data, step, **shape))


# --- files as others write and read them -----------------------------------------------------------------------------


def llmc_bytes(tokens: Tokens, magic: int = 20240520, version: int = 1) -> bytes:
    """As `write_datafile` of llm.c and modded-nanogpt does."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(tokens)
    return header.tobytes() + tokens.tobytes()


def read_as_modded(path: Path) -> Tokens:
    """As `_load_data_shard` of modded-nanogpt does."""
    header = np.fromfile(path, dtype=np.int32, count=256)
    assert header[0] == 20240520, "magic number mismatch in the data .bin file"
    assert header[1] == 1, "unsupported version"
    tokens = np.fromfile(path, dtype=np.uint16, offset=256 * 4)
    assert len(tokens) == header[2], "number of tokens read does not match header"
    return tokens


@pytest.fixture
def data() -> Tokens:
    return np.random.default_rng(0).integers(0, 50257, 20_000).astype(np.uint16)


@pytest.fixture
def dataset(tmp_path: Path, data: Tokens) -> Dataset:
    """The data in four shards, one of them empty and one shorter than a window."""
    return Dataset(write_shards(tmp_path, data, [7_001, 7_001, 7_011]))


def write_shards(folder: Path, data: Tokens, cuts: list[int]) -> list[Path]:
    paths = [folder / f"{index:03}.bin" for index in range(len(cuts) + 1)]
    for path, part in zip(paths, np.split(data, cuts), strict=True):
        path.write_bytes(llmc_bytes(part))
    return paths


def values(dataset: Dataset) -> Tokens:
    return np.frombuffer(dataset.read(0, dataset.tokens), dtype=dataset.dtype)


def test_shards_are_read_as_modded_nanogpt_reads_them(tmp_path: Path, data: Tokens) -> None:
    (path,) = write_shards(tmp_path, data, [])
    with ShardWriter(tmp_path / "ours.bin") as writer:
        writer.append(data)
        written = writer.finish()
    assert (tmp_path / "ours.bin").read_bytes() == path.read_bytes()
    for one in (path, Path(written.path)):
        np.testing.assert_array_equal(values(Dataset([one])), read_as_modded(one))


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_nanogpt_files_are_read_as_memmap_reads_them(tmp_path: Path, data: Tokens, name: str) -> None:
    path = tmp_path / name
    data.tofile(path)
    expected = np.memmap(path, dtype=np.uint16, mode="r")
    np.testing.assert_array_equal(values(Dataset([path])), expected)
    other = path.rename(tmp_path / "other")
    np.testing.assert_array_equal(values(Dataset([other], headerless=True)), expected)
    with pytest.raises(_loader.NotAShardError):
        Dataset([other])


def test_a_shard_named_train_is_a_shard(tmp_path: Path, data: Tokens) -> None:
    (tmp_path / "train.bin").write_bytes(llmc_bytes(data))
    assert Dataset([tmp_path / "train.bin"]).tokens == len(data)


def test_uint32_shards(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 2**32, 5_000, dtype=np.uint32)
    path = tmp_path / "000.bin"
    path.write_bytes(llmc_bytes(data, 20240801, 7))
    with ShardWriter(tmp_path / "ours.bin", "uint32") as writer:
        writer.append(data[:1000])
        writer.append(data[1000:].tobytes())
        assert (writer.tokens, writer.max_token) == (5_000, data.max())
        written = writer.finish()
    assert Path(written.path).read_bytes() == path.read_bytes()
    dataset = Dataset([path])
    assert dataset.dtype == "uint32"
    block = np.asarray(next(Loader(dataset, block=64, micro_batch=4, accum=2)))
    assert block.dtype == np.uint32
    np.testing.assert_array_equal(block, oracle(data, 0, block=64, micro_batch=4, accum=2))


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
def test_a_step_is_the_same_however_it_is_divided(dataset: Dataset, order: str) -> None:
    def step(accum: int, micro_batch: int, world: int) -> Tokens:
        shape = {"block": 32, "micro_batch": micro_batch, "accum": accum, "order": order, "world": world}
        loaders = [Loader(dataset, rank=rank, start_step=9, **shape) for rank in range(world)]
        parts = [np.asarray(next(loader)) for loader in loaders]
        assert all(part.shape == (accum, micro_batch // world, 33) for part in parts)
        return np.concatenate(parts, axis=1).reshape(32, 33)

    whole = step(1, 32, 1)
    for accum, micro_batch, world in [(8, 4, 1), (1, 32, 8), (8, 4, 4), (2, 16, 2), (32, 1, 1)]:
        np.testing.assert_array_equal(step(accum, micro_batch, world), whole)


def test_an_epoch_holds_every_window_once(dataset: Dataset) -> None:
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
    assert all(place % os.sysconf("SC_PAGESIZE") == 0 for place, _ in loader.buffers())


def test_a_slot_returns_with_the_last_view_and_not_before(dataset: Dataset) -> None:
    loader = Loader(dataset, block=64, micro_batch=4, slots=1, lease_timeout=0.1)
    array = np.asarray(next(loader))
    view, place = array[0, 1:, ::2].T, array.ctypes.data
    for _ in range(2):
        with pytest.raises(_loader.SlotsExhaustedError) as caught:
            next(loader)
        assert (caught.value.code, "1 slots" in caught.value.message) == ("S006", True)
        array = None  # the view alone holds it as well
    del view
    lease = next(loader)
    assert (lease.step, address(lease)) == (1, place)


def test_a_block_caught_in_a_cycle_does_not_end_the_run(dataset: Dataset) -> None:
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


def test_no_slot_is_reused_while_jax_can_read_it(dataset: Dataset, data: Tokens) -> None:
    """Every second block stays on the device for a while; whatever JAX still holds must read as it was delivered."""
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
    """The only reference left is that of a computation under way: it must finish on the tokens that it was given."""

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


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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


def test_control_c_ends_a_wait_at_once(tmp_path: Path, data: Tokens) -> None:
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
    """Only another thread can end this wait, after asking for the GIL thousands of times: with the GIL held while
    waiting, each time would take a millisecond or more."""
    loader = Loader(dataset, block=64, micro_batch=4, slots=1)
    held = [next(loader)]

    def release() -> None:
        for _ in range(5000):
            time.sleep(0)
        held.clear()

    began = time.monotonic()
    threading.Thread(target=release).start()
    assert next(loader).step == 1
    assert time.monotonic() - began < 3


# --- errors ----------------------------------------------------------------------------------------------------------


def corrupt(index: int, value: int) -> bytes:
    words = np.frombuffer(llmc_bytes(np.arange(1000, dtype=np.uint16)), dtype=np.int32).copy()
    words[index] = value
    return words.tobytes()


@pytest.mark.parametrize(
    ("content", "error", "code", "message"),
    [
        (
            b"PK\x03\x04....",
            _loader.NotAShardError,
            "D003",
            "is not a token shard (starts with 50 4b 03 04: a zip file)",
        ),
        (b"hello, world", _loader.NotAShardError, "D003", "is not a token shard (starts with 68 65 6c 6c: text)"),
        (
            corrupt(0, 20240522),
            _loader.NotAShardError,
            "D003",
            "is not a token shard (magic 20240522: llm.c's evaluation data)",
        ),
        (
            corrupt(1, 3),
            _loader.NotAShardError,
            "D003",
            "is not a token shard (magic 20240520 with version 3; version 1 is known)",
        ),
        (
            corrupt(2, 1128),
            _loader.ShardSizeError,
            "D007",
            "header says 1,128 tokens, file holds 1,000 (256 bytes short)",
        ),
        (
            corrupt(2, 999),
            _loader.ShardSizeError,
            "D007",
            "header says 999 tokens, file holds 1,000 (2 bytes too many)",
        ),
        (corrupt(2, -1), _loader.TokenCountError, "D008", "header says -1 tokens"),
        (corrupt(2, 2**31 - 1), _loader.ShardSizeError, "D007", "header says 2,147,483,647 tokens, file holds 1,000"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, error: type[JaxgptError], code: str, message: str) -> None:
    path = tmp_path / "000.bin"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        Dataset([path])
    assert isinstance(caught.value, _loader.LoaderError)
    assert isinstance(caught.value, JaxgptError)
    assert (caught.value.code, caught.value.exit_status) == (code, 3)
    assert caught.value.message.startswith(str(path))
    assert message in caught.value.message
    assert caught.value.args == (code, caught.value.message, caught.value.help)
    assert str(caught.value) == f"error[{code}]: {caught.value.message}\n  help: {caught.value.help}"


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"), [(make_fifo, "FIFO"), (make_socket, "socket"), (Path.mkdir, "folder"), (None, "device")]
)
def test_what_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None] | None, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("x.bin") if make else Path("/dev/zero")
    if make:
        make(path)
    with pytest.raises(_loader.NotAFileError, match=f"D015.*is a {kind}, not a file"):
        Dataset([path])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(_loader.ShardIoError, match=r"D016.*cannot open .*none.bin: No such file"):
        Dataset([tmp_path / "none.bin"])


def test_mixed_dtypes(tmp_path: Path, data: Tokens) -> None:
    (narrow,) = write_shards(tmp_path, data, [])
    (tmp_path / "wide.bin").write_bytes(llmc_bytes(data.astype(np.uint32), 20240801, 7))
    with pytest.raises(_loader.MixedDtypeError, match=r"D009.*wide.bin holds uint32 tokens, .*000.bin holds uint16"):
        Dataset([narrow, tmp_path / "wide.bin"])


def test_a_corpus_shorter_than_one_sequence(tmp_path: Path, data: Tokens) -> None:
    short = Dataset(write_shards(tmp_path, data[:812], []))
    for attempt in (lambda: short.windows(1024), lambda: Loader(short, block=1024, micro_batch=1)):
        with pytest.raises(_loader.CorpusTooShortError, match=r"D013\]: 812 tokens in all; one sequence needs 1,025"):
            attempt()


def test_a_token_out_of_vocabulary(tmp_path: Path, data: Tokens) -> None:
    data[15_000] = 50_300
    dataset = Dataset(write_shards(tmp_path, data, [5_000]))
    message = r"D010.*001.bin: token 50300 at position 10,000; the tokenizer's vocabulary is 50257"
    with pytest.raises(_loader.TokenRangeError, match=message):
        dataset.verify(vocab_size=50257)
    loader = Loader(dataset, block=100, micro_batch=1, order="sequential", vocab_size=50257, threads=2)
    for _ in range(149):  # the window before the one that starts with it has it as its last target
        next(loader)
    for _ in range(2):
        with pytest.raises(_loader.TokenRangeError, match=message):
            next(loader)
    assert loader.step == 149


def test_verify_sees_a_changed_byte(tmp_path: Path, data: Tokens) -> None:
    paths = write_shards(tmp_path, data, [9_000])
    sums = Dataset(paths).verify(50257)
    seen: list[tuple[int, int]] = []
    assert Dataset(paths).verify(50257, sums, threads=3, progress=lambda *done: seen.append(done)) == sums
    total = sum(path.stat().st_size for path in paths)
    assert seen[-1] == (total, total)
    content = bytearray(paths[1].read_bytes())
    content[-1] ^= 1
    paths[1].write_bytes(content)
    with pytest.raises(
        _loader.ChecksumError, match=rf"D011.*001.bin: xxh3-128 is \w{{32}}, the manifest says {sums[1]}"
    ):
        Dataset(paths).verify(checksums=sums)


def test_verify_passes_on_what_progress_raises(dataset: Dataset) -> None:
    def progress(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        dataset.verify(progress=progress)


def truncate(path: Path) -> None:
    os.truncate(path, 2000)


def edit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xff")


@pytest.mark.parametrize("change", [truncate, edit])
def test_a_shard_changed_during_the_run(tmp_path: Path, data: Tokens, change: Callable[[Path], None]) -> None:
    (path,) = write_shards(tmp_path, data, [])
    shape = {"block": 64, "micro_batch": 4}
    loader = Loader(Dataset([path]), **shape)
    time.sleep(0.02)  # the clock of some file systems is coarse
    change(path)
    with pytest.raises(_loader.ShardChangedError, match=r"D017.*000.bin: changed on disk during the run"):
        assert_equals_oracle(loader, data, **shape)  # what was read before the change may still come, and is right


def test_a_shard_replaced_during_the_run_is_read_as_it_was(tmp_path: Path, data: Tokens) -> None:
    (path,) = write_shards(tmp_path, data, [])
    shape = {"block": 64, "micro_batch": 4}
    loader = Loader(Dataset([path]), stop_step=50, **shape)
    (tmp_path / "new").write_bytes(llmc_bytes(data[::-1].copy()))
    (tmp_path / "new").rename(path)
    assert_equals_oracle(loader, data, **shape)


GOOD = {"block": 64, "micro_batch": 4}


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"block": 0}, "block = 0; must be 1 or more"),
        ({"block": -1}, "block = -1; must not be negative"),
        ({"block": 2**64 - 1}, "block = 18446744073709551615 is too large"),
        ({"block": 2**200}, "block is too large"),
        ({"micro_batch": 0}, "micro_batch = 0; must be 1 or more"),
        ({"micro_batch": 2**40}, "4 slots of 142936511610880 bytes are more than"),
        ({"micro_batch": 2**62, "accum": 4}, "accum = 4 times micro_batch = 4611686018427387904 is too large"),
        ({"micro_batch": 2**62}, "sequences per step are too many"),
        ({"world": 3}, "micro_batch = 4 is not divisible by world = 3"),
        ({"rank": 1}, "rank = 1; must be less than world = 1"),
        ({"slots": 0}, "slots = 0; must be 1 or more"),
        ({"slots": 10**6}, "slots = 1000000; must be 4096 or less"),
        ({"threads": 0}, "threads = 0; must be 1 or more"),
        ({"threads": 10**6}, "threads = 1000000; must be 256 or less"),
        ({"seed": -1}, "seed = -1; must not be negative"),
        ({"start_step": -1}, "start_step = -1; must not be negative"),
        ({"order": "shuffled"}, "order = 'shuffled'; must be 'epoch', 'random' or 'sequential'"),
        ({"lease_timeout": float("nan")}, "lease_timeout = NaN; must be a number of seconds"),
        ({"lease_timeout": -1.0}, "lease_timeout = -1; must be a number of seconds"),
    ],
)
def test_bad_arguments_are_sentences(dataset: Dataset, bad: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Loader(dataset, **GOOD | bad)


def test_more_bad_arguments(dataset: Dataset) -> None:
    attempts: list[tuple[str, Callable[[], object]]] = [
        ("no token shards were given", lambda: Dataset([])),
        ("10 tokens from 19999 on; there are 20000 in all", lambda: dataset.read(19_999, 10)),
        ("there are 20000 in all", lambda: dataset.read(2**64 - 1, 10)),
        ("count = 100000001; must be 100000000 or less", lambda: sample_starts(100, 1, "epoch", 0, 0, 100_000_001)),
        ("2 checksums for 4 shards", lambda: dataset.verify(checksums=["a", "b"])),
        ("threads = 0", lambda: dataset.verify(threads=0)),
    ]
    for sentence, attempt in attempts:
        with pytest.raises(ValueError, match=sentence):
            attempt()


# --- writing ---------------------------------------------------------------------------------------------------------


def test_the_writer_describes_what_it_wrote(tmp_path: Path, data: Tokens) -> None:
    with ShardWriter(tmp_path / "000.bin") as writer:
        for part in np.split(data, [1, 500]):
            writer.append(part)
        written = writer.finish()
    path = tmp_path / "000.bin"
    assert (written.path, written.tokens, written.bytes) == (str(path), len(data), path.stat().st_size)
    assert (written.max_token, written.xxh3_128) == (data.max(), Dataset([path]).verify()[0])
    with pytest.raises(ValueError, match="finished or abandoned"):
        writer.append(data)


def test_an_unfinished_shard_leaves_nothing(tmp_path: Path, data: Tokens) -> None:
    with ShardWriter(tmp_path / "000.bin") as writer:
        writer.append(data)
        assert [path.name for path in tmp_path.iterdir()] == [".000.bin.tmp"]
    assert list(tmp_path.iterdir()) == []


def test_a_shard_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "000.bin").write_bytes(b"precious")
    with pytest.raises(_loader.WriterError) as caught:
        ShardWriter(tmp_path / "000.bin")
    assert (caught.value.code, caught.value.exit_status) == ("S004", 7)
    ShardWriter(tmp_path / "000.bin", overwrite=True).finish()
    assert Dataset([tmp_path / "000.bin"]).tokens == 0


def test_a_full_disk_is_an_error(tmp_path: Path, data: Tokens) -> None:
    """A file-size limit stands in for the full disk: the write fails in the same place."""
    code = """
import resource, signal, sys
from jaxgpt._loader import ShardWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
with ShardWriter(sys.argv[1]) as writer:
    try:
        writer.append(bytes(8_000_000))
        writer.finish()
    except Exception as error:
        print(type(error).__name__, error.code)
"""
    process = run_python(code, tmp_path / "000.bin")
    assert process.communicate(timeout=20) == ("WriterError S003\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_writer_takes_only_its_own_kind(tmp_path: Path, data: Tokens) -> None:
    writer = ShardWriter(tmp_path / "000.bin")
    for wrong in (data.astype(np.int64), data.astype(np.uint32), data.astype(np.int16), [1, 2], "text", None):
        with pytest.raises(TypeError, match="must be an array of uint16, or little-endian bytes"):
            writer.append(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        writer.append(data[::2])
    with pytest.raises(ValueError, match="3 bytes are no whole number of uint16 tokens"):
        writer.append(b"123")
    with pytest.raises(ValueError, match="dtype = 'int16'; must be 'uint16' or 'uint32'"):
        ShardWriter(tmp_path / "001.bin", "int16")
    assert writer.tokens == 0


# --- the vocabulary --------------------------------------------------------------------------------------------------


def test_gpt2_vocabulary_and_merges() -> None:
    vocabulary, merges = _loader.gpt2_vocabulary(), _loader.gpt2_merges()
    assert (len(vocabulary), len(merges), len(set(vocabulary))) == (50_256, 50_000, 50_256)
    assert [left + right for left, right in merges] == vocabulary[256:]
    assert (vocabulary[15496], vocabulary[995], merges[0]) == (b"Hello", b" world", (b" ", b"t"))
    ids = {token: index for index, token in enumerate(vocabulary)}
    assert all(max(ids[left], ids[right]) < 256 + rank for rank, (left, right) in enumerate(merges))


def test_the_version_is_the_package_s() -> None:
    assert _loader.__version__.count(".") == 2


@pytest.fixture(autouse=True)
def _no_leaked_arrays() -> Iterator[None]:
    """JAX frees deleted arrays at its next call; collecting makes the tests independent of each other."""
    yield
    gc.collect()
