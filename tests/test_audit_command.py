"""The audit command: its files and output, and what it refuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.audit import EOT, cluster_roots, documents, files_of, refused, run_with_file_limit

from jaxgpt import _loader, errors
from jaxgpt.audit import main
from jaxgpt.audit.command import audit
from jaxgpt.data.dataset import open_folder

# --- the commands ----------------------------------------------------------------------------------------------------


def test_unchanged_data_is_not_audited_again(duplicates_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit(duplicates_folder)
    first, files = capsys.readouterr().out, files_of(duplicates_folder)
    audit(duplicates_folder)
    second = capsys.readouterr().out
    assert second == f"'{duplicates_folder}' is audited already (--again repeats it)\n{first}"
    assert files_of(duplicates_folder) == files
    audit(duplicates_folder, again=True)
    assert "already" not in capsys.readouterr().out
    shard = next(duplicates_folder.glob("train_*.bin"))
    os.utime(shard)  # written to since
    audit(duplicates_folder)
    assert "already" not in capsys.readouterr().out
    (duplicates_folder / "audit.html").unlink()
    audit(duplicates_folder)
    assert (duplicates_folder / "audit.html").exists()


def test_summary_fits_80_columns(
    duplicates_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(duplicates_folder.parent)
    record = audit(duplicates_folder.name)
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    first = next(line for line in lines if line.startswith("  "))
    assert f"are unique ({record['effective_unique_tokens']:,})" in first
    assert "of validation is also in train" in output
    assert "python -m jaxgpt.audit data --dedup data-unique" in output


def test_page_has_figures_and_plots(duplicates_folder: Path) -> None:
    record, page = audit(duplicates_folder), (duplicates_folder / "audit.html").read_text()
    assert page.count("<figure") == 4
    assert f"{record['effective_unique_tokens']:,}" in page
    assert record["duplicates"]["largest"][0]["kept"]["text"][:20] in page


def test_result_is_independent_of_threads(duplicates_folder: Path) -> None:
    def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in record.items() if name != "seconds"}

    one = audit(duplicates_folder, threads=1)
    clusters = (duplicates_folder / "audit-clusters.bin").read_bytes()
    assert without_seconds(audit(duplicates_folder, threads=5, again=True)) == without_seconds(one)
    assert (duplicates_folder / "audit-clusters.bin").read_bytes() == clusters


def test_out_option_moves_all_files(duplicates_folder: Path, tmp_path: Path) -> None:
    audit(duplicates_folder, out=tmp_path / "other.json")
    assert not list(duplicates_folder.glob("audit*"))
    assert {path.name for path in tmp_path.glob("other*")} == {"other.json", "other.html", "other-clusters.bin"}


def test_clusters_map_near_duplicates_to_one_key(duplicates_folder: Path) -> None:
    record, data = audit(duplicates_folder), open_folder(duplicates_folder)
    path = duplicates_folder / record["clusters"]["file"]
    clusters = _loader.ClusterMap(path)
    everything = [*documents(data.train), *documents(data.val)]
    root = cluster_roots(everything)
    keys = [_loader.document_key(np.array(document, np.uint16).tobytes(), "uint16") for document in everything]
    for cluster in set(root):
        members = {keys[n] for n, one in enumerate(root) if one == cluster}
        representatives = {clusters.representative(key) for key in members}
        assert (
            representatives == {None}
            if len(members) == 1
            else (len(representatives) == 1 and representatives <= members)
        )
    assert len(clusters) > 10


# --- what is refused -------------------------------------------------------------------------------------------------


def test_bad_options_and_paths_are_refused(duplicates_folder: Path, tmp_path: Path) -> None:
    assert "50256" in refused("C031", duplicates_folder, "--eot", 60_000).help
    refused("C032", duplicates_folder, "--threads", -1)
    refused("C032", duplicates_folder, "--out", tmp_path / "x.txt")
    refused("C032", duplicates_folder, "--out", tmp_path / "none" / "x.json")
    refused("C032", duplicates_folder, "--tmp", tmp_path / "none")
    refused("C032", duplicates_folder, "--dedup", duplicates_folder)
    refused("C006", duplicates_folder, "--eot", "x")
    refused("D002", tmp_path / "none")
    assert not list(duplicates_folder.glob("audit*"))


def test_unwritable_folder_is_refused(duplicates_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    error = refused("S016", duplicates_folder)
    assert "Read-only" in error.message
    assert "--out" in error.help


@pytest.mark.parametrize("name", ["audit.json", "audit.html", "audit-clusters.bin"])
def test_other_files_are_not_overwritten(duplicates_folder: Path, name: str) -> None:
    (duplicates_folder / name).write_text("my notes")
    refused("S016", duplicates_folder)
    assert (duplicates_folder / name).read_text() == "my notes"


def test_unreadable_record_is_replaced(duplicates_folder: Path) -> None:
    record = audit(duplicates_folder)
    (duplicates_folder / "audit.json").write_text((duplicates_folder / "audit.json").read_text()[:200])
    assert audit(duplicates_folder)["effective_unique_tokens"] == record["effective_unique_tokens"]


def test_damaged_shards_are_refused(duplicates_folder: Path) -> None:
    shard = next(duplicates_folder.glob("train_*.bin"))
    good = shard.read_bytes()
    shard.write_bytes(good[:-2] + b"\1\0")
    refused("D011", duplicates_folder)
    shard.write_bytes(good[:-2])
    refused("D007", duplicates_folder)
    shard.unlink()
    refused("D016", duplicates_folder)
    assert not list(duplicates_folder.glob("audit*"))


def test_full_disk_leaves_no_record(duplicates_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "audit.json")

    monkeypatch.setattr("jaxgpt.utils.files.write_text", full)
    assert errors.run(main, [str(duplicates_folder)]) == 7
    assert not (duplicates_folder / "audit.json").exists()


def test_ctrl_c_leaves_no_files(tmp_path: Path) -> None:
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
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["train.bin"]


def test_no_space_for_the_temporary_file(tmp_path: Path) -> None:
    np.tile(np.array([1, 2, EOT], np.uint16), 5_000).tofile(tmp_path / "train.bin")
    done = run_with_file_limit(1_000_000, tmp_path)
    assert done.returncode == 7
    assert f"error[S015]: the audit's temporary file, 1,640,000 bytes in {tmp_path}: File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.bin"]


def test_no_space_for_the_page(tmp_path: Path) -> None:
    np.tile(np.array([1, 2, EOT], np.uint16), 50).tofile(tmp_path / "train.bin")
    done = run_with_file_limit(20_000, tmp_path)
    assert (done.returncode, done.stderr.startswith("error[S009]: File too large")) == (7, True), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"train.bin", "audit-clusters.bin"}
    audit(tmp_path)
    assert (tmp_path / "audit.json").exists()
