"""Output that cannot be written never stops a run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.training import STEPS, arguments, records, run_folder

import jaxgpt
from jaxgpt import errors, train

WARNING = "warning: nothing is printed from here on: {}\n"


def test_closed_stdout_does_not_stop_a_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert errors.run(train.main, arguments(workspace)) == 0
    assert capfd.readouterr().err == ""
    assert len(records(run_folder(workspace))) == STEPS


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_output_on_a_full_disk_does_not_stop_a_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, name, full)
        assert errors.run(train.main, arguments(workspace)) == 0
    assert capfd.readouterr().err == (WARNING.format("No space left on device") if name == "stdout" else "")
    assert len(records(run_folder(workspace))) == STEPS


def test_run_whose_reader_is_gone_trains_to_its_end(workspace: Path) -> None:
    """`train … | true`, in which nobody has read a single line."""
    read, write = os.pipe()
    os.close(read)
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    command: list[Any] = [sys.executable, "-m", "jaxgpt.train", *arguments(workspace)]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=env, text=True, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (0, WARNING.format("Broken pipe"))
    assert len(records(run_folder(workspace))) == STEPS
