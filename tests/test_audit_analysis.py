"""The audit's result, compared with counting in plain Python and with datasketch."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.audit import EOT, cluster_roots, documents, kept_documents, shingles
from helpers.shards import llmc_bytes

from jaxgpt import _loader
from jaxgpt.audit.command import audit
from jaxgpt.data import entropy, manifest
from jaxgpt.data.dataset import open_folder
from jaxgpt.data.tokenizer import gpt2

# --- the findings ----------------------------------------------------------------------------------------------------


def test_duplicates_equal_those_of_all_pairs(duplicates_folder: Path) -> None:
    record, data = audit(duplicates_folder), open_folder(duplicates_folder)
    train_documents, val_documents = documents(data.train), documents(data.val)
    everything = [*train_documents, *val_documents]
    remaining = kept_documents(train_documents, val_documents)
    assert len(everything) - len(remaining) > 20
    assert record["effective_unique_tokens"] == sum(len(everything[one]) + 1 for one in remaining)
    assert record["tokens"] == sum(len(document) + 1 for document in everything)
    assert record["duplicates"]["exact"]["documents"] == len(everything) - len(set(everything))
    exact = sum(document in set(train_documents) for document in val_documents)
    root = cluster_roots(everything)
    near = sum(root[len(train_documents) + n] in root[: len(train_documents)] for n in range(len(val_documents)))
    assert record["leakage"]["exact"]["documents"] == exact
    assert record["leakage"]["exact"]["documents"] + record["leakage"]["near"]["documents"] == near
    assert near > 0
    saved = sum(split["effective_unique_tokens"] for split in record["splits"].values())
    assert saved == record["effective_unique_tokens"]


def test_record_fields_are_documented(duplicates_folder: Path) -> None:
    record = audit(duplicates_folder)
    assert record == json.loads((duplicates_folder / "audit.json").read_text())
    assert (record["format"], record["fingerprint"]) == (1, open_folder(duplicates_folder).fingerprint)
    page = (Path(__file__).parents[1] / "docs" / "audit.md").read_text()

    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            return {*value, *(name for inner in value.values() for name in names(inner))}
        return {name for inner in value for name in names(inner)} if isinstance(value, list) else set()

    assert {name for name in names(record) if f"`{name}`" not in page} <= {"train", "val"}


def test_text_statistics(duplicates_folder: Path) -> None:
    record, data = audit(duplicates_folder), open_folder(duplicates_folder)
    entry = manifest.read_manifest(duplicates_folder)
    ids = data.train.ids(0, data.train.tokens)
    split = record["splits"]["train"]
    assert split["unigram_entropy"] == pytest.approx(entropy.unigram_entropy(data.train, data.vocab_size))
    assert split["bytes_per_token"] == entry.splits["train"].bytes / len(ids)
    assert split["documents"] == entry.splits["train"].documents == split["eot"]["count"] == np.sum(ids == EOT)
    assert split["distinct_ids"] == len(np.unique(ids))


def test_bytes_are_counted_from_tokens_without_a_manifest(duplicates_folder: Path, tmp_path: Path) -> None:
    data, entry = open_folder(duplicates_folder), manifest.read_manifest(duplicates_folder)
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, split in (("train", data.train), ("val", data.val)):
        (plain / f"{name}.bin").write_bytes(split.ids(0, split.tokens).tobytes())
    expected, record = audit(duplicates_folder), audit(plain)
    assert record["splits"]["train"]["bytes"] == entry.splits["train"].bytes
    for name in ("effective_unique_tokens", "duplicates", "leakage"):
        assert record[name] == expected[name]
    assert any("does not name its tokenizer" in note for note in record["notes"])


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_llmc_shards_with_prepended_end_of_text(tmp_path: Path, dtype: str) -> None:
    tokenizer = gpt2()
    ids = [np.array([EOT, *tokenizer.encode(text)], dtype) for text in ["one two", "", "one two", "three"]]
    magic = {"uint16": (20240520, 1), "uint32": (20240801, 7)}[dtype]
    (tmp_path / "fineweb_train_000000.bin").write_bytes(llmc_bytes(np.concatenate(ids[:2]), *magic))
    (tmp_path / "fineweb_train_000001.bin").write_bytes(llmc_bytes(np.concatenate(ids[2:]), *magic))
    tokenizer.save(tmp_path / "tokenizer.json")
    record = audit(tmp_path)
    split = record["splits"]["train"]
    assert (split["documents"], split["eot"]["position"], split["eot"]["empty_documents"]) == (4, "prepended", 1)
    assert record["duplicates"]["exact"] == {"documents": 1, "tokens": 3}
    assert record["leakage"] is None
    assert open_folder(tmp_path).train.tokens == record["tokens"]  # the files of the audit are not shards


@pytest.mark.parametrize("name", ["audit.json", "other.json"])
def test_audit_files_are_not_taken_for_shards(tmp_path: Path, name: str) -> None:
    (tmp_path / "000.bin").write_bytes(llmc_bytes(np.array([5, 6, EOT], np.uint16)))
    before = open_folder(tmp_path)
    audit(tmp_path, out=tmp_path / name)
    after = open_folder(tmp_path)
    assert [path.name for path in after.train.paths] == ["000.bin"]
    assert (after.notes, after.fingerprint) == (before.notes, before.fingerprint)


def test_ids_outside_the_vocabulary_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.array([1, 2, 60_000, EOT, 60_001, EOT], np.uint16).tofile(tmp_path / "train.bin")
    record = audit(tmp_path)
    foreign = record["splits"]["train"]["out_of_vocabulary"]
    assert foreign == {"count": 2, "first": {"file": "train.bin", "position": 2, "token": 60_000}}
    assert "- train: 2 ids outside the vocabulary, the first 60000 at 2 of train.bin" in capsys.readouterr().out


def test_missing_end_of_text_is_noted(tmp_path: Path) -> None:
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "train.bin")
    assert "the end-of-text token 50256 does not occur" in str(audit(tmp_path)["notes"])
    assert audit(tmp_path, eot=50)["splits"]["train"]["documents"] == 2


# --- quality ---------------------------------------------------------------------------------------------------------


def passages(shared: Path, count: int, words: int) -> list[list[str]]:
    """Passages of real text, none of which overlap."""
    import pyarrow.parquet as pq

    texts = pq.read_table(shared / "corpus" / "000_00000.parquet", columns=["text"])["text"].to_pylist()
    passages = [text.split(" ")[:words] for text in texts]
    return [passage for passage in passages if len(passage) == words][:count]


def test_planted_duplicates_are_found_as_well_as_by_datasketch(shared: Path, tmp_path: Path) -> None:
    datasketch = pytest.importorskip("datasketch")
    rng, tokenizer = random.Random(0), gpt2()
    originals = passages(shared, 330, 250)
    words = [word for passage in originals for word in passage]
    everything = []
    for number, original in enumerate(originals):
        copy, percent = list(original), (0, 1, 2, 2, 3, 3, 5, 10, 20, 30, 40)[number % 11]
        for position in rng.sample(range(len(copy)), round(percent / 100 * len(copy))):
            copy[position] = rng.choice(words)
        everything += [tuple(tokenizer.encode(" ".join(part))) for part in (original, copy)]
    pairs = [(2 * n, 2 * n + 1) for n in range(len(originals))]
    sets = [shingles(document) for document in everything]
    true = {(a, b) for a, b in pairs if 5 * len(sets[a] & sets[b]) >= 4 * len(sets[a] | sets[b])}
    assert 100 < len(true) < 230

    np.array([i for document in everything for i in (*document, EOT)], np.uint16).tofile(tmp_path / "train.bin")
    data = open_folder(tmp_path)
    result = _loader.audit(data.train.shards, None, vocab_size=EOT + 1, folder=tmp_path, eot=EOT)
    one = np.frombuffer(result.kept(), "<u4")
    joined = {pair for pair in itertools.combinations(range(len(everything)), 2) if one[pair[0]] == one[pair[1]]}

    index, datasketch_pairs = datasketch.MinHashLSH(threshold=0.8, num_perm=128), set()
    for number, own in enumerate(sets):
        sketch = datasketch.MinHash(num_perm=128)
        sketch.update_batch([np.array(shingle).tobytes() for shingle in sorted(own)])
        datasketch_pairs |= {(other, number) for other in index.query(sketch)}
        index.insert(number, sketch)
    assert joined == true  # at the threshold one pair in 20,000 may be missed, and the seed is fixed
    assert datasketch_pairs - true or true - datasketch_pairs  # otherwise the pairs are too easy to tell the two apart
