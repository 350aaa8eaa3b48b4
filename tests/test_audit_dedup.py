"""The dataset without duplicates: what the audit keeps, in its order, complete or absent."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import KILLS
from helpers.audit import (
    EOT,
    documents,
    files_of,
    kept_documents,
    refused,
    run_with_file_limit,
    texts_with_duplicates,
)

from jaxgpt.audit.command import audit
from jaxgpt.data import manifest
from jaxgpt.data.dataset import open_folder
from jaxgpt.data.manifest import Manifest
from jaxgpt.data.tokenizer import gpt2, train


def test_new_dataset_has_the_kept_documents_in_order(duplicates_folder: Path, tmp_path: Path) -> None:
    before = files_of(duplicates_folder)
    out = tmp_path / "unique"
    record = audit(duplicates_folder, dedup=out)
    old, new = open_folder(duplicates_folder), open_folder(out)
    train_documents, val_documents = documents(old.train), documents(old.val)
    remaining = kept_documents(train_documents, val_documents)
    everything = [*train_documents, *val_documents]
    assert documents(new.train) == [everything[one] for one in remaining if one < len(train_documents)]
    assert documents(new.val) == [everything[one] for one in remaining if one >= len(train_documents)]
    assert new.train.tokens + new.val.tokens == record["effective_unique_tokens"]
    new.verify()
    again = audit(out)
    assert again["effective_unique_tokens"] == again["tokens"] == record["effective_unique_tokens"]
    assert again["leakage"]["exact"]["documents"] == again["leakage"]["near"]["documents"] == 0
    assert {name: files_of(duplicates_folder)[name] for name in before} == before
    for split in (new.train, new.val):
        assert split.bytes == len(gpt2().decode(split.ids(0, split.tokens)).replace("<|endoftext|>", "").encode())


def test_new_manifest_describes_its_derivation(duplicates_folder: Path, tmp_path: Path) -> None:
    old = manifest.read_manifest(duplicates_folder)
    audit(duplicates_folder, dedup=tmp_path / "unique")
    new = manifest.read_manifest(tmp_path / "unique")
    assert old.derived is None
    assert old.fingerprint in (new.derived or "")
    assert "Jaccard >= 0.8 on 5-token shingles" in (new.derived or "")
    assert (new.sources, new.settings, new.tokenizer) == (old.sources, old.settings, old.tokenizer)


def test_manifests_without_derived_are_read(duplicates_folder: Path) -> None:
    values = json.loads((duplicates_folder / "manifest.json").read_text())
    del values["derived"], values["checksum"]
    (duplicates_folder / "manifest.json").write_text(json.dumps(values))
    assert manifest.read_manifest(duplicates_folder).derived is None


def test_repeated_command_changes_nothing(
    duplicates_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "unique"
    audit(duplicates_folder, dedup=out)
    files = files_of(out)
    audit(duplicates_folder, dedup=out)
    assert f"Withoutduplicates:{out}" in "".join(capsys.readouterr().out.split())  # a long path is wrapped
    assert files_of(out) == files
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("x")
    refused("S012", duplicates_folder, "--dedup", tmp_path / "other")
    shutil.copytree(duplicates_folder, tmp_path / "copy")
    refused("S012", duplicates_folder, "--dedup", tmp_path / "copy")


def test_headerless_files_become_a_dataset_with_a_manifest(tmp_path: Path) -> None:
    tokenizer = train([" ".join(texts_with_duplicates())], 400)
    plain = tmp_path / "plain"
    plain.mkdir()
    tokenizer.save(plain / "tokenizer.json")
    end = np.array([tokenizer.eot], np.uint16)
    parts = [part for text in texts_with_duplicates() for part in (end, np.array(tokenizer.encode(text), np.uint16))]
    np.concatenate(parts).tofile(plain / "train.bin")
    record = audit(plain, dedup=tmp_path / "unique")
    new = open_folder(tmp_path / "unique")
    assert isinstance(new.manifest, Manifest)
    assert new.train.tokens == record["effective_unique_tokens"]
    assert new.tokenizer.fingerprint == tokenizer.fingerprint
    assert new.manifest.eot_position == "appended"
    assert new.val is None


def test_train_split_contained_in_validation_is_refused(tmp_path: Path) -> None:
    np.array([1, 2, 3, EOT], np.uint16).tofile(tmp_path / "train.bin")
    np.array([1, 2, 3, EOT], np.uint16).tofile(tmp_path / "val.bin")
    refused("D031", tmp_path, "--dedup", tmp_path / "unique")
    assert not (tmp_path / "unique").exists()


@pytest.mark.slow
def test_rerun_after_a_kill_gives_the_same_bytes(tmp_path: Path) -> None:
    """Large enough that most kills meet it while it reads, compares or writes."""
    data, rng = tmp_path / "data", np.random.default_rng(0)
    data.mkdir()
    parts = [np.append(rng.integers(0, EOT, rng.integers(200, 1_000)).astype(np.uint16), EOT) for _ in range(8_000)]
    np.concatenate([*parts, *parts[::3]]).astype(np.uint16).tofile(data / "train.bin")
    command = [sys.executable, "-m", "jaxgpt.audit", str(data), "--dedup"]
    complete, cut = tmp_path / "complete", tmp_path / "cut"
    subprocess.run([*command, str(tmp_path / "first")], check=True, capture_output=True)
    began = time.monotonic()
    subprocess.run([*command, str(complete)], check=True, capture_output=True)
    seconds = time.monotonic() - began
    random_, unfinished = random.Random(0), 0
    for _ in range(KILLS):
        with subprocess.Popen([*command, str(cut)], stdout=subprocess.DEVNULL) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(random_.uniform(0.1, 0.9) * seconds)
            process.kill()
        unfinished += not cut.exists()
        if cut.exists():
            assert files_of(cut) == files_of(complete)
            shutil.rmtree(cut)
    subprocess.run([*command, str(cut)], check=True, capture_output=True)
    assert files_of(cut) == files_of(complete)
    assert unfinished > 0
    assert not list(tmp_path.glob(".*"))
    assert {path.name for path in data.iterdir()} == {"train.bin", "audit.json", "audit.html", "audit-clusters.bin"}


def test_no_space_for_the_new_dataset(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    ids = np.arange(50_000, dtype=np.uint16)
    np.append(ids, EOT).astype(np.uint16).tofile(data / "train.bin")
    audit(data)
    done = run_with_file_limit(90_000, data, "--dedup", tmp_path / "unique")
    assert (done.returncode, done.stderr.startswith("error[S003]: cannot write ")) == (7, True), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
