"""Training in another process: its progress is shown, its own output is not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.training import tiny_config

from jaxgpt.runs import training_process
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import RunLog
from jaxgpt.runs.training_process import TrainingProgress, train_in_subprocess

CHILD = "import sys, time; print('next: sample'); print('a warning', file=sys.stderr); time.sleep(1); sys.exit(3)"


def test_own_output_of_the_training_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def start(_: list[str], **options: Any) -> "subprocess.Popen[str]":
        return popen([sys.executable, "-c", CHILD], **options)

    popen = subprocess.Popen
    monkeypatch.setattr(training_process.subprocess, "Popen", start)
    monkeypatch.setattr(training_process, "POLL_SECONDS", 0.1)
    result = train_in_subprocess(tiny_config(tmp_path), tmp_path, echo=True)
    assert result == (3, "a warning")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err == "training a: starting and compiling\n"


def test_progress_follows_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path)
    folder = RunFolder.from_config(config)
    folder.path.mkdir(parents=True)
    monkeypatch.setattr(training_process, "LINE_SECONDS", 0.0)
    progress = TrainingProgress(config)
    with RunLog(folder.log_file) as log:
        for kind, values in (("step", {"loss": 4.2}), ("step", {"loss": float("nan")}), ("eval", {}), ("stop", {})):
            log.write(kind, step=6, **values)
            progress.show()
            progress.show()  # nothing has changed
    assert capsys.readouterr().err.splitlines() == [
        "training a: step 7 of 20, loss 4.2",
        "training a: step 7 of 20, loss nan",
        "training a: evaluated and saved after step 6 of 20",
    ]
