"""A run's folder: one process at a time, one config and one dataset."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers import training

from jaxgpt import errors, train
from jaxgpt.config import Config, Model, Optim
from jaxgpt.errors import CheckpointError, ConfigError, JaxgptError, StorageError
from jaxgpt.runs.folder import RunFolder, changed_fields, find_run
from jaxgpt.utils.files import write_text

IDENTITY = {"tokenizer": "gpt2", "tokenizer_sha256": "ab" * 32, "train_tokens": 1000, "tokens_sha256": "cd" * 32}


def started(path: Path, config: Config) -> RunFolder:
    """A folder in which a run with `config` has begun."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    write_text(folder.data_file, json.dumps(IDENTITY))
    write_text(folder.config_file, json.dumps(config.to_dict()))
    return folder


def refused(kind: type[JaxgptError], code: str, action: Any, *args: Any) -> JaxgptError:
    with pytest.raises(kind) as caught:
        action(*args)
    assert caught.value.code == code
    return caught.value


# --- one process ------------------------------------------------------------------------------------------------------


def test_locked_folder_names_the_process_until_it_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from jaxgpt.runs.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock():\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    root = str(Path(errors.__file__).parents[1])
    line = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        error = refused(StorageError, "S001", RunFolder(tmp_path / "a").lock().__enter__)
        holder.kill()
    assert error.message == f"'{tmp_path / 'a'}' is in use by pid {holder.pid} on host {os.uname().nodename}"
    assert holder.returncode == -signal.SIGKILL
    with RunFolder(tmp_path / "a").lock():
        pass


def test_second_run_of_the_same_name_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []

    def second() -> None:
        with training.start_training(workspace) as run:
            answers.append((run.communicate(timeout=60)[1], run.returncode))

    training.after_step(monkeypatch, 10, second)
    train.train(training.tiny_config(workspace))
    where = f"'{training.run_folder(workspace).path}' is in use by pid {os.getpid()} on host {os.uname().nodename}"
    assert answers == [(f"error[S001]: {where}\n  help: wait for it, or --run.name NEW\n", 7)]
    assert (
        len(training.logged_losses(training.run_folder(workspace)))
        == len(training.records(training.run_folder(workspace)))
        == training.STEPS
    )


# --- one config ------------------------------------------------------------------------------------------------------


def test_changed_field_is_named_with_both_values_and_remedies(tmp_path: Path) -> None:
    folder = started(tmp_path / "a", Config().replace({"model": {"n_layer": 12}}))
    changed = Config().replace({"model": {"n_layer": 24}, "optim": {"beta2": 0.99}})
    error = refused(CheckpointError, "K001", folder.check_config, changed)
    where = f"'{tmp_path / 'a'}' was started with another config: "
    assert error.message == f"{where}model.n_layer 12 → 24, optim.beta2 0.95 → 0.99"
    assert "--run.name NEW" in error.help
    assert f"--fork {tmp_path / 'a'}" in error.help


BINDING = {
    "run.init_from",
    *(f"model.{field.name}" for field in dataclasses.fields(Model) if field.name != "loss_chunk"),
    *(f"optim.{field.name}" for field in dataclasses.fields(Optim)),
    *(f"data.{name}" for name in ("micro_batch", "accum", "order", "seed", "block_cross_document_attention")),
    *(f"run.{name}" for name in ("steps", "seed", "eval_tokens")),
}


def test_only_fields_without_effect_on_the_result_may_change() -> None:
    plain = Config().to_dict()
    for section, values in plain.items():
        for name, value in values.items():
            other = SimpleNamespace(to_dict=lambda s=section, n=name: plain | {s: plain[s] | {n: "other"}})
            expected = [f"{section}.{name} {value} → other"] if f"{section}.{name}" in BINDING else []
            assert changed_fields(Config(), cast(Config, other)) == expected


def test_run_resumes_when_resumable_fields_change(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        training.after_step(patch, 9, training.crash)
        with pytest.raises(training.Crash):
            train.train(training.tiny_config(workspace))
    shutil.move(workspace / "data", workspace / "moved")
    seen = {"run.log_every": 5, "run.save_every": 3, "run.keep_latest": 1, "data.path": str(workspace / "moved")}
    train.train(training.tiny_config(workspace, seen))
    assert len(training.logged_losses(training.run_folder(workspace))) == training.STEPS
    assert training.run_folder(workspace).config().run.log_every == 5


def test_run_of_another_config_is_not_modified(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = started(training.run_folder(workspace).path, training.tiny_config(workspace))
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    assert errors.run(train.main, training.arguments(workspace, {"model.n_layer": 3})) == 4
    assert "error[K001]" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


# --- one dataset -----------------------------------------------------------------------------------------------------


def test_other_tokens_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training.write_tokens(finished / "data", seed=5)
    assert errors.run(train.main, training.arguments(finished)) == 4
    err = capsys.readouterr().err
    assert f"error[K002]: '{training.run_folder(finished).path}' was started on other data: tokens_sha256 " in err
    assert "help: point --data.path at the run's data, or start a new run (--run.name NEW)" in err


def test_difference_between_two_datasets_is_named(tmp_path: Path) -> None:
    folder = started(tmp_path / "a", Config())
    folder.check_tokens(IDENTITY)
    error = refused(CheckpointError, "K002", folder.check_tokens, IDENTITY | {"train_tokens": 2000})
    assert "train_tokens 1000 → 2000" in error.message
    other = IDENTITY | {"tokenizer": "mine", "tokenizer_sha256": "ef" * 32}
    error = refused(CheckpointError, "K002", folder.check_tokenizer, other)
    assert "gpt2 (abababababab) → mine (efefefefefef)" in error.message


# --- paths -----------------------------------------------------------------------------------------------------------


def test_parent_that_is_a_file_is_an_early_error(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "runs").write_text("not a folder")
    assert errors.run(train.main, training.arguments(workspace)) == 7
    err = capsys.readouterr().err
    assert f"error[S002]: '{workspace}/runs/a' cannot be written: '{workspace}/runs' is a file" in err
    assert "help: choose another --run.dir or --run.name" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes wherever it wants")
def test_read_only_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    assert "is read-only" in str(refused(StorageError, "S002", RunFolder(tmp_path / "runs/a").check_writable))


def test_read_only_file_system_is_an_error(tmp_path: Path) -> None:
    """Also for root, for whom the folder's mode would not count."""
    code = (
        "import sys; from pathlib import Path; from jaxgpt import errors; from jaxgpt.runs.folder import RunFolder\n"
        "sys.exit(errors.run(lambda argv: RunFolder(Path(argv[0]) / 'a').check_writable()))"
    )
    mount = 'mount -t tmpfs -o ro none "$1" 2>/dev/null || exit 99; exec "$2" -c "$3" "$1"'
    line = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, code]
    env = os.environ | {"PYTHONPATH": str(Path(errors.__file__).parents[1])}
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    done = subprocess.run(line, capture_output=True, text=True, env=env, check=False)
    if done.returncode in (1, 99):
        pytest.skip("may not mount here")
    assert done.returncode == 7
    assert f"error[S002]: '{tmp_path}/a' cannot be written: '{tmp_path}' is read-only" in done.stderr


def test_run_is_found_by_folder_name_or_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started(tmp_path / "runs/a", Config())
    for name in ("runs/a", "a", str(tmp_path / "runs/a")):
        assert find_run(name)[0].path.resolve() == tmp_path / "runs/a"
    assert find_run("runs/a/checkpoints/500")[1] == "500"
    started(tmp_path / "runs/second", Config())
    error = refused(ConfigError, "C024", find_run, "secnd")
    assert error.message == "no run in 'secnd'"
    assert error.help == "did you mean 'second'? there are: a, second"
    assert refused(ConfigError, "C024", find_run, "zzz").help == "there are: a, second"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model": 7}', '{"data": {"path": []}}'])
def test_damaged_config_is_an_error(tmp_path: Path, text: str) -> None:
    folder = started(tmp_path / "a", Config())
    folder.config_file.write_text(text)
    error = refused(CheckpointError, "K005", folder.config)
    assert str(folder.config_file) in error.message


def test_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "f", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
