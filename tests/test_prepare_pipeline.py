"""From documents to shards: exact ids, the options, and a folder that is complete or absent."""

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from helpers.corpora import EOT, documents_in, ids_of, parquet, some_texts

from jaxgpt.config.command_line import parse_config
from jaxgpt.config.options import Parser
from jaxgpt.data import manifest
from jaxgpt.data.dataset import open_folder
from jaxgpt.data.tokenizer import gpt2
from jaxgpt.errors import JaxgptError
from jaxgpt.prepare import sources
from jaxgpt.prepare.command import main
from jaxgpt.prepare.pipeline import prepare


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
def test_reference_corpus_gives_the_reference_ids(shared: Path, tmp_path: Path, name: str) -> None:
    expected = json.loads((shared / "gpt2/vectors.json").read_text(encoding="utf-8"))["corpus"][name]
    made = prepare([str(shared / "corpus" / name)], tmp_path / "data", shard_tokens=3_000_000)
    train = open_folder(tmp_path / "data").train
    assert made.splits["train"].documents == expected["documents"]
    assert train.tokens == made.splits["train"].tokens == expected["tokens_with_eot_appended"]
    assert len(train.paths) == 3
    assert hashlib.sha256(ids_of(train).astype("<u2").tobytes()).hexdigest() == expected["sha256_uint16_le"]


def test_ids_are_the_concatenated_documents(tmp_path: Path, plain: Path) -> None:
    made = prepare([str(plain)], tmp_path / "data", shard_tokens=1000)
    expected = [number for text in some_texts() for number in [*gpt2().encode(text), EOT]]
    data = open_folder(tmp_path / "data")
    assert ids_of(data.train).tolist() == expected
    assert [shard.tokens for shard in made.splits["train"].shards[:-1]] == [1000] * (len(expected) // 1000)
    assert (data.val, data.train.bytes) == (None, sum(len(text.encode()) for text in some_texts()))
    data.verify()


def test_no_eot_option(tmp_path: Path, plain: Path) -> None:
    main([str(plain), "--out", str(tmp_path / "data"), "--no-eot", "--shard-tokens", "500"])
    expected = [number for text in some_texts() for number in gpt2().encode(text)]
    assert ids_of(open_folder(tmp_path / "data").train).tolist() == expected
    made = manifest.read_manifest(tmp_path / "data")
    assert (made.eot_position, made.splits["train"].max_token) == ("none", max(expected))
    assert len(made.splits["train"].shards) > 10


def test_trained_tokenizer_is_deterministic_and_saved(tmp_path: Path, plain: Path) -> None:
    for out in ("a", "b"):
        main([str(plain), "--out", str(tmp_path / out), "--train-tokenizer", "300", "--val-tokens", "3e3"])
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    data = open_folder(tmp_path / "a")
    assert (data.vocab_size, data.tokenizer.eot) == (300, 299)
    assert data.tokenizer.decode(ids_of(data.train)[:20]).startswith("Document 0 — é.")
    prepare([str(plain)], tmp_path / "c", tokenizer=str(tmp_path / "a"))
    assert open_folder(tmp_path / "c").tokenizer.fingerprint == data.tokenizer.fingerprint


def test_tokenizer_of_more_than_65536_ids_gives_uint32(tmp_path: Path, plain: Path) -> None:
    gpt2().save(tmp_path / "tokenizer.json")
    described = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"]["vocab"]["unused"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    prepare([str(plain)], tmp_path / "data", tokenizer=str(tmp_path / "tokenizer.json"))
    data = open_folder(tmp_path / "data")
    assert (data.train.shards.dtype, data.vocab_size) == ("uint32", 70_001)
    assert documents_in(data.train) == some_texts()


# --- sources ---------------------------------------------------------------------------------------------------------


def test_unreadable_sources_are_refused_before_writing(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("x")
    assert ".zip files cannot be read" in refused("D023", tmp_path / "a.zip", "--out", tmp_path / "x").message
    several = parquet(tmp_path / "several.parquet", id=[1], body=["b"], title=["t"])
    assert "no column 'text'" in refused("D020", several, "--out", tmp_path / "x").message
    empty = parquet(tmp_path / "b.parquet", text=pa.array([None, ""], pa.string()))
    assert "1 null document left out" in refused("D024", empty, "--out", tmp_path / "x").message
    assert not (tmp_path / "x").exists()


def test_repaired_text_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"ok \xff\xfe\x00 <|endoftext|>")
    prepare([str(tmp_path / "a.md")], tmp_path / "data")
    ids = ids_of(open_folder(tmp_path / "data").train).tolist()
    assert ids == [*gpt2().encode("ok \ufffd\ufffd\x00 <|endoftext|>"), EOT]


# --- the folder ------------------------------------------------------------------------------------------------------


def test_finished_dataset_is_not_changed(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    made = prepare([str(plain)], out, val_tokens=4000)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert "next: python -m jaxgpt.train --config" in capsys.readouterr().out
    assert prepare([str(plain)], out, val_tokens=4000) == made
    assert "already prepared from these sources" in capsys.readouterr().out

    error = refused("S013", plain, "--out", out, "--val-tokens", "5000", "--no-eot")
    assert "val_tokens 4000 → 5000, end-of-text tokens appended → none" in error.message
    parquet(plain, text=[*some_texts(), "one more"])
    assert "plain.parquet" in refused("S013", plain, "--out", out, "--val-tokens", "4000").message
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}


def test_next_command_fits_the_data(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = prepare([str(plain)], tmp_path / "data")
    printed = capsys.readouterr().out
    (command,) = re.findall(r"next: python -m jaxgpt\.train (.*)", printed)
    config, _ = parse_config(Parser("train", "test"), shlex.split(command))
    assert (Path(config.data.path), config.model.vocab_size >= 50257) == (tmp_path / "data", True)
    assert config.run.steps * config.tokens_per_step <= 20 * made.splits["train"].tokens
    assert re.search(r"a \S+M model for [\d,]+ steps? \(.* epochs\): about ", printed)
    prepare([str(plain)], tmp_path / "quiet", suggest=False)
    assert "next:" not in capsys.readouterr().out


def test_other_files_in_the_way_are_not_overwritten(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo").write_text("x")
    assert "contains files that are not a dataset: todo" in refused("S012", plain, "--out", tmp_path / "notes").message
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


def test_too_little_disk_space_is_refused(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    assert "its disk has 0.00 GB free" in refused("S011", plain, "--out", tmp_path / "data").message
    assert list(tmp_path.iterdir()) == [plain]


def test_source_that_changes_while_it_is_read(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checksum = sources.checksum

    def then_changed(source: sources.Source) -> str:
        digest = checksum(source)
        parquet(plain, text=some_texts()[1:])
        return digest

    monkeypatch.setattr(sources, "checksum", then_changed)
    assert "changed" in refused("D026", plain, "--out", tmp_path / "data").message
    assert list(tmp_path.iterdir()) == [plain]


def test_tokenizer_without_end_of_text_is_refused(tmp_path: Path, plain: Path) -> None:
    described = {"model": {"type": "BPE", "vocab": {chr(code): code for code in range(300)}, "merges": []}}
    (tmp_path / "own.json").write_text(json.dumps(described), encoding="utf-8")
    error = refused("C029", plain, "--out", tmp_path / "data", "--tokenizer", tmp_path / "own.json")
    assert (error.message, error.help) == ("tokenizer 'own' has no end-of-text token", "--no-eot")


IMPOSSIBLE = """C028 --val-tokens -1 | C006 --val-tokens many | C028 --shard-tokens 0 | C028 --shard-tokens 3e9
    C026 --tokenizer gpt3 | C027 --train-tokenizer 100 | C028 --train-tokenizer 300 --tokenizer own.json
    C028 --tokens -1 | C006 --format zip | C006 --encoder tiktoken | C028 --weights 1,2 | C028 --weights 0
    C028 --out= | C006 --weights a,b | C028 --weights nan | C006 --bogus"""


@pytest.mark.parametrize("options", IMPOSSIBLE.replace("\n", "|").split("|"))
def test_impossible_options_are_refused(tmp_path: Path, plain: Path, options: str) -> None:
    code, *arguments = options.split()
    assert refused(code, plain, "--out", tmp_path / "data", *arguments).exit_status == 2
    assert list(tmp_path.iterdir()) == [plain]


def test_too_many_shards_are_refused(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxgpt.prepare.ingest.MAX_SHARDS", 100)
    error = refused("C028", plain, "--out", tmp_path / "data", "--shard-tokens", "10")
    assert "would make about" in error.message
    assert list(tmp_path.iterdir()) == [plain]
