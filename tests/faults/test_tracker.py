"""A tracker that fails or hangs costs one warning, and never stops or slows a run."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.files import small_disk_at
from helpers.training import STEPS, arguments, records, run_folder

from jaxgpt import errors, train
from jaxgpt.training import tracker
from jaxgpt.training.tracker import Tracker
from jaxgpt.training.tracker_backends import BACKENDS

pytest.importorskip("tensorboardX")


def use(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """Replaces TensorBoard's backend."""
    monkeypatch.setitem(BACKENDS, "tensorboard", BACKENDS["tensorboard"]._replace(open=backend))


class DyingFile:
    """A library that fails at its second entry, with an error that is not the disk's."""

    def __init__(self, _: Any) -> None:
        self.entries = 0

    def write(self, _: Any) -> None:
        self.entries += 1
        if self.entries == 2:
            raise RuntimeError("out of luck")

    def flush(self) -> None: ...
    def close(self) -> None: ...


class StuckFile(DyingFile):
    """A disk that never answers."""

    def write(self, _: Any) -> None:
        threading.Event().wait()


def warnings_of_run(workspace: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The warnings of a complete run with TensorBoard."""
    assert errors.run(train.main, arguments(workspace, {"run.trackers": ("tensorboard",)})) == 0
    assert len(records(run_folder(workspace))) == STEPS
    return capsys.readouterr().err.splitlines()


def warning(reason: str) -> list[str]:
    return [f"warning: nothing more goes to TensorBoard: {reason}"]


def test_dead_writer_costs_one_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tracker, "MAX_WAITING", 5)  # nobody empties the queue after the error
    with Tracker("TensorBoard", partial(DyingFile, None)) as dying:
        for step in range(100):
            dying.write(step, {"loss": 1.0})
    assert capsys.readouterr().err.splitlines() in (warning("out of luck"), warning("it does not answer"))


@pytest.mark.parametrize("size", [5, 10_000])
def test_stuck_writer_costs_one_warning(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    use(monkeypatch, StuckFile)
    monkeypatch.setattr(tracker, "MAX_WAITING", size)  # full during the run, or stuck only at its end
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 0.1)
    assert warnings_of_run(workspace, capsys) == warning("it does not answer")


def test_writes_to_a_stuck_writer_return_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 0.1)
    with Tracker("TensorBoard", partial(StuckFile, None)) as stuck:
        start = time.thread_time()
        for step in range(2 * tracker.MAX_WAITING):
            stuck.write(step, {"loss": 1.0})
        assert time.thread_time() - start < 2
        assert stuck._entries.full()


@pytest.fixture
def full_disk(workspace: Path) -> Iterator[Path]:
    """The run's TensorBoard folder on a disk of its own, without a free byte."""
    folder = run_folder(workspace).tensorboard
    folder.mkdir(parents=True)
    with small_disk_at(folder, "4k"):
        (folder / "full").write_bytes(bytes(4096))
        yield folder


@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_full_disk_costs_one_warning(
    full_disk: Path,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
) -> None:
    monkeypatch.setattr(tracker, "FLUSH_SECONDS", seconds)  # noticed during the run, or only at its end
    assert warnings_of_run(workspace, capsys) == warning("No space left on device")
