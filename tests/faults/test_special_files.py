"""Pipes, devices, links to themselves and endless nesting where a file is expected: one sentence, and no waiting."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.training import arguments, run_folder

from jaxgpt import checkpoint, diagnose, errors, evaluate, sample, train

pytestmark = pytest.mark.timeout(100)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def nested(path: Path) -> None:
    path.write_text('{"a":' * 100_000)


KINDS = [pipe, endless, loop, nested]


def exit_statuses(folder: Path) -> list[int]:
    """Of the commands that read a run."""
    return [
        errors.run(sample.main, ["a", "--tokens", "1"]),
        errors.run(evaluate.main, ["a"]),
        errors.run(diagnose.main, ["runs/a"]),
        errors.run(checkpoint.main, ["list", "a"]),
        errors.run(train.main, arguments(folder)),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", "data.json", "tokenizer.json"])
def test_file_of_a_run_is_a_sentence(
    finished: Path, capsys: pytest.CaptureFixture[str], name: str, kind: Callable[[Path], None]
) -> None:
    path = run_folder(finished).path / name
    path.unlink()
    kind(path)
    assert set(exit_statuses(finished)) <= {0, 2, 3, 4}
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("error[") for line in lines)
    assert all(line.startswith(("error[", "  help: ", "warning: ")) for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_log_of_a_run_blocks_nothing(finished: Path, kind: Callable[[Path], None]) -> None:
    folder = run_folder(finished)
    folder.log_file.unlink()
    kind(folder.log_file)
    (folder.path / "plan.json").unlink()
    kind(folder.path / "plan.json")
    assert set(exit_statuses(finished)) <= {0, 3, 7}
    shutil.rmtree(folder.checkpoints / "20")
    assert errors.run(train.main, arguments(finished)) in (0, 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest.json", "state/_METADATA"])
def test_file_of_a_checkpoint_costs_that_checkpoint(finished: Path, name: str, kind: Callable[[Path], None]) -> None:
    folder = run_folder(finished)
    path = folder.checkpoints / "20" / name
    path.unlink()
    kind(path)
    assert errors.run(checkpoint.main, ["verify", "a"]) == 4
    assert errors.run(sample.main, ["a", "--tokens", "1"]) == 0
    assert [step.name for step in folder.quarantine.iterdir()] == ["20"]
