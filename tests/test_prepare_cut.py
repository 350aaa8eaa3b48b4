"""A single text file: its end becomes the validation split, by characters or BPE."""

from pathlib import Path

import pytest
from helpers.corpora import EOT, files_in, ids_of, stories

from jaxgpt.data import manifest
from jaxgpt.data.dataset import Split, open_folder
from jaxgpt.data.tokenizer import gpt2
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.prepare.command import main
from jaxgpt.prepare.pipeline import prepare

TEXT = "\n\n".join(stories(400, 3))


@pytest.fixture
def single(tmp_path: Path) -> Path:
    (tmp_path / "input.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "input.txt"


def parts(folder: Path) -> list[str]:
    """The texts of train and val, without the end-of-text token at their ends."""
    data = open_folder(folder)
    data.verify()
    assert isinstance(data.val, Split)
    ids = [ids_of(split).tolist() for split in (data.train, data.val)]
    assert [split[-1] for split in ids] == [data.tokenizer.eot] * 2
    assert [data.train.bytes, data.val.bytes] == [len(data.tokenizer.decode(split[:-1]).encode()) for split in ids]
    return [data.tokenizer.decode(split[:-1]) for split in ids]


@pytest.mark.parametrize("options", [[], ["--format", "nanogpt"], ["--tokenizer", "char"], ["--shard-tokens", "500"]])
def test_last_tenth_is_for_validation(
    tmp_path: Path, single: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(single), "--out", str(tmp_path / "data"), *options])
    cut = int(0.9 * len(TEXT))
    assert parts(tmp_path / "data") == [TEXT[:cut], TEXT[cut:]]
    made = manifest.read_manifest(tmp_path / "data")
    assert (made.cut_at, made.settings.val_tokens, made.sources[0].documents) == (cut, None, 1)
    assert f"{tmp_path}/data: 1 document, " in (printed := capsys.readouterr().out)
    assert f"the document was cut after {cut:,} characters: val is its last 10 %" in printed
    before = files_in(tmp_path / "data")
    main([str(single), "--out", str(tmp_path / "data"), *options])
    assert files_in(tmp_path / "data") == before


def test_number_of_validation_tokens(tmp_path: Path, single: Path) -> None:
    prepare([str(single)], tmp_path / "data", val_tokens=2000)
    train, val = parts(tmp_path / "data")
    assert train + val == TEXT
    assert abs(len(gpt2().encode(val)) - 2000) < 100


def test_no_split_if_none_is_wanted(tmp_path: Path, single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(single), "--out", str(tmp_path / "data"), "--val-tokens", "0"])
    data = open_folder(tmp_path / "data")
    assert (data.val, ids_of(data.train).tolist()) == (None, [*gpt2().encode(TEXT), EOT])
    assert "no validation split" in capsys.readouterr().out


def test_several_files_are_not_cut(tmp_path: Path, single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    main([str(single), str(tmp_path / "other.txt"), "--out", str(tmp_path / "data")])
    made = manifest.read_manifest(tmp_path / "data")
    assert (list(made.splits), made.splits["train"].documents, made.cut_at) == (["train"], 2, None)
    assert "no validation split: --val-tokens N sets documents aside" in capsys.readouterr().out


def test_too_large_validation_is_refused(tmp_path: Path, single: Path) -> None:
    for options in ({}, {"train_tokenizer": 300}):
        with pytest.raises(DataError, match=r"D025.*in 1 document") as caught:
            prepare([str(single)], tmp_path / "data", val_tokens=10**6, **options)
        assert "resumes" not in caught.value.help
        assert sorted(path.name for path in tmp_path.iterdir()) == ["input.txt"]


def test_new_tokenizer_is_trained_on_the_train_part(tmp_path: Path, single: Path) -> None:
    cut = int(0.9 * len(TEXT))
    single.write_text(TEXT[:cut] + ("zyx" * len(TEXT))[: len(TEXT) - cut])
    prepare([str(single)], tmp_path / "data", train_tokenizer=400)
    assert "zyx" not in open_folder(tmp_path / "data").tokenizer.to_json()
    assert parts(tmp_path / "data")[0] == TEXT[:cut]


def test_characters_of_several_documents(tmp_path: Path, single: Path) -> None:
    (tmp_path / "other.txt").write_text("é🚢")
    prepare([str(single), str(tmp_path / "other.txt")], tmp_path / "data", tokenizer="char", val_tokens=None)
    data = open_folder(tmp_path / "data")
    assert data.vocab_size == len(set(TEXT) | set("é🚢")) + 1
    assert data.tokenizer.decode(ids_of(data.train)) == f"{TEXT}<|endoftext|>é🚢<|endoftext|>"
    with pytest.raises(ConfigError, match="C069"):
        data.tokenizer.encode("ß")


def test_large_validation_split_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, story in enumerate(stories(8, 1)):
        (tmp_path / f"{number}.txt").write_text(story * 20)
    main([str(tmp_path), "--out", str(tmp_path / "data"), "--val-tokens", "20"])
    assert "of all tokens, more than the 20 requested: it takes whole documents" in capsys.readouterr().out
