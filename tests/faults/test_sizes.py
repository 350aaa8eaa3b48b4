"""Sizes that cannot be are refused with one sentence, before anything is made; a full disk ends with one sentence."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.files import small_disk_at
from helpers.training import arguments, leaf_bytes, run_folder, saved_state, saved_steps, start_training, tiny_config

from jaxgpt import errors, train
from jaxgpt.runs.checkpoint_files import find_damage
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training import checkpoint, jax_setup


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("--model.n-layer=1e20", "C009"),
        ("--model.n-layer=1e9", "C022"),
        ("--model.n-layer=2000 --model.n-embd=8192", "C022"),
        ("--model.n-embd=1e18", "C022"),
        ("--model.n-inner=1e12", "C022"),
        ("--model.block-size=1e6 --data.micro-batch=1e4", "C022"),
        ("--model.vocab-size=1e9 --model.n-embd=1024", "C022"),
        ("--model.architecture=modern --model.n-head=1e18 --model.head-dim=2 --model.n-kv-head=7", "C012"),
        ("--data.micro-batch=1e8", "C022"),
        ("--data.accum=1e15", "C022"),
        ("--run.steps=1e12", "C009"),
        ("--run.steps=1e300", "C009"),
    ],
)
def test_absurd_size_is_refused_before_a_folder_is_made(
    workspace: Path, capsys: pytest.CaptureFixture[str], options: str, code: str
) -> None:
    assert errors.run(train.main, [*arguments(workspace), *options.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error[{code}]: ")
    assert len(err.splitlines()) <= 2
    assert not (workspace / "runs").exists()


def test_memory_of_a_container_is_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = jax_setup.physical_memory_bytes()
    monkeypatch.setattr(jax_setup, "CONTAINER_LIMIT", tmp_path / "memory.max")
    for text, expected in (("max\n", machine), ("1048576\n", 2**20)):
        (tmp_path / "memory.max").write_text(text)
        assert jax_setup.physical_memory_bytes() == expected


@pytest.fixture
def small_disk(workspace: Path) -> Iterator[Path]:
    """The folder of all runs on a disk of its own, with room for one checkpoint."""
    folder = workspace / "runs"
    folder.mkdir()
    with small_disk_at(folder, "512k"):
        yield folder


def test_full_disk_ends_a_run_with_one_sentence(workspace: Path, small_disk: Path) -> None:
    run = start_training(workspace)
    _, err = run.communicate(timeout=300)
    *warnings, sentence, help = err.splitlines()
    assert len(warnings) <= 2, err  # of the space before the run, of a log without space
    assert all(line.startswith("warning: ") for line in warnings), err
    path = run_folder(workspace).checkpoints
    assert run.returncode == 7
    assert sentence.startswith(
        (f"error[S019]: {path} has ", f"error[S005]: a checkpoint could not be written to {path}: ")
    )
    assert help.startswith("  help: ")
    assert saved_steps(run_folder(workspace)) == [4]


@pytest.mark.parametrize("kilobytes", [350, 400, 450, 500, 600, 700, 800, 900, 1000, 1100])
def test_disk_that_fills_at_any_point_costs_no_checkpoint(
    finished: Path, capsys: pytest.CaptureFixture[str], kilobytes: int
) -> None:
    """With a tracker that writes to the same disk; when there is space again, the run ends as if nothing had been."""
    changes = {"run.dir": str(finished / "small"), "run.trackers": ("tensorboard",)}
    (finished / "small").mkdir()
    with small_disk_at(finished / "small", f"{kilobytes}k") as disk:
        assert errors.run(train.main, arguments(finished, changes)) == 7
        assert all(line.startswith(("error[S0", "  help", "warning")) for line in capsys.readouterr().err.splitlines())
        folder = RunFolder(disk / "a")
        assert [find_damage(folder.checkpoints / str(step)) for step in saved_steps(folder)] == [""] * len(
            saved_steps(folder)
        )
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert errors.run(train.main, arguments(finished, changes)) == 0
        assert leaf_bytes(saved_state(tiny_config(finished, changes))) == leaf_bytes(saved_state(tiny_config(finished)))


def test_error_of_the_library_is_cut_to_what_the_system_says(tmp_path: Path) -> None:
    wrapped = ValueError(
        'RESOURCE_EXHAUSTED: Error writing "opt_state.1.mu" in OCDBT database at local file "/runs/a/": Failed to '
        "write 243111 bytes to file 11: No space left on device [os_error_code='28']"
    )
    for error in (wrapped, OSError(28, "No space left on device")):
        message = checkpoint._storage_error(tmp_path, error).message
        assert message == f"a checkpoint could not be written to {tmp_path}: No space left on device"
