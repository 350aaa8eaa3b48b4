"""Which documents are for validation, how sources are mixed, and where a budget ends."""

from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import documents_in, expected_val, ids_of, parquet, some_texts, splits_of, stories

from jaxgpt import _loader
from jaxgpt.data import manifest
from jaxgpt.data.dataset import open_folder
from jaxgpt.data.tokenizer import gpt2
from jaxgpt.errors import DataError
from jaxgpt.prepare.pipeline import prepare
from jaxgpt.prepare.sources import base


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return parquet(tmp_path / "plain.parquet", text=some_texts())


@pytest.mark.parametrize("val_tokens", [1, 4000, 9000])
def test_validation_takes_documents_with_lowest_keys(tmp_path: Path, plain: Path, val_tokens: int) -> None:
    prepare([str(plain)], tmp_path / "data", val_tokens=val_tokens)
    train, val = splits_of(tmp_path / "data")
    assert val == expected_val(some_texts(), val_tokens)
    assert sorted(train + val) == sorted(some_texts())
    assert not set(train) & set(val)


def test_training_documents_keep_their_order(tmp_path: Path, plain: Path) -> None:
    texts = some_texts()
    prepare([str(plain)], tmp_path / "data", val_tokens=100)
    train, val = splits_of(tmp_path / "data")
    remaining = [text for text in texts if text not in val]
    # The longest prefix in order is what was never held out; the rest is in order too.
    positions: dict[str, list[int]] = {text: [] for text in texts}
    for position, text in enumerate(remaining):
        positions[text].append(position)
    order = [positions[text].pop(0) for text in train]
    drops = [index for index in range(1, len(order)) if order[index] < order[index - 1]]
    assert len(drops) == 1
    assert len(order) - drops[0] < len(order) / 4
    prepare([str(plain)], tmp_path / "whole")
    assert splits_of(tmp_path / "whole") == (texts, [])


def test_split_is_independent_of_document_order(tmp_path: Path, plain: Path) -> None:
    backwards = parquet(tmp_path / "backwards.parquet", text=some_texts()[::-1])
    prepare([str(plain)], tmp_path / "a", val_tokens=4000)
    prepare([str(backwards)], tmp_path / "b", val_tokens=4000)
    assert splits_of(tmp_path / "a")[1] == splits_of(tmp_path / "b")[1][::-1]


@pytest.mark.parametrize("wanted", [10**9, 2 * 10**4])
def test_split_that_leaves_nothing_to_train_on(tmp_path: Path, plain: Path, wanted: int) -> None:
    with pytest.raises(DataError, match=rf"D025.*val_tokens = {wanted:,} leaves too little to train on") as caught:
        prepare([str(plain)], tmp_path / "data", val_tokens=wanted)
    assert "there are about" in caught.value.message
    single = parquet(tmp_path / "single.parquet", text=["One document. " * 100])
    with pytest.raises(DataError, match=r"D025.*1 document"):
        prepare([str(single)], tmp_path / "data", val_tokens=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.parquet", "single.parquet"]


def test_keys_are_hashes_of_the_texts() -> None:
    texts = [text.encode() for text in some_texts()[:20]]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    keys = _loader.text_keys(b"".join(texts), ends.data)
    assert [keys[16 * n : 16 * n + 16].hex() for n in range(20)] == [_loader.hash_bytes(text) for text in texts]


@pytest.mark.parametrize("budget", [1, 3000, 10**9])
def test_budget_ends_with_the_document_that_reaches_it(tmp_path: Path, plain: Path, budget: int) -> None:
    prepare([str(plain)], tmp_path / "data", tokens=budget)
    lengths = np.cumsum([len(gpt2().encode(text)) + 1 for text in some_texts()])
    count = min(int(np.searchsorted(lengths, budget)) + 1, len(lengths))
    train, _ = splits_of(tmp_path / "data")
    assert train == some_texts()[:count]
    entry = manifest.read_manifest(tmp_path / "data").sources[0]
    assert (entry.documents, entry.tokens) == (count, lengths[count - 1])
    assert entry.bytes == sum(len(text.encode()) for text in train)


def test_budget_leaves_unneeded_files_unread(tmp_path: Path, plain: Path) -> None:
    other = parquet(tmp_path / "other.parquet", text=["never read"])
    made = prepare([str(plain), str(other)], tmp_path / "data", tokens=100)
    assert [entry.documents > 0 for entry in made.sources] == [True, False]
    assert prepare([str(plain), str(other)], tmp_path / "data", tokens=100) == made


def expected_mixture(parts: list[list[str]], weights: list[float]) -> list[str]:
    """Takes one document at a time from the component furthest behind, until it has none left."""
    taken, at, order = [0] * len(parts), [0] * len(parts), []
    while True:
        part = min(range(len(parts)), key=lambda index: (taken[index] / weights[index], index))
        if at[part] == len(parts[part]):
            return order
        text = parts[part][at[part]]
        order.append(text)
        at[part] += 1
        taken[part] += len(gpt2().encode(text)) + 1


@pytest.mark.parametrize("batch_bytes", [1, 3000, base.BATCH_BYTES])
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.8, 0.2], [1.0, 7.0]])
def test_mixture_follows_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: list[float], batch_bytes: int
) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", batch_bytes)
    parts = [stories(120, 1), stories(150, 2)]
    names = [str(parquet(tmp_path / f"{n}.parquet", text=part)) for n, part in enumerate(parts)]
    made = prepare(names, tmp_path / "data", weights=weights)
    assert documents_in(open_folder(tmp_path / "data").train) == expected_mixture(parts, weights)
    shares = [entry.tokens * sum(weights) / weight for entry, weight in zip(made.sources, weights)]
    assert shares[0] == pytest.approx(shares[1], rel=0.06)
    assert made.settings.weights == tuple(weights)


def test_mixture_component_of_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    first, second, other = stories(30, 1), stories(40, 2), stories(200, 3)
    parquet(tmp_path / "one" / "a.parquet", text=first)
    parquet(tmp_path / "one" / "b.parquet", text=second)
    lone = parquet(tmp_path / "other.parquet", text=other)
    prepare([str(tmp_path / "one"), str(lone)], tmp_path / "data", weights=[0.5, 0.5], val_tokens=500)
    train, val = splits_of(tmp_path / "data")
    order = expected_mixture([first + second, other], [0.5, 0.5])
    assert sorted(train + val) == sorted(order)
    assert val == expected_val(order, 500)
    shares = [line.split() for line in capsys.readouterr().out.splitlines() if " %  " in line]
    assert [name for *_, name in shares] == [str(tmp_path / "one"), str(lone)]
    assert sum(float(share) for share, *_ in shares) == pytest.approx(100, abs=0.1)


def test_nanogpt_format(tmp_path: Path, plain: Path) -> None:
    prepare([str(plain)], tmp_path / "data", layout="nanogpt", val_tokens=4000, shard_tokens=1000)
    prepare([str(plain)], tmp_path / "shards", val_tokens=4000)
    plainly, shards = open_folder(tmp_path / "data"), open_folder(tmp_path / "shards")
    for name in ("train", "val"):
        raw = np.fromfile(tmp_path / "data" / f"{name}.bin", "<u2")  # as nanoGPT's memmap reads it
        np.testing.assert_array_equal(raw, ids_of(getattr(shards, name)))
        np.testing.assert_array_equal(raw, ids_of(getattr(plainly, name)))
    plainly.verify()
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert names == ["manifest.json", "tokenizer.json", "train.bin", "val.bin"]


def test_mixture_component_without_text(tmp_path: Path, plain: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    names = [str(plain), str(tmp_path / "empty.txt")]
    with pytest.raises(DataError, match=r"D024.*no text in .*empty\.txt: there is nothing to mix") as caught:
        prepare(names, tmp_path / "data", weights=[0.5, 0.5])
    assert "plain.parquet" not in caught.value.message
    prepare(names, tmp_path / "data")
    assert splits_of(tmp_path / "data") == (some_texts(), [])
