"""From documents to shards: exact ids, a split by document, and a folder that is whole or not there."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxgpt import corpus, errors, manifest
from jaxgpt import prepare as command
from jaxgpt.corpus import Skipped, documents, find_sources
from jaxgpt.dataset import Split, open_folder
from jaxgpt.errors import JaxgptError
from jaxgpt.prepare import main, prepare
from jaxgpt.tokenizer import gpt2

EOT = 50256


def ids_of(split: Split) -> "np.ndarray[Any, Any]":
    return split.ids(0, split.tokens)


def documents_in(split: Split | None) -> list[str]:
    """The texts that the tokens of `split` stand for."""
    assert split is not None
    return gpt2().decode(ids_of(split)).split("<|endoftext|>")[:-1]


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=100, compression="zstd")
    return path


def some_texts() -> list[str]:
    """Of different lengths, every tenth one like the one before; the highest id, of " gazed", only in the first."""
    numbers = [n - (n % 10 == 9) for n in range(1, 300)]
    return ["Document 0 — é. gazed", *(f"Document {n} — é. " * (1 + n * 7 % 23) for n in numbers)]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return parquet(tmp_path / "plain.parquet", text=some_texts())


def refused(code: str, *arguments: Any) -> JaxgptError:
    """The error of the command with these arguments."""
    with pytest.raises(JaxgptError) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == code, caught.value
    return caught.value


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["000_00000.parquet", "001_00000.parquet"])
def test_the_reference_corpus_gives_the_reference_ids(shared: Path, tmp_path: Path, name: str) -> None:
    expected = json.loads((shared / "gpt2/vectors.json").read_text(encoding="utf-8"))["corpus"][name]
    made = prepare([str(shared / "corpus" / name)], tmp_path / "data", shard_tokens=3_000_000)
    train = open_folder(tmp_path / "data").train
    assert made.splits["train"].documents == expected["documents"]
    assert train.tokens == made.splits["train"].tokens == expected["tokens_with_eot_appended"]
    assert len(train.paths) == 3
    assert hashlib.sha256(ids_of(train).astype("<u2").tobytes()).hexdigest() == expected["sha256_uint16_le"]


def test_ids_are_those_of_the_documents_one_after_another(tmp_path: Path, plain: Path) -> None:
    made = prepare([str(plain)], tmp_path / "data", shard_tokens=1000)
    expected = [number for text in some_texts() for number in [*gpt2().encode(text), EOT]]
    data = open_folder(tmp_path / "data")
    assert ids_of(data.train).tolist() == expected
    assert [shard.tokens for shard in made.splits["train"].shards[:-1]] == [1000] * (len(expected) // 1000)
    assert (data.val, data.train.bytes) == (None, sum(len(text.encode()) for text in some_texts()))
    data.verify()


def test_without_end_of_text(tmp_path: Path, plain: Path) -> None:
    main([str(plain), "--out", str(tmp_path / "data"), "--no-eot", "--shard-tokens", "500"])
    expected = [number for text in some_texts() for number in gpt2().encode(text)]
    assert ids_of(open_folder(tmp_path / "data").train).tolist() == expected
    made = manifest.read(tmp_path / "data")
    assert (made.eot_position, made.splits["train"].max_token) == ("none", max(expected))
    assert len(made.splits["train"].shards) > 10


def test_a_new_tokenizer_is_deterministic_and_comes_along(tmp_path: Path, plain: Path) -> None:
    for out in ("a", "b"):
        main([str(plain), "--out", str(tmp_path / out), "--train-tokenizer", "300", "--val-tokens", "3e3"])
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    data = open_folder(tmp_path / "a")
    assert (data.vocab_size, data.tokenizer.eot) == (300, 299)
    assert data.tokenizer.decode(ids_of(data.train)[:20]).startswith("Document 0 — é.")
    prepare([str(plain)], tmp_path / "c", tokenizer=str(tmp_path / "a"))
    assert open_folder(tmp_path / "c").tokenizer.fingerprint == data.tokenizer.fingerprint


def test_a_tokenizer_of_more_than_65536_ids_gives_uint32(tmp_path: Path, plain: Path) -> None:
    gpt2().save(tmp_path / "tokenizer.json")
    described = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"]["vocab"]["unused"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    prepare([str(plain)], tmp_path / "data", tokenizer=str(tmp_path / "tokenizer.json"))
    data = open_folder(tmp_path / "data")
    assert (data.train.tokens_on_disk.dtype, data.vocab_size) == ("uint32", 70_001)
    assert documents_in(data.train) == some_texts()


# --- the split -------------------------------------------------------------------------------------------------------


def test_the_split_is_by_document_and_about_the_size_asked(tmp_path: Path, plain: Path) -> None:
    prepare([str(plain)], tmp_path / "data", val_tokens=4000)
    data = open_folder(tmp_path / "data")
    train, val = documents_in(data.train), documents_in(data.val)
    assert sorted(train + val) == sorted(some_texts())
    assert [text for text in some_texts() if text in set(val)] == val
    assert not set(train) & set(val)
    assert any(val.count(text) > 1 for text in val)
    assert data.val is not None
    assert 4000 <= data.val.tokens < 4600
    assert data.val.bytes == sum(len(text.encode()) for text in val)


def test_the_split_does_not_depend_on_the_order_of_documents(tmp_path: Path, plain: Path) -> None:
    backwards = parquet(tmp_path / "backwards.parquet", text=some_texts()[::-1])
    prepare([str(plain)], tmp_path / "a", val_tokens=4000)
    prepare([str(backwards)], tmp_path / "b", val_tokens=4000)
    found, again = (documents_in(open_folder(tmp_path / name).val) for name in "ab")
    assert found == again[::-1]


@pytest.mark.parametrize("wanted", [10**9, 2 * 10**4])
def test_a_split_that_leaves_nothing_to_train_on(tmp_path: Path, plain: Path, wanted: int) -> None:
    error = refused("D025", plain, "--out", tmp_path / "data", "--val-tokens", wanted)
    assert f"val_tokens = {wanted:,} leaves too little to train on: there are about" in error.message
    single = tmp_path / "single.txt"
    single.write_text("One document. " * 100)
    assert "1 document" in refused("D025", single, "--out", tmp_path / "data", "--val-tokens", 5).message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.parquet", "single.txt"]


# --- sources ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("x")
    assert ".zip files cannot be read" in refused("D023", tmp_path / "a.zip", "--out", tmp_path / "x").message
    several = parquet(tmp_path / "several.parquet", id=[1], body=["b"], title=["t"])
    assert "no column 'text'" in refused("D020", several, "--out", tmp_path / "x").message
    empty = parquet(tmp_path / "b.parquet", text=pa.array([None, ""], pa.string()))
    assert "1 null document left out" in refused("D024", empty, "--out", tmp_path / "x").message
    assert not (tmp_path / "x").exists()


def test_mended_text_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok \xff\xfe\x00 <|endoftext|>")
    prepare([str(tmp_path / "a.txt")], tmp_path / "data")
    ids = ids_of(open_folder(tmp_path / "data").train).tolist()
    assert ids == [*gpt2().encode("ok \ufffd\ufffd\x00 <|endoftext|>"), EOT]


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_finished_dataset_is_left_as_it_is(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    made = prepare([str(plain)], out, val_tokens=4000)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert "next: python -m jaxgpt.train --data.path" in capsys.readouterr().out
    assert prepare([str(plain)], out, val_tokens=4000) == made
    assert "already prepared from these sources" in capsys.readouterr().out

    error = refused("S013", plain, "--out", out, "--val-tokens", "5000", "--no-eot")
    assert "val_tokens 4000 → 5000, end-of-text tokens appended → none" in error.message
    parquet(plain, text=[*some_texts(), "one more"])
    assert "plain.parquet" in refused("S013", plain, "--out", out, "--val-tokens", "4000").message
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}


def test_nothing_of_a_person_is_overwritten(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo").write_text("x")
    assert "holds files that are no dataset: todo" in refused("S012", plain, "--out", tmp_path / "notes").message
    assert "is a file" in refused("S012", plain, "--out", plain).message
    assert "is a file" in refused("S002", plain, "--out", plain / "data").message
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "the current folder" in refused("S012", plain, "--out", ".").message
    monkeypatch.chdir(tmp_path)
    hidden = tmp_path / ".data.preparing"
    hidden.mkdir()
    (hidden / "mine.txt").write_text("x")
    assert "mine.txt' is not from a preparation" in refused("S012", plain, "--out", "data").message
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        [".data.preparing", "mine.txt", "empty", "notes", "plain.parquet", "todo"]
    )
    prepare([str(plain)], "empty")
    assert open_folder("empty").train.tokens


def test_too_little_space(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1))
    assert "its disk has 0.00 GB free" in refused("S011", plain, "--out", tmp_path / "data").message
    assert list(tmp_path.iterdir()) == [plain]


def test_sources_that_change_while_they_are_read(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    census = command._census

    def then_changed(*arguments: Any) -> Any:
        found = census(*arguments)
        parquet(plain, text=some_texts()[1:])
        return found

    monkeypatch.setattr(command, "_census", then_changed)
    assert "changed while it was read" in refused("D026", plain, "--out", tmp_path / "data").message
    assert list(tmp_path.iterdir()) == [plain]


def test_a_tokenizer_without_an_end_of_text(tmp_path: Path, plain: Path) -> None:
    described = {"model": {"type": "BPE", "vocab": {chr(code): code for code in range(300)}, "merges": []}}
    (tmp_path / "own.json").write_text(json.dumps(described), encoding="utf-8")
    error = refused("C029", plain, "--out", tmp_path / "data", "--tokenizer", tmp_path / "own.json")
    assert (error.message, error.help) == ("tokenizer 'own' has no end-of-text token", "--no-eot")


IMPOSSIBLE = """C028 --val-tokens -1 | C006 --val-tokens many | C028 --shard-tokens 0 | C028 --shard-tokens 3e9
    C026 --tokenizer gpt3 | C027 --train-tokenizer 100 | C028 --train-tokenizer 300 --tokenizer own.json
    C006 --bogus"""


@pytest.mark.parametrize("options", IMPOSSIBLE.replace("\n", "|").split("|"))
def test_options_that_cannot_be(tmp_path: Path, plain: Path, options: str) -> None:
    code, *arguments = options.split()
    assert refused(code, plain, "--out", tmp_path / "data", *arguments).exit_status == 2
    assert list(tmp_path.iterdir()) == [plain]


def started(source: Path, out: Path) -> "subprocess.Popen[str]":
    """The command in a process of its own, that has begun to write tokens, in small batches and thus slowly."""
    code = "import signal; from jaxgpt import errors, prepare; prepare.BATCH_BYTES = 20_000; "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); raise SystemExit(errors.run(prepare.main))"
    arguments = [sys.executable, "-c", code, str(source), "--out", str(out), "--shard-tokens", "200000"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    hidden = out.with_name(f".{out.name}.preparing")
    limit = time.monotonic() + 60
    while not any(hidden.glob("train_*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    return process


@pytest.fixture
def long(tmp_path: Path) -> Path:
    return parquet(tmp_path / "long.parquet", text=[f"{n} " * 700 for n in range(2500)])


def test_killed_and_started_again(tmp_path: Path, long: Path) -> None:
    process = started(long, tmp_path / "data")
    assert "is being prepared by another process" in refused("S001", long, "--out", tmp_path / "data").message
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert not (tmp_path / "data").exists()
    assert any((tmp_path / ".data.preparing").iterdir())
    for out in ("data", "undisturbed"):
        prepare([str(long)], tmp_path / out, shard_tokens=200_000)
    again, expected = ({p.name: p.read_bytes() for p in (tmp_path / out).iterdir()} for out in ("data", "undisturbed"))
    assert again == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "long.parquet", "undisturbed"]


def test_interrupted_from_the_keyboard(tmp_path: Path, long: Path) -> None:
    process = started(long, tmp_path / "data")
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=30)[0], process.returncode) == ("interrupted\n", errors.INTERRUPTED)
    assert list(tmp_path.iterdir()) == [long]


def test_the_census_keeps_a_fair_sample(monkeypatch: pytest.MonkeyPatch, plain: Path) -> None:
    monkeypatch.setattr(corpus, "SAMPLE_BYTES", 3000)
    source = find_sources([str(plain)])[0]
    census = corpus.Census()
    for document in documents(source, None, Skipped()):
        census.add(document)
    chosen = [document for document in documents(source, None, Skipped()) if document.text in census.sample]
    others = [document.key for document in documents(source, None, Skipped()) if document.text not in census.sample]
    assert max(document.key for document in chosen) < min(others)
    assert 3000 <= sum(document.size for document in chosen) < 5000
