"""What an audit says of a folder, against plain counting, and what it refuses."""

import collections
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shards import llmc_bytes

from jaxgpt import _loader, errors
from jaxgpt.audit import main
from jaxgpt.audit import summary as screen
from jaxgpt.audit.command import audit
from jaxgpt.audit.record import Files
from jaxgpt.data import dataset, entropy, manifest
from jaxgpt.data.dataset import open_folder
from jaxgpt.data.tokenizer import gpt2
from jaxgpt.errors import JaxgptError
from jaxgpt.prepare.pipeline import prepare

EOT = 50256
WORDS = ["sea", "ship", "wind", "captain", "harbour", "night", "letter", "house", "garden", "king", "stone", "river"]


def sentence(random_: random.Random, words: int) -> str:
    return " ".join(random_.choice(WORDS) + str(random_.randrange(50)) for _ in range(words))


def edited(random_: random.Random, text: str, share: float) -> str:
    """`text` with that share of its words replaced."""
    words = text.split(" ")
    for place in random_.sample(range(len(words)), round(share * len(words))):
        words[place] = random_.choice(WORDS) + str(50 + random_.randrange(50))
    return " ".join(words)


def texts(seed: int = 0, count: int = 120) -> list[str]:
    """Documents, exact copies of some and edits of others."""
    random_ = random.Random(seed)
    own = [sentence(random_, random_.randrange(20, 200)) for _ in range(count)]
    copies = [random_.choice(own) for _ in range(count // 6)]
    edits = [edited(random_, random_.choice(own), 0.01) for _ in range(count // 6)]
    other = [edited(random_, random_.choice(own), 0.2) for _ in range(count // 6)]
    return [*own, *copies, *edits, *other, "short", "short", "a b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared folder with train and validation."""
    source = tmp_path / "texts"
    source.mkdir()
    for number, text in enumerate(texts()):
        (source / f"{number:04}.txt").write_text(text)
    prepare([str(source)], tmp_path / "data", val_tokens=4_000)
    return tmp_path / "data"


def documents(split: dataset.Split | None) -> list[tuple[int, ...]]:
    """The documents of a split that ends with an end-of-text token."""
    if split is None:
        return []
    ids = split.ids(0, split.tokens)
    return [tuple(part[part != EOT].tolist()) for part in np.split(ids, np.flatnonzero(ids == EOT) + 1)[:-1]]


def shingles(document: tuple[int, ...]) -> set[tuple[int, ...]]:
    return {document[n : n + 5] for n in range(len(document) - 4)} or {document}


def roots(all_documents: list[tuple[int, ...]]) -> list[int]:
    """The first document of each one's cluster, by comparing all pairs."""
    sets, root = [shingles(document) for document in all_documents], list(range(len(all_documents)))
    for a, b in itertools.combinations(range(len(sets)), 2):
        if root[a] != root[b] and 5 * len(sets[a] & sets[b]) >= 4 * len(sets[a] | sets[b]):
            low, high = sorted((root[a], root[b]))
            root = [low if one == high else one for one in root]
    return root


def kept(train_documents: list[tuple[int, ...]], val_documents: list[tuple[int, ...]]) -> list[int]:
    """The documents that remain: the first of validation in each cluster, or else the first."""
    clusters = collections.defaultdict(list)
    for document, root in enumerate(roots([*train_documents, *val_documents])):
        clusters[root].append(document)
    return sorted(next((d for d in one if d >= len(train_documents)), one[0]) for one in clusters.values())


def refused(code: str, *arguments: Any) -> JaxgptError:
    with pytest.raises(JaxgptError) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == code, caught.value
    return caught.value


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- what it finds ---------------------------------------------------------------------------------------------------


def test_duplicates_are_those_of_comparing_every_pair(folder: Path) -> None:
    record, data = audit(folder), open_folder(folder)
    train_documents, val_documents = documents(data.train), documents(data.val)
    everything = [*train_documents, *val_documents]
    remaining = kept(train_documents, val_documents)
    assert len(everything) - len(remaining) > 20
    assert record["effective_unique_tokens"] == sum(len(everything[one]) + 1 for one in remaining)
    assert record["tokens"] == sum(len(document) + 1 for document in everything)
    assert record["duplicates"]["exact"]["documents"] == len(everything) - len(set(everything))
    exact = sum(document in set(train_documents) for document in val_documents)
    root = roots(everything)
    near = sum(root[len(train_documents) + n] in root[: len(train_documents)] for n in range(len(val_documents)))
    assert record["leakage"]["exact"]["documents"] == exact
    assert record["leakage"]["exact"]["documents"] + record["leakage"]["near"]["documents"] == near
    assert near > 0
    saved = sum(split["effective_unique_tokens"] for split in record["splits"].values())
    assert saved == record["effective_unique_tokens"]


def test_the_record_is_what_the_documentation_says(folder: Path) -> None:
    record = audit(folder)
    assert record == json.loads((folder / "audit.json").read_text())
    assert (record["format"], record["fingerprint"]) == (1, open_folder(folder).fingerprint)
    page = (Path(__file__).parents[1] / "docs" / "audit.md").read_text()

    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            return {*value, *(name for inner in value.values() for name in names(inner))}
        return {name for inner in value for name in names(inner)} if isinstance(value, list) else set()

    assert {name for name in names(record) if f"`{name}`" not in page} <= {"train", "val"}


def test_figures_of_the_text(folder: Path) -> None:
    record, data = audit(folder), open_folder(folder)
    made = manifest.read_manifest(folder)
    ids = data.train.ids(0, data.train.tokens)
    split = record["splits"]["train"]
    assert split["unigram_entropy"] == pytest.approx(entropy.unigram_entropy(data.train, data.vocab_size))
    assert split["bytes_per_token"] == made.splits["train"].bytes / len(ids)
    assert split["documents"] == made.splits["train"].documents == split["eot"]["count"] == np.sum(ids == EOT)
    assert split["distinct_ids"] == len(np.unique(ids))


def test_bytes_are_counted_by_tokens_where_there_is_no_manifest(folder: Path, tmp_path: Path) -> None:
    data, made = open_folder(folder), manifest.read_manifest(folder)
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, split in (("train", data.train), ("val", data.val)):
        (plain / f"{name}.bin").write_bytes(split.ids(0, split.tokens).tobytes())
    ours, theirs = audit(folder), audit(plain)
    assert theirs["splits"]["train"]["bytes"] == made.splits["train"].bytes
    for name in ("effective_unique_tokens", "duplicates", "leakage"):
        assert theirs[name] == ours[name]
    assert any("does not name its tokenizer" in note for note in theirs["notes"])


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_shards_of_others_with_the_end_of_text_in_front(tmp_path: Path, dtype: str) -> None:
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
    assert open_folder(tmp_path).train.tokens == record["tokens"]  # the files of the audit are no shards


def test_a_folder_of_shards_without_names_stays_one_after_its_audit(tmp_path: Path) -> None:
    (tmp_path / "000.bin").write_bytes(llmc_bytes(np.array([5, 6, EOT], np.uint16)))
    before = open_folder(tmp_path)
    audit(tmp_path)
    assert [path.name for path in open_folder(tmp_path).train.paths] == ["000.bin"]
    assert open_folder(tmp_path).notes == before.notes


def test_ids_outside_the_vocabulary_are_counted_not_fatal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.array([1, 2, 60_000, EOT, 60_001, EOT], np.uint16).tofile(tmp_path / "train.bin")
    record = audit(tmp_path)
    foreign = record["splits"]["train"]["out_of_vocabulary"]
    assert foreign == {"count": 2, "first": {"file": "train.bin", "position": 2, "token": 60_000}}
    assert "! train: 2 ids outside the vocabulary, the first 60000 at 2 of train.bin" in capsys.readouterr().out


def test_no_end_of_text_is_said(tmp_path: Path) -> None:
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "train.bin")
    assert "the end-of-text token 50256 does not occur" in str(audit(tmp_path)["notes"])
    assert audit(tmp_path, eot=50)["splits"]["train"]["documents"] == 2


# --- the commands ----------------------------------------------------------------------------------------------------


def test_a_second_audit_says_that_it_is_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit(folder)
    first, files = capsys.readouterr().out, files_of(folder)
    audit(folder)
    second = capsys.readouterr().out
    assert second == f"'{folder}' is audited already (--again repeats it)\n{first}"
    assert files_of(folder) == files
    audit(folder, again=True)
    assert "already" not in capsys.readouterr().out
    shard = next(folder.glob("train_*.bin"))
    os.utime(shard)  # written to since
    audit(folder)
    assert "already" not in capsys.readouterr().out
    (folder / "audit.html").unlink()
    audit(folder)
    assert (folder / "audit.html").exists()


def test_the_summary_fits_a_screen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = audit(folder)
    capsys.readouterr()
    name = Path("data/fineweb40m")
    lines = screen.text(name, Files(name / "audit.json"), record).splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert f"effective unique tokens: {record['effective_unique_tokens']:,}" in lines[1]
    assert any("of validation are also in train" in line for line in lines)


def test_the_page_shows_it_with_its_plots(folder: Path) -> None:
    record, page = audit(folder), (folder / "audit.html").read_text()
    assert page.count("<svg") == 4
    assert f"{record['effective_unique_tokens']:,}" in page
    assert record["duplicates"]["largest"][0]["kept"]["text"][:20] in page


def test_threads_change_nothing(folder: Path) -> None:
    def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in record.items() if name != "seconds"}

    one = audit(folder, threads=1)
    clusters = (folder / "audit-clusters.bin").read_bytes()
    assert without_seconds(audit(folder, threads=5, again=True)) == without_seconds(one)
    assert (folder / "audit-clusters.bin").read_bytes() == clusters


def test_another_place_for_the_files(folder: Path, tmp_path: Path) -> None:
    audit(folder, out=tmp_path / "found.json")
    assert not list(folder.glob("audit*"))
    assert {path.name for path in tmp_path.glob("found*")} == {"found.json", "found.html", "found-clusters.bin"}


def test_the_clusters_lead_near_duplicates_to_one_key(folder: Path) -> None:
    record, data = audit(folder), open_folder(folder)
    path = folder / record["clusters"]["file"]
    clusters = _loader.ClusterMap(path)
    everything = [*documents(data.train), *documents(data.val)]
    root = roots(everything)
    keys = [_loader.document_key(np.array(document, np.uint16).tobytes(), "uint16") for document in everything]
    for cluster in set(root):
        members = {keys[n] for n, one in enumerate(root) if one == cluster}
        found = {clusters.representative(key) for key in members}
        assert found == {None} if len(members) == 1 else len(found) == 1 and found <= members
    assert len(clusters) > 10


# --- what is refused -------------------------------------------------------------------------------------------------


def test_bad_options_and_places(folder: Path, tmp_path: Path) -> None:
    assert "50256" in refused("C031", folder, "--eot", 60_000).help
    refused("C032", folder, "--threads", -1)
    refused("C032", folder, "--out", tmp_path / "x.txt")
    refused("C032", folder, "--out", tmp_path / "none" / "x.json")
    refused("C032", folder, "--tmp", tmp_path / "none")
    refused("C032", folder, "--dedup", folder)
    refused("C006", folder, "--eot", "x")
    refused("D002", tmp_path / "none")
    assert not list(folder.glob("audit*"))


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    error = refused("S016", folder)
    assert "Read-only" in error.message
    assert "--out" in error.help


@pytest.mark.parametrize("name", ["audit.json", "audit.html", "audit-clusters.bin"])
def test_nobodys_file_is_overwritten(folder: Path, name: str) -> None:
    (folder / name).write_text("my notes")
    refused("S016", folder)
    assert (folder / name).read_text() == "my notes"


def test_an_unreadable_record_is_made_anew(folder: Path) -> None:
    record = audit(folder)
    (folder / "audit.json").write_text((folder / "audit.json").read_text()[:200])
    assert audit(folder)["effective_unique_tokens"] == record["effective_unique_tokens"]


def test_damaged_shards(folder: Path) -> None:
    shard = next(folder.glob("train_*.bin"))
    good = shard.read_bytes()
    shard.write_bytes(good[:-2] + b"\1\0")
    refused("D011", folder)
    shard.write_bytes(good[:-2])
    refused("D007", folder)
    shard.unlink()
    refused("D016", folder)
    assert not list(folder.glob("audit*"))


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "audit.json")

    monkeypatch.setattr("jaxgpt.utils.html.write", full)
    assert errors.run(main, [str(folder)]) == 7
    assert not (folder / "audit.json").exists()


def test_ctrl_c_is_clean(tmp_path: Path) -> None:
    """The core looks for signals while its threads work."""
    np.random.default_rng(0).integers(0, 50_000, 150_000_000, np.uint16).tofile(tmp_path / "train.bin")
    code = "import signal; from jaxgpt import audit, errors; print('ready', flush=True); "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); raise SystemExit(errors.run(audit.main))"
    command = [sys.executable, "-c", code, str(tmp_path), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["train.bin"]


# --- quality ---------------------------------------------------------------------------------------------------------


def passages(shared: Path, count: int, words: int) -> list[list[str]]:
    """Passages of real text, none of which overlap."""
    import pyarrow.parquet as pq

    texts = pq.read_table(shared / "corpus" / "000_00000.parquet", columns=["text"])["text"].to_pylist()
    found = [text.split(" ")[:words] for text in texts]
    return [passage for passage in found if len(passage) == words][:count]


def test_planted_duplicates_are_found_at_least_as_well_as_by_datasketch(shared: Path, tmp_path: Path) -> None:
    datasketch = pytest.importorskip("datasketch")
    rng, tokenizer = random.Random(0), gpt2()
    originals = passages(shared, 330, 250)
    words = [word for passage in originals for word in passage]
    everything = []
    for number, original in enumerate(originals):
        copy, percent = list(original), (0, 1, 2, 2, 3, 3, 5, 10, 20, 30, 40)[number % 11]
        for place in rng.sample(range(len(copy)), round(percent / 100 * len(copy))):
            copy[place] = rng.choice(words)
        everything += [tuple(tokenizer.encode(" ".join(part))) for part in (original, copy)]
    pairs = [(2 * n, 2 * n + 1) for n in range(len(originals))]
    sets = [shingles(document) for document in everything]
    true = {(a, b) for a, b in pairs if 5 * len(sets[a] & sets[b]) >= 4 * len(sets[a] | sets[b])}
    assert 100 < len(true) < 230

    np.array([i for document in everything for i in (*document, EOT)], np.uint16).tofile(tmp_path / "train.bin")
    data = open_folder(tmp_path)
    found = _loader.audit(data.train.shards, None, vocab_size=EOT + 1, folder=tmp_path, eot=EOT)
    one = np.frombuffer(found.kept(), "<u4")
    ours = {pair for pair in itertools.combinations(range(len(everything)), 2) if one[pair[0]] == one[pair[1]]}

    index, theirs = datasketch.MinHashLSH(threshold=0.8, num_perm=128), set()
    for number, own in enumerate(sets):
        sketch = datasketch.MinHash(num_perm=128)
        sketch.update_batch([np.array(shingle).tobytes() for shingle in sorted(own)])
        theirs |= {(other, number) for other in index.query(sketch)}
        index.insert(number, sketch)
    assert ours == true  # at the threshold one pair in 20,000 may be missed, and the seed is fixed
    assert theirs - true or true - theirs  # otherwise the pairs are too easy to tell the two apart


# --- a disk that is full ---------------------------------------------------------------------------------------------


def with_file_limit(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process whose files cannot grow beyond `size` bytes: writing more fails, as on a full disk."""
    limited = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
from jaxgpt import errors
from jaxgpt.audit import main
sys.exit(errors.run(main))
"""
    command = [sys.executable, "-c", limited, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_no_room_for_the_temporary_file(tmp_path: Path) -> None:
    np.tile(np.array([1, 2, EOT], np.uint16), 5_000).tofile(tmp_path / "train.bin")
    done = with_file_limit(1_000_000, tmp_path)
    assert done.returncode == 7
    assert f"error[S015]: the audit's temporary file, 1,640,000 bytes in {tmp_path}: File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.bin"]


def test_no_room_for_the_page(tmp_path: Path) -> None:
    np.tile(np.array([1, 2, EOT], np.uint16), 50).tofile(tmp_path / "train.bin")
    done = with_file_limit(20_000, tmp_path)
    assert (done.returncode, done.stderr.startswith("error[S009]: File too large")) == (7, True), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"train.bin", "audit-clusters.bin"}
    audit(tmp_path)
    assert (tmp_path / "audit.json").exists()
