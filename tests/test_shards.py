"""Token shards: files as others write them, every way to damage one, and the writer."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import (
    Tokens,
    assert_equals_oracle,
    llmc_bytes,
    oracle,
    read_as_modded,
    run_python,
    values,
    write_shards,
)

from jaxgpt import _loader
from jaxgpt._loader import Dataset, Loader, ShardWriter, SplitWriter, sample_starts
from jaxgpt.errors import JaxgptError


def test_shards_are_read_as_modded_nanogpt_does(tmp_path: Path, data: Tokens) -> None:
    (path,) = write_shards(tmp_path, data, [])
    with ShardWriter(tmp_path / "written.bin") as writer:
        writer.append(data)
        written = writer.finish()
    assert (tmp_path / "written.bin").read_bytes() == path.read_bytes()
    for one in (path, Path(written.path)):
        np.testing.assert_array_equal(values(Dataset([one])), read_as_modded(one))


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_nanogpt_files_are_read_as_memmap_does(tmp_path: Path, data: Tokens, name: str) -> None:
    path = tmp_path / name
    data.tofile(path)
    expected = np.memmap(path, dtype=np.uint16, mode="r")
    np.testing.assert_array_equal(values(Dataset([path])), expected)
    other = path.rename(tmp_path / "other")
    np.testing.assert_array_equal(values(Dataset([other], headerless=True)), expected)
    with pytest.raises(_loader.NotAShardError):
        Dataset([other])


def test_a_shard_may_be_named_train_bin(tmp_path: Path, data: Tokens) -> None:
    (tmp_path / "train.bin").write_bytes(llmc_bytes(data))
    assert Dataset([tmp_path / "train.bin"]).tokens == len(data)


def test_uint32_shards(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 2**32, 5_000, dtype=np.uint32)
    path = tmp_path / "000.bin"
    path.write_bytes(llmc_bytes(data, 20240801, 7))
    with ShardWriter(tmp_path / "written.bin", "uint32") as writer:
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
def test_folders_fifos_sockets_and_devices(
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


def test_verify_detects_a_changed_byte(tmp_path: Path, data: Tokens) -> None:
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


def test_verify_propagates_exceptions_of_progress(dataset: Dataset) -> None:
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


def test_a_replaced_shard_is_read_as_opened(tmp_path: Path, data: Tokens) -> None:
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
def test_invalid_loader_arguments_are_explained(dataset: Dataset, bad: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Loader(dataset, **GOOD | bad)


def test_invalid_arguments_are_explained(dataset: Dataset) -> None:
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


def test_the_writer_accepts_only_its_dtype(tmp_path: Path, data: Tokens) -> None:
    writer = ShardWriter(tmp_path / "000.bin")
    for wrong in (data.astype(np.int64), data.astype(np.uint32), data.astype(np.int16), [1, 2], "text", None):
        with pytest.raises(TypeError, match="must be an array of uint16, or little-endian bytes"):
            writer.append(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        writer.append(data[::2])
    with pytest.raises(ValueError, match="3 bytes are not a whole number of uint16 tokens"):
        writer.append(b"123")
    with pytest.raises(ValueError, match="dtype = 'int16'; must be 'uint16' or 'uint32'"):
        ShardWriter(tmp_path / "001.bin", "int16")
    assert writer.tokens == 0


@pytest.mark.parametrize("end", [None, 65_535])
def test_a_split_writer_cuts_documents_into_shards(tmp_path: Path, data: Tokens, end: int | None) -> None:
    documents = np.split(data[:5_000], [0, 7, 1_000, 1_001, 4_000])
    writer = SplitWriter(tmp_path, "train", "uint16", shard_tokens=700, end_of_text=end)
    for document in documents:
        writer.add(2 * len(document), document.data)
    written = writer.finish()
    expected = np.concatenate([np.append(document, [] if end is None else [end]) for document in documents])
    assert (written.documents, written.bytes, written.tokens) == (6, 10_000, len(expected))
    names = [f"train_{index:06d}.bin" for index in range(len(written.shards))]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [shard.tokens for shard in written.shards] == [700] * 7 + [len(expected) - 4_900]
    shards = Dataset([shard.path for shard in written.shards])
    np.testing.assert_array_equal(values(shards), expected)
    assert shards.verify() == [shard.xxh3_128 for shard in written.shards]


def test_a_split_writer_refuses_what_does_not_fit(tmp_path: Path, data: Tokens) -> None:
    with pytest.raises(ValueError, match="end_of_text = 65536; must fit uint16"):
        SplitWriter(tmp_path, "train", "uint16", shard_tokens=700, end_of_text=65_536)
    with pytest.raises(ValueError, match="shard_tokens = 0; must be 1 to 2147483647"):
        SplitWriter(tmp_path, "train", "uint16", shard_tokens=0)
    writer = SplitWriter(tmp_path, "train", "uint16", shard_tokens=700)
    with pytest.raises(TypeError, match="must be an array of uint16"):
        writer.add(4, data[:2].astype(np.uint32).data)
    assert writer.finish().shards == []
    with pytest.raises(ValueError, match="finished"):
        writer.add(2, data[:1].data)


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
