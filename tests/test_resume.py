"""A run that crashed and was resumed is bitwise identical to an uninterrupted one; tests/faults kills runs."""

from pathlib import Path

import pytest
from helpers.training import (
    Crash,
    after_step,
    arguments,
    crash,
    leaf_bytes,
    logged_losses,
    records,
    run_folder,
    saved_state,
    tiny_config,
)

from jaxgpt import errors, train
from jaxgpt.runs.folder import CheckpointRef, RunFolder

STEPS = 40
EPOCHS = {"run.steps": STEPS, "run.save_every": 3, "run.eval_every": STEPS}  # five epochs of 62 windows
NOISY = EPOCHS | {"model.dropout": 0.2}


def test_run_crashed_four_times_is_bitwise_identical(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (5, 11, 17, 32):  # two in the first two epochs, one just after a boundary
        with monkeypatch.context() as patch:
            after_step(patch, number, crash)
            with pytest.raises(Crash):
                train.train(tiny_config(workspace, NOISY))
    train.train(tiny_config(workspace, NOISY))
    assert [record["step"] for record in records(run_folder(workspace), "start")] == [0, 3, 9, 15, 30]
    assert logged_losses(run_folder(workspace)).keys() == set(range(STEPS))
    alone = tiny_config(workspace, NOISY | {"run.name": "alone"})
    train.train(alone)
    assert logged_losses(run_folder(workspace)) == logged_losses(run_folder(workspace, "alone"))
    assert leaf_bytes(saved_state(tiny_config(workspace, NOISY))) == leaf_bytes(saved_state(alone))


def test_crashed_run_with_muon_is_bitwise_identical(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    muon = {"optim.optimizer": "muon"}
    with monkeypatch.context() as patch:
        after_step(patch, 9, crash)
        with pytest.raises(Crash):
            train.train(tiny_config(workspace, muon))
    train.train(tiny_config(workspace, muon))
    assert [record["step"] for record in records(run_folder(workspace), "start")] == [0, 8]
    alone = tiny_config(workspace, muon | {"run.name": "alone"})
    train.train(alone)
    assert logged_losses(run_folder(workspace)) == logged_losses(run_folder(workspace, "alone"))
    assert leaf_bytes(saved_state(tiny_config(workspace, muon))) == leaf_bytes(saved_state(alone))


def test_evaluations_do_not_change_the_run(workspace: Path) -> None:
    train.train(tiny_config(workspace, EPOCHS))
    often = tiny_config(workspace, EPOCHS | {"run.name": "b", "run.eval_every": 1, "run.save_every": 7})
    train.train(often)
    assert logged_losses(run_folder(workspace, "b")) == logged_losses(run_folder(workspace))
    assert leaf_bytes(saved_state(often)) == leaf_bytes(saved_state(tiny_config(workspace, EPOCHS)))


def test_runs_differ_by_their_seeds_only(workspace: Path) -> None:
    short = {"run.steps": 3, "run.eval_every": 3}
    losses = []
    for name, seeds in {"a": {}, "b": {"run.seed": 1}, "c": {"data.seed": 1}, "again": {}}.items():
        train.train(tiny_config(workspace, short | {"run.name": name} | seeds))
        losses.append(logged_losses(run_folder(workspace, name)))
    assert losses[0] == losses[3]
    assert losses[0] != losses[1] != losses[2] != losses[0]


def test_fork_starts_from_the_newest_checkpoint(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = {"run.name": "longer", "run.steps": 30}
    assert errors.run(train.main, [*arguments(finished, longer), "--fork", str(run_folder(finished).path)]) == 0
    assert list(logged_losses(run_folder(finished, "longer"))) == list(range(20, 30))
    assert records(run_folder(finished, "longer"), "start")[0]["fork"] == str(run_folder(finished).path)


def test_interrupted_fork_resumes_from_its_own_checkpoint(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = tiny_config(finished, {"run.name": "longer", "run.steps": 30})
    with monkeypatch.context() as patch:
        after_step(patch, 26, crash)
        with pytest.raises(Crash):
            train.train(longer, CheckpointRef(run_folder(finished)))
    train.train(longer, CheckpointRef(run_folder(finished)))
    starts = [record["step"] for record in records(run_folder(finished, "longer"), "start")]
    assert starts == [20, 24]
    assert len(logged_losses(run_folder(finished, "longer"))) == 10


def test_fork_without_steps_left_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = [*arguments(finished, {"run.name": "b"}), "--fork", str(run_folder(finished).path)]
    assert errors.run(train.main, again) == 2
    assert "error[C030]: run.steps = 20; the run to fork has 20 steps already" in capsys.readouterr().err
    assert not run_folder(finished, "b").path.exists()


def test_fork_with_another_tokenizer_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = finished / "data/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"?"', '"other"'))
    assert errors.run(train.main, [*arguments(finished, {"run.name": "b"}), "--fork", "runs/a"]) == 4
    assert "error[K002]: 'runs/a' was started with another tokenizer" in capsys.readouterr().err
    assert not (RunFolder(finished / "runs/b")).path.exists()
