"""Files of a run that are damaged, missing or of another run: detected, and an older checkpoint is used."""

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from helpers.files import files_of, flip_bit
from helpers.training import (
    after_step,
    arguments,
    leaf_bytes,
    logged_losses,
    records,
    run_folder,
    saved_state,
    tiny_config,
    write_tokens,
)

from jaxgpt import errors, evaluate, sample, train
from jaxgpt.config import Run
from jaxgpt.errors import CheckpointError, StorageError
from jaxgpt.runs.checkpoint_files import MANIFEST, find_damage
from jaxgpt.runs.folder import FILES, MANIFESTS_FROM, RunFolder
from jaxgpt.training import disk_space
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import TrainState
from jaxgpt.utils.sealed import CHECKSUM, seal

FLIPS = 200
NEWEST, OLDER = 20, 16  # the checkpoints of the finished tiny run


def newest(folder: RunFolder) -> Path:
    return folder.checkpoints / str(NEWEST)


def resolve(folder: RunFolder, name: str = "latest") -> int:
    with Checkpoints(folder.checkpoints) as checkpoints:
        return checkpoints.resolve_step(name)


def assert_older_is_used(folder: RunFolder, what: object) -> None:
    """Reads the newest valid checkpoint, which must be the older one, and puts the other one back."""
    assert resolve(folder) == OLDER, what
    moved = folder.quarantine / str(NEWEST)
    assert find_damage(moved), what
    moved.rename(newest(folder))


def refused(code: str, action: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    assert caught.value.code == code
    return caught.value.message


def write_data_file(folder: RunFolder, **changes: Any) -> None:
    """Changes values of data.json as if the run had written them; None removes one."""
    values = json.loads(folder.data_file.read_text()) | changes
    del values[CHECKSUM]
    folder.data_file.write_text(seal({name: value for name, value in values.items() if value is not None}))


def make_old(folder: RunFolder) -> None:
    """Makes the run one from before manifests, with its losses in Orbax's files."""
    for number in (OLDER, NEWEST):
        (folder.checkpoints / str(number) / MANIFEST).unlink()
        metrics = folder.checkpoints / str(number) / "metrics"
        metrics.mkdir()
        (metrics / "metrics").write_text(json.dumps({"val_loss": number / 10}))
    values = json.loads(folder.data_file.read_text())
    new = (CHECKSUM, FILES, MANIFESTS_FROM, "tokens_xxh3_128")
    folder.data_file.write_text(json.dumps({name: value for name, value in values.items() if name not in new}))


# --- files of a checkpoint --------------------------------------------------------------------------------------------


def test_every_bit_flip_is_detected_and_the_older_is_used(finished: Path) -> None:
    folder = run_folder(finished)
    random_ = random.Random(17)
    files = files_of(newest(folder))
    sizes = [path.stat().st_size for path in files]
    for path in [*files, *random_.choices(files, sizes, k=FLIPS)]:
        bit = random_.randrange(8 * path.stat().st_size)
        flip_bit(path, bit)
        assert_older_is_used(folder, (path, bit))
        flip_bit(path, bit)
    assert resolve(folder) == NEWEST


def remove(path: Path, _: Path) -> None:
    path.unlink()


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path, _: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path, other: Path) -> None:
    """Takes the content of the file of the older step, or of another file where it has none of that name."""
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [remove, empty, halve, zero, swap])
def test_damage_of_each_file_is_detected(finished: Path, damage: Callable[[Path, Path], None]) -> None:
    folder = run_folder(finished)
    for path in files_of(newest(folder)):
        content = path.read_bytes()
        older = folder.checkpoints / str(OLDER) / path.relative_to(newest(folder))
        damage(path, older if older.exists() else newest(folder) / "state/_METADATA")
        if path.exists() and path.read_bytes() == content:
            continue  # both steps have the same file
        assert_older_is_used(folder, path)
        path.write_bytes(content)
    assert resolve(folder) == NEWEST


def test_checkpoint_under_another_step_is_detected(finished: Path) -> None:
    folder = run_folder(finished)
    shutil.rmtree(newest(folder))
    shutil.copytree(folder.checkpoints / str(OLDER), newest(folder))
    assert_older_is_used(folder, "the files of step 16 under 20")


def test_run_resumes_from_the_older_checkpoint(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(finished)
    expected = leaf_bytes(saved_state(tiny_config(finished)))
    losses = logged_losses(folder)
    largest = max(files_of(newest(folder)), key=lambda path: path.stat().st_size)
    flip_bit(largest, 999)
    assert errors.run(train.main, arguments(finished)) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"warning: {newest(folder)} cannot be read: {largest.relative_to(newest(folder))}")
    assert captured.err.endswith(f" has changed; moved to {folder.quarantine / str(NEWEST)}\n")
    assert records(folder, "start")[-1]["step"] == OLDER
    assert leaf_bytes(saved_state(tiny_config(finished))) == expected
    assert logged_losses(folder) == losses


@pytest.mark.parametrize("command", [sample.main, evaluate.main])
def test_named_step_that_is_damaged_is_an_error(
    finished: Path, capsys: pytest.CaptureFixture[str], command: Callable[..., None]
) -> None:
    folder = run_folder(finished)
    (newest(folder) / "state/_METADATA").unlink()
    assert errors.run(command, ["a", "--step", str(NEWEST)]) == 4
    err = capsys.readouterr().err
    assert f"error[K003]: runs/a/checkpoints/{NEWEST} cannot be read: state/_METADATA is missing" in err
    assert errors.run(command, ["a"]) == 0
    assert "moved to runs/a/quarantine/20" in capsys.readouterr().err


def test_best_checkpoint_that_is_damaged_is_not_used(finished: Path) -> None:
    folder = run_folder(finished)
    assert resolve(folder, "best") == NEWEST
    (newest(folder) / MANIFEST).write_text("")
    assert refused("K003", partial(resolve, folder, "best")).startswith("no checkpoint 'best'")


def test_verified_checkpoint_that_cannot_be_loaded_stays(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without memory for the state must not cost the checkpoint."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.StandardCheckpointHandler.restore", fail)
        assert errors.run(train.main, arguments(finished)) == 4
    assert newest(run_folder(finished)).exists()
    assert resolve(run_folder(finished)) == NEWEST


def test_damaged_checkpoint_of_a_run_in_use_stays(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(finished)
    (newest(folder) / MANIFEST).unlink()
    with folder.lock():
        assert resolve(folder) == OLDER
    assert newest(folder).exists()
    assert capsys.readouterr().err.endswith(f"it has no {MANIFEST}; it is skipped\n")


def test_run_without_a_valid_checkpoint_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (OLDER, NEWEST):
        (run_folder(finished).checkpoints / str(number) / MANIFEST).unlink()
    for _ in range(2):
        assert errors.run(train.main, arguments(finished)) == 4
        assert "has no valid checkpoint, but the log has one of step 20" in capsys.readouterr().err


# --- runs from before manifests ---------------------------------------------------------------------------------------


def test_old_checkpoint_loads_with_a_warning(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(finished)
    expected = leaf_bytes(saved_state(tiny_config(finished)))
    make_old(folder)
    assert leaf_bytes(saved_state(tiny_config(finished))) == expected
    assert "was saved before checkpoints had manifests" in capsys.readouterr().err
    with Checkpoints(folder.checkpoints) as checkpoints:
        assert (checkpoints.best(), checkpoints.best_loss()) == (OLDER, OLDER / 10)


@pytest.mark.parametrize("content", ["", "\0" * 31, '{"val_loss"', "[1]", '{"val_loss": "x"}'])
def test_damaged_metrics_file_blocks_nothing(finished: Path, content: str) -> None:
    make_old(run_folder(finished))
    (newest(run_folder(finished)) / "metrics/metrics").write_text(content)
    assert errors.run(sample.main, ["a", "--tokens", "1"]) == 0
    assert errors.run(train.main, arguments(finished)) == 0


def test_old_run_that_is_resumed_keeps_its_old_checkpoints(finished: Path) -> None:
    folder = run_folder(finished)
    make_old(folder)
    shutil.rmtree(newest(folder))
    assert errors.run(train.main, arguments(finished)) == 0
    assert json.loads(folder.data_file.read_text())[MANIFESTS_FROM] == OLDER + 1
    (newest(folder) / MANIFEST).unlink()
    assert_older_is_used(folder, "the new checkpoint lost its manifest, the old one never had one")


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_everything_is_synced_before_the_step_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file, every folder and the manifest are on the disk when the folder is renamed: power may be lost then."""
    synced: set[int] = set()
    late = []
    fsync, rename = os.fsync, Path.rename

    def record(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check(path: Path, target: Path) -> Path:
        late.extend(inside for inside in (path, *path.rglob("*")) if inside.stat().st_ino not in synced)
        assert (path / MANIFEST).exists()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", check)
    state = TrainState(jnp.int32(1), {"w": jnp.zeros((3, 2))}, {})
    with Checkpoints(tmp_path / "checkpoints", Run()) as checkpoints:
        checkpoints.save(1, state, None)
    assert late == []
    assert (tmp_path / "checkpoints").stat().st_ino in synced
    assert find_damage(tmp_path / "checkpoints/1") == ""


def test_full_disk_ends_the_run_before_its_first_step(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(workspace)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    assert errors.run(train.main, arguments(workspace)) == 7
    assert "runs/a/checkpoints has 50.0 kB of free space; a checkpoint needs 3" in capsys.readouterr().err
    assert not run_folder(workspace).log_file.exists()


def test_disk_that_becomes_full_refuses_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = TrainState(jnp.int32(1), {"w": jnp.zeros((300, 200))}, {})
    usage = shutil.disk_usage(tmp_path)
    with Checkpoints(tmp_path / "checkpoints", Run()) as checkpoints:
        checkpoints.save(1, state, None)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
        with pytest.raises(StorageError) as caught:
            checkpoints.save(2, state, None)
    assert caught.value.code == "S019"
    assert resolve(RunFolder(tmp_path)) == 1


def test_space_for_fewer_checkpoints_than_are_kept_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = TrainState(jnp.int32(1), {"w": jnp.zeros((300, 200))}, {})
    for free, lines in ((1_000_000, 0), (900_000, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        disk_space.check_before_run(tmp_path, state, Run(keep_latest=2, keep_best=1))
        assert len(capsys.readouterr().err.splitlines()) == lines


# --- other files of a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "data.json"])
def test_changed_byte_in_a_file_of_the_run_is_detected(finished: Path, name: str) -> None:
    folder = run_folder(finished)
    path = folder.path / name
    random_ = random.Random(3)
    for _ in range(50):
        bit = random_.randrange(8 * path.stat().st_size)
        flip_bit(path, bit)
        with pytest.raises(CheckpointError) as caught:
            folder.check_files()
        assert caught.value.code == "K005", bit
        flip_bit(path, bit)
    folder.check_files()


@pytest.mark.parametrize("command", [[sample.main, "a"], [evaluate.main, "a"]])
def test_config_of_another_model_is_detected(
    finished: Path, capsys: pytest.CaptureFixture[str], command: list[Any]
) -> None:
    """Every file is consistent in itself; only the manifest of the checkpoint knows better."""
    folder = run_folder(finished)
    folder.config_file.write_text(folder.config_file.read_text().replace('"n_head": 2', '"n_head": 1'))
    write_data_file(folder, files=None)
    assert errors.run(command[0], command[1:]) == 4
    message = "'runs/a' is not the run of its checkpoint 20: model.n_head 2 → 1"
    assert f"error[K005]: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "code"), [("config.json", "K005"), ("checkpoints", "K003"), ("tokenizer.json", "K005")]
)
def test_missing_part_of_a_run_is_an_error(
    finished: Path, capsys: pytest.CaptureFixture[str], missing: str, code: str
) -> None:
    path = run_folder(finished).path / missing
    path.rename(finished / "away")
    assert errors.run(train.main, arguments(finished)) == 4
    assert f"error[{code}]" in capsys.readouterr().err
    if missing == "checkpoints":
        path.rmdir()
    (finished / "away").rename(path)
    assert errors.run(train.main, arguments(finished)) == 0


@pytest.mark.parametrize("command", [sample.main, evaluate.main])
def test_run_without_its_config_is_named(
    finished: Path, capsys: pytest.CaptureFixture[str], command: Callable[..., None]
) -> None:
    run_folder(finished).config_file.unlink()
    assert errors.run(command, ["a"]) == 4
    assert "error[K005]: 'runs/a' has log.jsonl and checkpoints, but no config.json" in capsys.readouterr().err


def test_removed_run_folder_ends_the_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    after_step(monkeypatch, 6, lambda: shutil.rmtree(run_folder(workspace).path))
    assert errors.run(train.main, arguments(workspace, {"run.save_every": 20})) == 7
    assert "error[S018]" in capsys.readouterr().err
    assert not run_folder(workspace).path.exists()


def test_other_tokens_without_a_manifest_are_refused(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The replaced token is not among those that identify an unread file."""
    write_tokens(workspace / "data", train=40_000)
    assert errors.run(train.main, arguments(workspace)) == 0
    shard = workspace / "data/train_000000.bin"
    content = bytearray(shard.read_bytes())
    content[20_000] ^= 1
    shard.write_bytes(content)
    assert errors.run(train.main, arguments(workspace)) == 4
    assert "was started on other data: tokens_xxh3_128" in capsys.readouterr().err


def test_fork_with_another_architecture_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = arguments(finished, {"run.name": "b", "run.steps": 30, "model.n_head": 4})
    assert errors.run(train.main, [*other, "--fork", "a"]) == 4
    assert "error[K004]: the model of 'runs/a' has n_head 2; the config has 4" in capsys.readouterr().err
    assert not run_folder(finished, "b").path.exists()


def test_fork_of_a_damaged_checkpoint_uses_the_older(finished: Path) -> None:
    (newest(run_folder(finished)) / MANIFEST).unlink()
    longer = arguments(finished, {"run.name": "b", "run.steps": 30})
    assert errors.run(train.main, [*longer, "--fork", "a"]) == 0
    assert records(run_folder(finished, "b"), "start")[0]["step"] == OLDER


def test_missing_config_file_is_not_replaced_by_a_built_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(train.main, ["--config", "/nonexistent/quickstart.py", "--dry-run"]) == 2
    assert "error[C001]: config '/nonexistent/quickstart.py' not found" in capsys.readouterr().err
