"""The run: what its loop reads, what is on the disk after each way out of it, and what is answered before it starts."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers.training import (
    STEPS,
    Crash,
    after_step,
    arguments,
    crash,
    logged_losses,
    records,
    run_folder,
    saved_steps,
    start_training,
    tiny_config,
    write_tokens,
)
from jax._src.array import ArrayImpl

from jaxgpt import errors, train
from jaxgpt.config import Run
from jaxgpt.training import recorder, session, step
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.evaluator import Evaluator
from jaxgpt.training.records import Score, Scores
from jaxgpt.training.step import TrainState

# --- what the loop reads ---------------------------------------------------------------------------------------------


class ReadCounter:
    """Counts what reads device arrays: `reads` has (steps dispatched, step whose metrics were read or None)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dispatched = 0
        self._functions: list[Any] = []
        self.reads: list[tuple[int, int | None]] = []
        self._owner: dict[int, int] = {}
        self._alive: list[Any] = []
        monkeypatch.setattr(step, "compile_train_step", self._watching(step.compile_train_step))
        value = ArrayImpl._value
        monkeypatch.setattr(ArrayImpl, "_value", property(lambda array: self._read(array, value.fget(array))))
        for name in ("__array__", "block_until_ready", "copy_to_host_async", "__float__", "item", "tolist"):
            self._patch(monkeypatch, name)

    def _patch(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        original = getattr(ArrayImpl, name)

        def method(array: Any, *args: Any, **kwargs: Any) -> Any:
            self._read(array, None)
            return original(array, *args, **kwargs)

        monkeypatch.setattr(ArrayImpl, name, method)

    def _read(self, array: Any, result: Any) -> Any:
        self.reads.append((self.dispatched, self._owner.get(id(array))))
        return result

    def _watching(self, compile_train_step: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(*args: Any) -> Any:
            function = compile_train_step(*args)
            self._functions.append(function)

            def run(state: TrainState, block: jax.Array) -> tuple[TrainState, step.Metrics]:
                state, metrics = function(state, block)
                self._owner |= {id(leaf): self.dispatched for leaf in metrics}
                self._alive.append(metrics)  # so that no other array gets its id
                self.dispatched += 1
                return state, metrics

            return run

        return compiled

    @property
    def compiled(self) -> int:
        return sum(function._cache_size() for function in self._functions)

    def per_step(self) -> dict[int, set[int | None]]:
        """By the number of dispatched steps: whose metrics were read then."""
        owners: dict[int, set[int | None]] = {number: set() for number in range(1, self.dispatched + 1)}
        for dispatched, owner in self.reads:
            if dispatched:
                owners[dispatched].add(owner)
        return owners


QUIET = {"run.eval_every": STEPS, "run.save_every": STEPS}


def test_loop_reads_only_the_metrics_of_the_previous_step(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = ReadCounter(monkeypatch)
    train.train(tiny_config(workspace, QUIET))
    owners = counter.per_step()
    assert owners.pop(1) == set()
    assert owners.pop(STEPS) > {STEPS - 2, STEPS - 1}  # then it evaluates and saves
    assert owners == {dispatched: {dispatched - 2} for dispatched in range(2, STEPS)}


def test_metrics_of_a_step_are_fetched_in_one_call(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fetch = recorder.fetch
    monkeypatch.setattr(recorder, "fetch", lambda values: calls.append(1) or fetch(values))
    train.train(tiny_config(workspace, QUIET))
    assert len(calls) == STEPS


def test_read_counter_detects_a_loop_that_waits_for_its_step(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = recorder.Recorder.step

    def impatient(self: recorder.Recorder, number: int, values: step.Metrics) -> None:
        float(values.loss)
        original(self, number, values)

    monkeypatch.setattr(recorder.Recorder, "step", impatient)
    counter = ReadCounter(monkeypatch)
    train.train(tiny_config(workspace, QUIET))
    assert counter.per_step()[5] == {3, 4}


def test_run_compiles_its_step_once(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = ReadCounter(monkeypatch)
    after_step(monkeypatch, 10, crash)
    with pytest.raises(Crash):
        train.train(tiny_config(workspace))
    assert counter.compiled == 1
    monkeypatch.undo()
    resumed = ReadCounter(monkeypatch)
    train.train(tiny_config(workspace))
    assert (resumed.dispatched, resumed.compiled) == (STEPS - 8, 1)


# --- the ways out ----------------------------------------------------------------------------------------------------


def test_last_step_is_saved_and_evaluated(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train.train(tiny_config(workspace))
    assert saved_steps(folder)[-1] == STEPS
    assert [record["step"] for record in records(folder, "eval")] == [0, 10, 20]
    assert records(folder, "stop")[0]["reason"] == "done"
    assert f"done: {STEPS} steps" in capsys.readouterr().out


def test_exception_in_the_loop_keeps_every_save(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(workspace, {"run.save_every": 1, "run.keep_latest": 3})
    after_step(monkeypatch, 9, crash)
    with pytest.raises(Crash):
        train.train(config)
    assert saved_steps(run_folder(workspace))[-3:] == [6, 7, 8]
    assert not list(run_folder(workspace).checkpoints.glob("*tmp*"))
    assert records(run_folder(workspace), "stop")[0]["reason"] == "Crash"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signal_saves_the_current_step_and_stops(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    after_step(monkeypatch, 7, lambda: os.kill(os.getpid(), number))
    assert errors.run(train.main, arguments(workspace)) == status
    assert saved_steps(run_folder(workspace))[-1] == 7
    assert len(logged_losses(run_folder(workspace))) == 7
    assert "stopped after step 7, saved; the same command resumes there" in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    assert errors.run(train.main, arguments(workspace)) == 0
    assert len(logged_losses(run_folder(workspace))) == len(records(run_folder(workspace))) == STEPS


def test_second_signal_stops_at_once_and_keeps_earlier_saves(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    after_step(monkeypatch, 9, twice)
    assert errors.run(train.main, arguments(workspace)) == 130
    assert saved_steps(run_folder(workspace))[-1] == 8
    assert not list(run_folder(workspace).checkpoints.glob("*tmp*"))


def test_signal_while_finishing_keeps_the_last_checkpoint(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = train.finish

    def finish(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(*args)

    monkeypatch.setattr(train, "finish", finish)
    assert errors.run(train.main, arguments(workspace)) == 0
    assert saved_steps(run_folder(workspace))[-1] == STEPS


def test_signal_before_the_first_step_stops_at_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert errors.run(train.main, arguments(workspace)) == 130
    assert capsys.readouterr().err == "stopped before the first step; nothing is lost\n"
    assert (logged_losses(run_folder(workspace)), saved_steps(run_folder(workspace))) == ({}, [])


# --- a normal run as its reader sees it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory, xla_cache: Path) -> tuple[Path, str, str]:
    """A complete run as a process: its workspace, its output and its errors."""
    workspace = tmp_path_factory.mktemp("piped")
    write_tokens(workspace / "data")
    run = start_training(workspace)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0
    return workspace, out, err


def test_run_without_problems_prints_nothing_on_stderr(piped: tuple[Path, str, str]) -> None:
    assert piped[2] == ""


def test_repeating_a_finished_run_changes_nothing(
    piped: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = piped[0]
    before = {path: path.read_bytes() for path in (workspace / "runs").rglob("*") if path.is_file()}
    assert errors.run(train.main, arguments(workspace)) == 0
    assert f"is done: it has all its {STEPS} steps" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in (workspace / "runs").rglob("*") if path.is_file()}
    lock = run_folder(workspace).path / ".lock"
    assert before.keys() == after.keys()
    assert {path for path in before if before[path] != after[path]} <= {lock}


def test_policy_keeps_the_latest_best_and_every_nth_checkpoint(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = iter([9.0, 5.0, 3.0, 4.0, 3.5, 6.0])

    class ScriptedEvaluator:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, params: Any) -> Scores:
            score = Score(next(val), 0.1, 16, None)
            return Scores(score, score)

    monkeypatch.setattr(session, "Evaluator", ScriptedEvaluator)
    policy = {"run.eval_every": 4, "run.save_every": 2, "run.keep_latest": 2, "run.keep_best": 1, "run.keep_every": 6}
    folder = train.train(tiny_config(workspace, policy))
    assert saved_steps(folder) == [6, 8, 12, 18, 20]
    with Checkpoints(folder.checkpoints) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best(), checkpoints.best_loss()) == (20, 8, 3.0)
    assert Run().keep_best == 1
