"""Folders of shards: the three layouts, what identifies them, and folders that are refused."""

import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxgpt import _loader
from jaxgpt.data import containment, dataset, entropy, manifest
from jaxgpt.data.dataset import TokenDataset, check_vocabulary, open_folder
from jaxgpt.data.entropy import unigram_entropy
from jaxgpt.errors import ConfigError, DataError, JaxgptError, StorageError
from jaxgpt.prepare.pipeline import prepare

ROOT = Path(__file__).parents[1]
TOKENS = np.arange(5000, dtype="<u2")


def shard(path: Path, tokens: Any = TOKENS, count: int | None = None) -> Path:
    """A shard as llm.c writes it; `count` is what its header says."""
    tokens = np.asarray(tokens)
    wide = tokens.dtype.itemsize == 4
    header = np.zeros(256, dtype="<i4")
    header[:3] = [20240801, 7, len(tokens)] if wide else [20240520, 1, len(tokens)]
    if count is not None:
        header[2] = count
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + tokens.tobytes())
    return path


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A small dataset with a manifest, two training shards and a validation split."""
    for number in range(40):
        (tmp_path / f"text{number:02d}.txt").write_text(f"Document {number} says é and more. " * 30, encoding="utf-8")
    prepare([str(tmp_path / "*.txt")], tmp_path / "data", val_tokens=2000, shard_tokens=5000)
    return tmp_path / "data"


def refused(code: str, path: Path, action: Callable[[TokenDataset], object] | None = None) -> JaxgptError:
    """The error, raised by opening `path` or by `action` on what was opened; it has `code`."""
    with pytest.raises(JaxgptError) as caught:
        (action or (lambda data: None))(open_folder(path))
    assert caught.value.code == code
    assert caught.value.exit_status == 3
    assert isinstance(caught.value, DataError)
    return caught.value


def edited(folder: Path, *location: Any, value: Any) -> None:
    """Sets one value in the manifest, as one that has no checksum; the value `...` removes it."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("checksum", None)
    inner = values
    for key in location[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[location[-1]]
    else:
        inner[location[-1]] = value
    path.write_text(json.dumps(values), encoding="utf-8")


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_folder_with_a_manifest(prepared: Path) -> None:
    data = open_folder(prepared)
    made = manifest.read_manifest(prepared)
    assert (data.tokenizer_name, data.vocab_size, data.tokenizer.eot, data.notes) == ("gpt2", 50257, 50256, ())
    assert data.val is not None
    assert data.train.tokens == made.splits["train"].tokens == sum(s.tokens for s in made.splits["train"].shards)
    assert [path.name for path in data.train.paths][:2] == ["train_000000.bin", "train_000001.bin"]
    texts = [p.read_text(encoding="utf-8") for p in sorted(prepared.parent.glob("*.txt"))]
    assert (data.train.bytes or 0) + (data.val.bytes or 0) == sum(len(text.encode()) for text in texts)
    assert data.train.ids(0, data.train.tokens)[-1] == 50256
    assert data.identity["tokens_sha256"] == data.fingerprint
    data.verify()


def test_nanogpt_folder(tmp_path: Path) -> None:
    TOKENS.tofile(tmp_path / "train.bin")
    data = open_folder(tmp_path)
    assert (data.train.tokens, data.val, data.train.bytes) == (5000, None, None)
    TOKENS[:100].tofile(tmp_path / "val.bin")
    (tmp_path / "meta.pkl").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    data = open_folder(tmp_path)
    assert data.val is not None
    assert (data.val.tokens, data.tokenizer_name, data.vocab_size) == (100, "gpt2", 50257)
    assert [note for note in data.notes if "meta.pkl is not read" in note]
    assert [note for note in data.notes if "gpt2 is assumed" in note]


def test_meta_pkl_is_converted_by_the_printed_command(tmp_path: Path) -> None:
    folder = tmp_path / "char's data"
    folder.mkdir()
    text = "First Citizen:\nBefore"
    characters = sorted(set(text))
    np.array([characters.index(character) for character in text], "<u2").tofile(folder / "train.bin")
    itos = dict(enumerate(characters))
    meta = {"vocab_size": len(itos), "itos": itos, "stoi": {character: number for number, character in itos.items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    (note,) = [note for note in open_folder(folder).notes if f"{folder}/meta.pkl is not read" in note]
    command = note[note.index("python -c") :].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=ROOT)
    data = open_folder(folder)
    assert (data.vocab_size, data.notes) == (len(characters) + 1, ())
    assert data.tokenizer.decode(data.train.ids(0, data.train.tokens)) == text


def test_llmc_shards(tmp_path: Path) -> None:
    for number in (1, 0, 2):
        shard(tmp_path / f"fineweb_train_{number:06d}.bin", TOKENS[: 1000 * (number + 1)])
    shard(tmp_path / "fineweb_val_000000.bin", TOKENS[:10])
    data = open_folder(str(tmp_path))
    assert [tokens for _, tokens in data.train.shards.shards] == [1000, 2000, 3000]
    assert data.val is not None
    assert data.val.tokens == 10


def test_shards_without_a_validation_split(tmp_path: Path) -> None:
    for number in (1, 0):
        shard(tmp_path / f"part{number}.bin", TOKENS[: 1000 * (number + 1)])
    data = open_folder(tmp_path)
    assert (data.train.tokens, data.val) == (3000, None)
    assert data.train.ids(999, 3).tolist() == [999, 0, 1]


def test_tokenizer_beside_the_shards_is_used(tmp_path: Path, prepared: Path) -> None:
    shard(tmp_path / "x" / "a_train_0.bin", TOKENS.astype("<u4"))
    assert "does not say which tokenizer" in refused("D019", tmp_path / "x").message
    (tmp_path / "x" / "tokenizer.json").write_bytes((prepared / "tokenizer.json").read_bytes())
    data = open_folder(tmp_path / "x")
    assert data.vocab_size == 50257
    assert data.tokenizer.encode("a") == [64]


def test_fingerprint_depends_on_the_tokens_only(tmp_path: Path, prepared: Path) -> None:
    before = open_folder(prepared).fingerprint
    moved = prepared.rename(tmp_path / "moved")
    edited(moved, "tool", value="jaxgpt 9.9")
    assert open_folder(moved).fingerprint == before
    edited(moved, "splits", "val", "shards", 0, "xxh3_128", value="0" * 32)
    assert open_folder(moved).fingerprint != before

    plain, tokens = tmp_path / "plain", np.arange(20_000, dtype="<u2")
    shard(plain / "a.bin", tokens)
    fingerprints = {open_folder(plain).fingerprint}
    for index in (0, 10_000, 19_999):
        shard(plain / "a.bin", np.where(tokens == index, 7, tokens).astype("<u2"))
        fingerprints.add(open_folder(plain).fingerprint)
    shard(plain / "a.bin", tokens[:-1])
    assert len(fingerprints | {open_folder(plain).fingerprint}) == 5


# --- refused ---------------------------------------------------------------------------------------------------------


def test_folder_without_shards(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.parquet").write_bytes(b"")
    (tmp_path / "file").write_text("")
    for name in ("missing", "empty", "texts", "file"):
        error = refused("D002", tmp_path / name)
        assert error.message.startswith(f"no token shards in '{tmp_path / name}'")
        assert name == "file" or "python -m jaxgpt.prepare " in error.help
    assert f"prepare SOURCE --out {tmp_path / 'empty'}" in refused("D002", tmp_path / "empty").help
    assert f"'{tmp_path}/texts/*.parquet' --out {tmp_path}/texts-tokens" in refused("D002", tmp_path / "texts").help
    shard(tmp_path / "val" / "x_val_0.bin")
    assert refused("D002", tmp_path / "val").message.startswith("no token shards")


def test_other_files_are_not_shards(tmp_path: Path) -> None:
    (tmp_path / "a_train_0.bin").write_bytes(b"PK\x03\x04" + bytes(2000))
    assert (
        "a_train_0.bin is not a token shard (starts with 50 4b 03 04: a zip file)" in refused("D003", tmp_path).message
    )


def test_shards_of_wrong_length(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.bin", TOKENS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-256])
    assert "header says 5,000 tokens, file holds 4,872 (256 bytes short)" in refused("D007", tmp_path).message
    path.write_bytes(whole + b"xx")
    refused("D007", tmp_path)
    path.unlink()
    (tmp_path / "train.bin").write_bytes(b"abc")
    refused("D007", tmp_path)


@pytest.mark.parametrize("count", [-1, -(2**31)])
def test_impossible_token_counts(tmp_path: Path, count: int) -> None:
    shard(tmp_path / "a.bin", TOKENS, count)
    assert f"header says {count:,} tokens" in refused("D008", tmp_path).message


def test_tokens_outside_the_vocabulary(tmp_path: Path) -> None:
    tokens = TOKENS.copy()
    tokens[4321] = 50300
    shard(tmp_path / "a.bin", tokens)
    expected = "token 50300 at position 4,321; the tokenizer's vocabulary is 50257"
    assert expected in refused("D010", tmp_path, TokenDataset.verify).message
    assert expected in refused("D010", tmp_path, lambda data: unigram_entropy(data.train, data.vocab_size)).message


def test_changed_shard_is_refused(prepared: Path) -> None:
    path = prepared / "val_000000.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\x01\x00")
    refused("D011", prepared, TokenDataset.verify)


def test_too_few_tokens_for_a_window(tmp_path: Path) -> None:
    shard(tmp_path / "a.bin", TOKENS[:812])
    error = refused("D013", tmp_path, lambda data: data.train.windows(1024))
    assert error.message == "812 tokens in all; one sequence needs 1,025"
    assert open_folder(tmp_path).train.windows(811) == 1


def test_manifest_names_outside_the_folder(tmp_path: Path, prepared: Path) -> None:
    shard(tmp_path / "elsewhere.bin")
    (prepared / "link.bin").symlink_to(tmp_path / "elsewhere.bin")
    for name in ("../elsewhere.bin", str(tmp_path / "elsewhere.bin"), "link.bin", "..", ".", "", "a/b.bin", "a\nb"):
        edited(prepared, "splits", "val", "shards", 0, "name", value=name)
        assert repr(name) in refused("D014", prepared).message
    edited(prepared, "splits", "val", "shards", 0, "name", value="val_000000.bin")
    edited(prepared, "tokenizer", "file", value="../tokenizer.json")
    refused("D014", prepared)


@pytest.mark.parametrize("name", ["train.bin", "a_train_0.bin"])
def test_shards_that_are_not_regular_files(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert f"{name} is a FIFO, not a file" in refused("D015", tmp_path).message
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert f"{name} is a folder, not a file" in refused("D015", tmp_path).message
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to("/dev/zero")
    assert f"{name} is a device, not a file" in refused("D015", tmp_path).message


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", "[" * 100_000, '{"format": 2}', '{"format": 1}'])
def test_malformed_manifests(prepared: Path, text: str) -> None:
    (prepared / "manifest.json").write_text(text, encoding="utf-8")
    error = refused("D018", prepared)
    assert error.message.startswith(f"{prepared / 'manifest.json'}: ")
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("location", "value", "message"),
    [
        (("format",), 2, "format 2; this version of jaxgpt reads format 1"),
        (("dtype",), "float32", "dtype is"),
        (("splits", "train", "tokens"), 7, "splits.train.tokens is 7; the sum of its shards differs"),
        (("splits", "train", "tokens"), -7, "splits.train.tokens is -7; a whole number"),
        (("splits", "train", "tokens"), True, "splits.train.tokens is true; a whole number"),
        (("splits", "train", "shards"), {}, "splits.train.shards is {}; a list is needed"),
        (("splits", "train", "shards", 1), 5, "splits.train.shards[1] is 5; an object is needed"),
        (("splits", "train", "shards", 0, "xxh3_128"), ..., "splits.train.shards[0].xxh3_128 is missing"),
        (("splits", "train"), ..., "its splits are val; train"),
        (("splits", "val", "max_token"), 50257, "splits.val.max_token is 50257; the tokenizer's vocabulary is 50257"),
        (("tokenizer", "vocab_size"), 10**12, "too many for uint16"),
        (("tokenizer", "name"), None, "tokenizer.name is null; a text is needed"),
        (("splits", "val", "shards", 0, "name"), "train_000000.bin", "it names 'train_000000.bin' twice"),
    ],
)
def test_manifests_with_one_wrong_value(prepared: Path, location: Sequence[Any], value: Any, message: str) -> None:
    edited(prepared, *location, value=value)
    assert message in refused("D018", prepared).message


def test_manifest_that_is_a_folder(prepared: Path) -> None:
    (prepared / "manifest.json").unlink()
    (prepared / "manifest.json").mkdir()
    refused("D018", prepared)


def test_files_that_contradict_the_manifest(prepared: Path) -> None:
    path = prepared / "val_000000.bin"
    original = path.read_bytes()
    shard(path, TOKENS[:9])
    assert f"{path} has 9 tokens, the manifest says " in refused("D019", prepared).message
    path.unlink()
    assert str(path) in refused("D016", prepared).message
    path.write_bytes(original)
    (prepared / "tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', encoding="utf-8"
    )
    assert "another tokenizer" in refused("D019", prepared, lambda data: data.tokenizer).message


def test_vocabulary_larger_than_the_model(prepared: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_vocabulary(50000, open_folder(prepared))
    assert str(caught.value).startswith(
        "error[C018]: model.vocab_size 50000 is smaller than the tokenizer's 50257\n  help: --model.vocab-size 50304"
    )
    check_vocabulary(50257, open_folder(prepared))


def test_loader_errors_keep_code_and_message() -> None:
    for code, kind in (("D007", DataError), ("S006", StorageError)):
        with pytest.raises(kind) as caught, dataset.translate_loader_errors():
            raise _loader.LoaderError(code, "what", "help")
        assert (caught.value.code, caught.value.message, caught.value.help) == (code, "what", "help")


# --- figures ---------------------------------------------------------------------------------------------------------


def test_unigram_entropy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "CHUNK_TOKENS", 7)
    shard(tmp_path / "a.bin", np.array([0, 1, 2, 3] * 100 + [9] * 100, dtype="<u2"))
    train = open_folder(tmp_path).train
    assert unigram_entropy(train, 50257) == pytest.approx(math.log(5))
    assert unigram_entropy(train, 10, limit=400) == pytest.approx(math.log(4))


def test_manifest_round_trip(tmp_path: Path, prepared: Path) -> None:
    made = manifest.read_manifest(prepared)
    dataclasses.replace(made, tool="jaxgpt ü").write(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    assert manifest.read_manifest(tmp_path) == dataclasses.replace(made, tool="jaxgpt ü")
    assert [path.name for path in tmp_path.glob(".manifest*")] == []


def test_data_and_prepare_do_not_load_jax() -> None:
    names = "jaxgpt.data.dataset, jaxgpt.data.hub, jaxgpt.prepare.pipeline, jaxgpt.audit.command"
    code = f"import sys, {names}; sys.exit('jax' in sys.modules or 'jaxlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_validation_file_equal_to_a_training_file(tmp_path: Path) -> None:
    for name in ("train", "val"):
        shard(tmp_path / "one" / f"{name}_000000.bin")
        (tmp_path / f"{name}.bin").write_bytes(TOKENS.tobytes())
    shard(tmp_path / "one" / "train_000001.bin", TOKENS[::-1])
    for folder in (tmp_path / "one", tmp_path):
        with pytest.raises(
            DataError, match=r"D012.*val.*\.bin of validation has the same content as .*train.*\.bin of train"
        ):
            open_folder(folder).verify()
    shard(tmp_path / "one" / "val_000000.bin", TOKENS[1::2])
    open_folder(tmp_path / "one").verify()


@pytest.mark.parametrize("layout", ["one file", "shards"])
def test_validation_that_is_a_part_of_train(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix, a middle, a suffix; in shards, also across them, and beyond what is read at a time."""
    monkeypatch.setattr(containment, "CHUNK", 1000)
    train = np.random.default_rng(0).integers(0, 500, 9_000).astype("<u2")
    names = ["train.bin"] if layout == "one file" else [f"train_{number:06}.bin" for number in range(3)]
    for name, tokens in zip(names, np.split(train, len(names)), strict=True):
        shard(tmp_path / name, tokens)
    val = tmp_path / ("val.bin" if layout == "one file" else "val_000000.bin")
    for first, last in ((0, 2_000), (0, 64), (2_111, 7_111), (4_000, 9_000), (8_900, 9_000)):
        shard(val, train[first:last])
        with pytest.raises(DataError, match=f"D012.*is a part of train: its tokens {first:,} to {last - 1:,}"):
            open_folder(tmp_path).verify()
    for other in (train[::-1], np.append(train[100:5_000], 1), train[:63], np.append(train[8_000:], train[:10])):
        shard(val, other.astype("<u2"))
        open_folder(tmp_path).verify()


def test_search_in_repetitive_tokens_ends(tmp_path: Path) -> None:
    zeros = np.zeros(20_000, "<u2")
    shard(tmp_path / "train_000000.bin", zeros)
    shard(tmp_path / "val_000000.bin", np.append(zeros[:10_000], np.uint16(1)))
    open_folder(tmp_path).verify()
