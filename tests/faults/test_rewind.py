"""`run.on_nonfinite = rewind`: back to the newest checkpoint, without the batch that failed, in every later process."""

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.nonfinite import first_tokens_of_step, poison
from helpers.training import (
    Crash,
    after_step,
    arguments,
    crash,
    leaf_bytes,
    records,
    run_folder,
    saved_state,
    saved_steps,
    tiny_config,
    write_tokens,
)

from jaxgpt import errors, train
from jaxgpt.data import dataset
from jaxgpt.runs.checkpoint_files import Manifest
from jaxgpt.runs.folder import CheckpointRef
from jaxgpt.runs.rewinds import MAX_REWINDS, Rewinds
from jaxgpt.training.batches import train_batches
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.mesh import make_mesh

# With checkpoints at 4, 8 and 12.
REWIND = {
    "model.n_layer": 1,
    "run.on_nonfinite": "rewind",
    "run.steps": 12,
    "run.eval_every": 12,
    "run.keep_latest": 3,
}
BAD = 6  # the step whose batch has the bad window


@pytest.fixture
def poisoned(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with an epoch of 31 batches, in which the loss of one window is NaN."""
    write_tokens(workspace / "data", train=4000)
    poison(monkeypatch, first_tokens_of_step(workspace, BAD))
    return workspace


class Result(NamedTuple):
    """What a run has come to."""

    losses: dict[int, Any]
    state: dict[str, bytes]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, xla_cache: Path) -> Result:
    """The result of a run that rewinds and that nothing else interrupts."""
    workspace = tmp_path_factory.mktemp("undisturbed")
    write_tokens(workspace / "data", train=4000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxgpt.diagnose.live.write_run_report", lambda _: None)
        poison(patch, first_tokens_of_step(workspace, BAD))
        train.train(tiny_config(workspace, REWIND))
    return Result(finite_losses(workspace, "a"), final_state(workspace))


def final_state(workspace: Path, name: str = "a") -> dict[str, bytes]:
    return leaf_bytes(saved_state(tiny_config(workspace, REWIND | {"run.name": name})))


def manifest(workspace: Path, step: int, name: str = "a") -> Manifest:
    return Manifest.read(run_folder(workspace, name).checkpoints / str(step))


def finite_losses(workspace: Path, name: str) -> dict[int, Any]:
    return {
        record["step"]: record["loss"] for record in records(run_folder(workspace, name)) if record["loss"] != "nan"
    }


def test_run_continues_without_the_bad_batch(poisoned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(train.main, arguments(poisoned, REWIND)) == 0
    assert capsys.readouterr().err == (
        "warning: the loss of step 6 is not finite (loss nan, norm nan): the run continues from step 4; "
        "windows 48 to 55 of the data order are left out\n"
    )
    (rewind,) = records(run_folder(poisoned), "rewind")
    assert (rewind["step"], rewind["failed_step"], rewind["batches"], rewind["windows"]) == (4, BAD, [BAD], 8)
    assert [record["step"] for record in records(run_folder(poisoned))] == [*range(7), *range(4, 12)]
    assert (manifest(poisoned, 12).skipped_batches, manifest(poisoned, 12).loader_step) == ([BAD], 13)
    assert manifest(poisoned, 4).skipped_batches == []


def test_rewound_run_is_bitwise_identical_to_one_that_never_had_the_batch(
    poisoned: Path, undisturbed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rewinds, "read", lambda *_: Rewinds([BAD]))
    train.train(tiny_config(poisoned, REWIND))
    assert not records(run_folder(poisoned), "rewind")
    assert final_state(poisoned) == undisturbed.state


@pytest.mark.parametrize("number", [5, 8, 10])
def test_run_killed_after_a_rewind_is_bitwise_identical(
    poisoned: Path, undisturbed: Result, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    config = tiny_config(poisoned, REWIND)
    with monkeypatch.context() as patch:
        after_step(patch, number, lambda: records(run_folder(poisoned), "rewind") and crash())
        with pytest.raises(Crash):
            train.train(config)
    monkeypatch.undo()  # the loss is finite everywhere: only the record of the rewind leaves the batch out
    monkeypatch.chdir(poisoned)
    train.train(config)
    assert finite_losses(poisoned, "a") == undisturbed.losses
    assert final_state(poisoned) == undisturbed.state


def test_signal_while_a_rewind_restores_saves_the_restored_state(
    poisoned: Path, undisturbed: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Checkpoints.restore_newest

    def restore_newest(*args: Any) -> Any:
        if run_folder(poisoned).log_file.exists():  # not at the start of the run
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "restore_newest", restore_newest)
        assert errors.run(train.main, arguments(poisoned, REWIND)) == 75
    assert "saved; the same command resumes there" in capsys.readouterr().err
    assert len(records(run_folder(poisoned), "rewind")) == 1
    assert saved_steps(run_folder(poisoned)) == [4, 5]
    assert errors.run(train.main, arguments(poisoned, REWIND)) == 0
    assert finite_losses(poisoned, "a") == undisturbed.losses
    assert final_state(poisoned) == undisturbed.state


def test_fork_leaves_out_the_same_batches_where_it_reads_the_same(poisoned: Path) -> None:
    train.train(tiny_config(poisoned, REWIND))
    source = CheckpointRef(run_folder(poisoned), "4")
    train.train(tiny_config(poisoned, REWIND | {"run.name": "fork", "run.on_nonfinite": "abort"}), source)
    assert finite_losses(poisoned, "fork").items() <= finite_losses(poisoned, "a").items()
    train.train(tiny_config(poisoned, REWIND | {"run.name": "other", "data.seed": 1}), CheckpointRef(source.run, "8"))
    assert manifest(poisoned, 12, "other").skipped_batches == []


def test_rewinds_are_bounded(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch)
    assert errors.run(train.main, arguments(workspace, REWIND)) == 5
    assert f"after {MAX_REWINDS} rewinds to step 0; there is no checkpoint before it" in capsys.readouterr().err
    batches = [rewind["batches"] for rewind in records(run_folder(workspace), "rewind")]
    assert batches == [[0], [1], [2]]


def test_second_rewind_to_a_checkpoint_leaves_out_all_batches_after_it() -> None:
    rewinds = Rewinds()
    assert rewinds.add(failed=6, restored=4) == [6]
    assert rewinds.add(failed=8, restored=4) == [4, 5, 7, 8, 9]
    assert [rewinds.batch(step) for step in range(7)] == [0, 1, 2, 3, 10, 11, 12]


def test_steps_read_the_batches_that_are_left(workspace: Path) -> None:
    config = tiny_config(workspace, REWIND)
    data = dataset.open_folder(config.data.path)
    mesh = make_mesh(config.mesh, config.data.micro_batch)

    def blocks(start: int, rewinds: Rewinds | None = None) -> list[bytes]:
        with train_batches(config, data.train, mesh, start, data.vocab_size, rewinds) as batches:
            return [np.asarray(block).tobytes() for block in batches]

    every = blocks(0)
    assert blocks(0, Rewinds([2, 5]))[:10] == every[:2] + every[3:5] + every[6:]
    assert blocks(3, Rewinds([2, 5]))[:7] == every[4:5] + every[6:]
    assert len(blocks(3, Rewinds([2, 5]))) == config.run.steps - 3
