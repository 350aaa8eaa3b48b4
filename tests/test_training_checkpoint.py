"""Checkpoints: what is kept, what is refused, and that a save which fails is never lost."""

import inspect
import math
import os
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers.training import (
    STEPS,
    Crash,
    after_step,
    arguments,
    leaf_bytes,
    logged_losses,
    records,
    run_folder,
    saved_steps,
    tiny_config,
)
from orbax.checkpoint import CheckpointManager
from orbax.checkpoint.path import atomicity

from jaxgpt import errors, train
from jaxgpt.config import Run
from jaxgpt.errors import CheckpointError, JaxgptError, NonFiniteError, StorageError
from jaxgpt.training import step
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.sealed_path import sealed_path_class
from jaxgpt.training.step import TrainState

EVERY = {"run.save_every": 1, "run.eval_every": STEPS}


def state(number: int, **leaves: Any) -> TrainState:
    """A small state after `number` updates."""
    params = {"w": jnp.full((3, 2), number, jnp.float32)} | leaves
    return TrainState(jnp.int32(number), params, {"mu": jnp.zeros(4)})


def template(like: TrainState) -> TrainState:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract: TrainState = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
    )
    return abstract


def keeping(folder: Path, **run: Any) -> Checkpoints:
    return Checkpoints(folder, Run(**{"keep_best": 0, "keep_latest": 100} | run))


def refused(kind: type[JaxgptError], code: str, action: Any) -> JaxgptError:
    with pytest.raises(kind) as caught:
        action()
    assert caught.value.code == code
    return caught.value


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_restored_state_is_bitwise_identical(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    noise = state(7, w=jnp.asarray(source.integers(0, 2**31, (50, 40)), jnp.int32), tiny=jnp.float32(1e-42))
    with keeping(tmp_path) as checkpoints:
        checkpoints.save(7, noise, None)
    with Checkpoints(tmp_path) as checkpoints:
        assert leaf_bytes(checkpoints.restore(template(noise), 7)) == leaf_bytes(noise)


def test_policies_work_across_restarts_and_slow_saves(tmp_path: Path) -> None:
    val = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5}
    for first in (1, 4, 7):
        with keeping(tmp_path, keep_latest=2, keep_best=1, keep_every=5) as checkpoints:
            for number in range(first, first + 3):
                checkpoints.save(number, state(number), val.get(number))
                assert checkpoints.steps()[-1] == number  # also while it is still being written
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4, 5, 8, 9]
        assert (checkpoints.latest(), checkpoints.best(), checkpoints.best_loss()) == (9, 4, 3.0)
        assert [checkpoints.resolve_step(which) for which in ("latest", "best", "5")] == [9, 4, 5]


def test_checkpoint_with_a_nonfinite_loss_is_never_the_best(tmp_path: Path) -> None:
    with keeping(tmp_path, keep_latest=1, keep_best=1) as checkpoints:
        for number, loss in enumerate([3.0, math.nan, -math.inf, 4.0]):
            checkpoints.save(number, state(number), loss)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best()) == ([0, 3], 0)


def test_save_is_not_affected_by_donated_buffers(tmp_path: Path) -> None:
    """On a CPU a device array and its host view are the same memory, which the next step takes over."""
    spoil = jax.jit(lambda array: array * 0 - 1, donate_argnums=0)
    big = jnp.arange(4_000_000, dtype=jnp.float32)
    saved = state(1, w=big)
    expected = np.arange(4_000_000, dtype=np.float32).tobytes()
    with keeping(tmp_path) as checkpoints:
        checkpoints.save(1, saved, None)
        spoil(saved.params["w"]).block_until_ready()
    like = template(state(1, w=jnp.zeros(4_000_000)))
    with Checkpoints(tmp_path) as checkpoints:
        assert np.asarray(checkpoints.restore(like, 1).params["w"]).tobytes() == expected


# --- what is refused -------------------------------------------------------------------------------------------------


def test_missing_checkpoint_error_lists_the_existing_ones(tmp_path: Path) -> None:
    with keeping(tmp_path) as checkpoints:
        checkpoints.save(3, state(3), None)
        checkpoints.save(4, state(4), None)
    with Checkpoints(tmp_path) as checkpoints:
        for which in ("best", "7", "newest", "-3"):
            text = str(refused(CheckpointError, "K003", partial(checkpoints.resolve_step, which)))
            assert f"no checkpoint '{which}' in {tmp_path}; there are: 3, 4" in text
    with Checkpoints(tmp_path / "nowhere") as checkpoints:
        assert "there are: none" in str(refused(CheckpointError, "K003", lambda: checkpoints.resolve_step("latest")))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (state(1, w=jnp.zeros((3, 3))), "params.w is float32[3, 2]; the config needs float32[3, 3]"),
        (state(1, w=jnp.zeros((3, 2), jnp.bfloat16)), "params.w is float32[3, 2]; the config needs bfloat16[3, 2]"),
        (state(1, bias=jnp.zeros(3)), "does not have params.bias; the config needs it"),
        (state(1)._replace(opt_state={}), "has opt_state.mu, which the config does not need"),
    ],
)
def test_checkpoint_of_another_model_is_refused(tmp_path: Path, wanted: TrainState, words: str) -> None:
    with keeping(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), None)
    with Checkpoints(tmp_path) as checkpoints:
        error = refused(CheckpointError, "K004", lambda: checkpoints.restore(template(wanted), 1))
    assert f"{tmp_path}/1" in error.message
    assert words in error.message


def damage_nothing(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def damage_metadata(step: Path) -> None:
    (step / "state/_METADATA").write_text("{")


def damage_values(step: Path) -> None:
    for path in (step / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [damage_nothing, damage_metadata, damage_values])
def test_unreadable_checkpoint_is_a_checkpoint_error(tmp_path: Path, damage: Any) -> None:
    with keeping(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), None)
    damage(tmp_path / "1")
    with Checkpoints(tmp_path) as checkpoints:
        error = refused(CheckpointError, "K003", lambda: checkpoints.restore(template(state(1)), 1))
    assert f"{tmp_path}/1 cannot be read: " in error.message
    assert "the newest valid checkpoint is used" in error.help


def test_repeated_failed_reads_do_not_stack_hooks(tmp_path: Path) -> None:
    with keeping(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), None)
    damage_metadata(tmp_path / "1")
    hooks = []
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(3):
            refused(CheckpointError, "K003", lambda: checkpoints.restore(template(state(1)), 1))
            hooks.append(sys.unraisablehook)
    assert hooks[0] is hooks[1] is hooks[2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_state_is_never_saved(tmp_path: Path, value: float) -> None:
    with keeping(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), None)
        for broken in (state(2, w=jnp.array([0.0, value])), state(2)._replace(opt_state={"mu": jnp.full(4, value)})):
            error = refused(NonFiniteError, "N001", lambda state=broken: checkpoints.save(2, state, None))
            assert "is not finite after step 2: it was not saved" in error.message
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]


# --- saves that fail -------------------------------------------------------------------------------------------------


class BadDisk:
    """Makes the commit of one step's checkpoint fail in the background, once `let_go` allows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        from orbax.checkpoint._src.checkpointers import async_checkpointer

        self.let_go = threading.Event()
        original = async_checkpointer._background_wait_for_commit_futures

        def commit(directory: Any, writes: Any, *args: Any, **kwargs: Any) -> None:
            if Path(directory).name.split(".")[0] == str(step):
                for write in writes:  # or they would continue and interfere with those of the next run
                    write.result()
                self.let_go.wait(30)
                raise OSError(28, "No space left on device")
            original(directory, writes, *args, **kwargs)

        monkeypatch.setattr(async_checkpointer, "_background_wait_for_commit_futures", commit)
        self._delay_the_thread_that_deletes(monkeypatch, async_checkpointer._AsyncManager)

    def _delay_the_thread_that_deletes(self, monkeypatch: pytest.MonkeyPatch, manager: Any) -> None:
        """So that any other code that takes the error from it does so first."""
        original = manager.check_for_errors

        def check_for_errors(this: Any) -> None:
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.3)
            original(this)

        monkeypatch.setattr(manager, "check_for_errors", check_for_errors)


def test_failed_save_is_raised_and_keeps_older_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = BadDisk(monkeypatch, 2)

    def run() -> None:
        with keeping(tmp_path, keep_latest=1) as checkpoints:
            checkpoints.save(1, state(1), None)
            checkpoints.save(2, state(2), None)
            checkpoints.raise_failed_save()  # still under way: no error yet, and no waiting
            disk.let_go.set()
            for _ in range(1000):
                checkpoints.raise_failed_save()
                time.sleep(0.01)
            pytest.fail("no error was raised")

    error = refused(StorageError, "S005", run)
    assert (error.exit_status, str(tmp_path) in error.message, "No space left" in error.message) == (7, True, True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]


def test_failed_last_save_is_raised_on_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BadDisk(monkeypatch, 1).let_go.set()

    def run() -> None:
        with keeping(tmp_path) as checkpoints:
            checkpoints.save(1, state(1), None)

    assert "No space left" in str(refused(StorageError, "S005", run))


def test_run_with_a_failed_save_exits_with_7_and_resumes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        BadDisk(patch, 8).let_go.set()
        assert errors.run(train.main, arguments(workspace)) == 7
        err = capsys.readouterr().err
        assert "error[S005]: a checkpoint could not be written to" in err
        assert "No space left on device" in err
        assert "Traceback" not in err
    assert saved_steps(run_folder(workspace)) == [4]
    assert (errors.run(train.main, arguments(workspace)), capsys.readouterr().err) == (0, "")
    assert list(logged_losses(run_folder(workspace))) == list(range(STEPS))


def test_stopped_run_that_cannot_save_reports_the_error(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    BadDisk(monkeypatch, 7).let_go.set()
    after_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert errors.run(train.main, arguments(workspace)) == 7
    assert "error[S005]" in capfd.readouterr().err
    assert saved_steps(run_folder(workspace)) == [4]


def test_run_error_is_not_hidden_by_a_save_error(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = BadDisk(monkeypatch, 8)

    def crash() -> None:
        disk.let_go.set()
        raise Crash

    after_step(monkeypatch, 9, crash)
    with pytest.raises(Crash):
        train.train(tiny_config(workspace))


def test_save_skipped_by_orbax_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointManager, "save", lambda *_, **__: False)
    with keeping(tmp_path) as checkpoints:
        error = refused(StorageError, "S005", lambda: checkpoints.save(1, state(1), None))
    assert "refused the checkpoint of step 1" in error.message


# --- a loss that is not finite ---------------------------------------------------------------------------------------


def test_diverged_run_exits_with_5_and_finite_checkpoints(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = EVERY | {"optim.learning_rate": 10.0, "optim.weight_decay": 1e38, "optim.schedule": "constant"}
    assert errors.run(train.main, arguments(workspace, wild)) == 5
    err = capsys.readouterr().err
    assert "error[N001]" in err
    assert "lower --optim.learning-rate" in err
    assert records(run_folder(workspace), "stop")[0]["reason"] == "N001"
    with Checkpoints(run_folder(workspace).checkpoints) as checkpoints:
        assert len(checkpoints.steps()) < STEPS
        for number in checkpoints.steps():
            restored = checkpoints._manager.restore(number)["state"]
            assert all(np.isfinite(leaf).all() for leaf in restored.values())


def test_nan_parameters_are_detected_at_the_next_step(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = step.compile_train_step

    def poisoned(*args: Any) -> Any:
        function = original(*args)

        def run(state: TrainState, block: jax.Array) -> Any:
            number = int(state.step)
            state, metrics = function(state, block)
            if number == 6:
                state = state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.float32(math.nan), state.params))
            return state, metrics

        return run

    monkeypatch.setattr(step, "compile_train_step", poisoned)
    assert errors.run(train.main, arguments(workspace, {"run.eval_every": STEPS})) == 5
    assert "error[N001]: the loss of step 7 is not finite (loss nan, norm nan)" in capsys.readouterr().err
    assert saved_steps(run_folder(workspace)) == [4]
    last = records(run_folder(workspace))[-1]
    assert (last["step"], last["loss"]) == (7, "nan")


def test_orbax_still_has_what_the_commit_replaces(tmp_path: Path) -> None:
    """If this fails, Orbax has changed how it commits a checkpoint: read `jaxgpt/training/sealed_path.py` again."""
    path = sealed_path_class(lambda *_: None)
    parameters = inspect.signature(path.from_final).parameters
    assert {"final_path", "checkpoint_metadata_store"} <= parameters.keys()
    made = path.from_final(epath.Path(tmp_path / "7"), checkpoint_metadata_store=None)
    assert hasattr(made, "_checkpoint_metadata_store")
    assert inspect.iscoroutinefunction(atomicity.AtomicRenameTemporaryPath.finalize)
    assert not inspect.signature(atomicity.AtomicRenameTemporaryPath.finalize).parameters.keys() - {"self"}
    assert "finalize" in vars(path)
