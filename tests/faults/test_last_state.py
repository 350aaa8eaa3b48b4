"""Errors that end a run keep its last good state, and say which it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.training import after_step, arguments, records, run_folder, saved_steps

from jaxgpt import errors, train
from jaxgpt.errors import DataError
from jaxgpt.training.batches import Batches
from jaxgpt.training.session import TrainingSession
from jaxgpt.training.step import Metrics


def fail_data_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    original = Batches.__iter__

    def iterate(self: Batches) -> Iterator[jax.Array]:
        for number, block in enumerate(original(self)):
            if number == steps and block.shape[0] > 1:  # an evaluation has a single micro-batch
                raise DataError("D017", "train_000000.bin changed on disk during the run", "restore it")
            yield block

    monkeypatch.setattr(Batches, "__iter__", iterate)


@pytest.mark.parametrize("steps", [7, 8])
def test_data_error_saves_the_last_step(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    fail_data_after(monkeypatch, steps)
    assert errors.run(train.main, arguments(workspace)) == 3
    sentence = f"error[D017]: train_000000.bin changed on disk during the run; the run is saved after step {steps}"
    assert sentence in capsys.readouterr().err
    assert saved_steps(run_folder(workspace))[-1] == len(records(run_folder(workspace))) == steps


def test_data_error_before_the_first_step_saves_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_data_after(monkeypatch, 0)
    assert errors.run(train.main, arguments(workspace)) == 3
    assert "during the run; no step was trained" in capsys.readouterr().err
    assert saved_steps(run_folder(workspace)) == []


def break_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    original = TrainingSession.train_step

    def train_step(self: TrainingSession, batch: Any) -> Metrics:
        metrics = original(self, batch)
        return metrics._replace(loss=jnp.float32(jnp.nan)) if self.step == number else metrics

    monkeypatch.setattr(TrainingSession, "train_step", train_step)


@pytest.mark.parametrize(
    ("step", "words", "help"),
    [
        (3, "there is no checkpoint before it", "start again with a lower --optim.learning-rate"),
        (7, "the last checkpoint is that of step 4", "continue from the last checkpoint"),
        (19, "the last checkpoint is that of step 16, the best one that of step 10", "continue from the last"),
    ],
)
def test_loss_that_is_not_finite_names_the_last_checkpoint(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    words: str,
    help: str,
) -> None:
    break_step(monkeypatch, step)
    assert errors.run(train.main, arguments(workspace)) == 5
    err = capsys.readouterr().err
    assert f"error[N001]: the loss of step {step - 1} is not finite" in err
    assert words in err
    assert help in err
    assert saved_steps(run_folder(workspace))[-1:] == ([step // 4 * 4] if step > 4 else [])


def test_checkpoint_from_before_a_divergence_is_kept(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingSession.train_step

    def train_step(self: TrainingSession, batch: Any) -> Metrics:
        metrics = original(self, batch)
        return metrics._replace(loss=metrics.loss + 3) if self.step > 182 else metrics

    monkeypatch.setattr(TrainingSession, "train_step", train_step)
    changes = {"run.steps": 240, "run.save_every": 20, "run.eval_every": 240, "run.keep_best": 0}
    assert errors.run(train.main, arguments(workspace, changes)) == 0
    assert saved_steps(run_folder(workspace)) == [180, 220, 240]


def test_replaced_token_file_is_a_warning(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workspace / "data" / "train_000000.bin"

    def replace() -> None:
        other = file.with_suffix(".tmp")
        other.write_bytes(file.read_bytes()[:-2] + b"\1\0")
        other.replace(file)

    after_step(monkeypatch, 6, replace)
    assert errors.run(train.main, arguments(workspace, {"run.steps": 12})) == 0
    assert capsys.readouterr().err == (
        f"warning: {file} was removed or replaced during the run, which continues to read the file it has opened; "
        "it can be resumed only with the same tokens\n"
    )
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    assert errors.run(train.main, arguments(workspace, {"run.steps": 12})) == 4
    assert "error[K002]" in capsys.readouterr().err
