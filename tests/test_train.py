"""The run: what its loop reads, what is on the disk after each way out of it, and what is answered before it starts."""

import os
import shlex
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
from jaxgpt.config.command_line import parse_config
from jaxgpt.diagnose.live import LiveDiagnosis, RunOutlook
from jaxgpt.errors import ConfigError
from jaxgpt.generation import sampler
from jaxgpt.runs.folder import CheckpointRef
from jaxgpt.runs.log import EARLY_STOP, StopReason
from jaxgpt.training import recorder, session, step
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.evaluator import Evaluator
from jaxgpt.training.loaded_model import load_model
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


def test_interrupted_run_resumes_at_the_saved_step(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    after_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert errors.run(train.main, arguments(workspace)) == 130
    assert "stopped after step 7, saved; the same command resumes there" in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    assert errors.run(train.main, arguments(workspace)) == 0
    assert len(logged_losses(run_folder(workspace))) == len(records(run_folder(workspace))) == STEPS


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
            return constant_scores(next(val))

    monkeypatch.setattr(session, "Evaluator", ScriptedEvaluator)
    policy = {"run.eval_every": 4, "run.save_every": 2, "run.keep_latest": 2, "run.keep_best": 1, "run.keep_every": 6}
    folder = train.train(tiny_config(workspace, policy))
    assert saved_steps(folder) == [6, 8, 12, 18, 20]
    with Checkpoints(folder.checkpoints) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best(), checkpoints.best_loss()) == (20, 8, 3.0)
    assert Run().keep_best == 1


# --- commands that are suggested -------------------------------------------------------------------------------------


def test_end_of_a_run_suggests_its_own_config_and_its_report(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors.run(train.main, arguments(workspace)) == 0
    out = capsys.readouterr().out
    assert str(run_folder(workspace).report_file) in out
    (line,) = [line for line in out.splitlines() if "jaxgpt.train" in line]
    words = shlex.split(line)
    assert words[:5] == ["python", "-m", "jaxgpt.train", "--config", "gpt2_124m"]
    config, options = parse_config(train.make_parser(), words[3:])
    longer = arguments(workspace, {"run.name": "a-longer", "run.steps": 2 * STEPS})
    assert config == parse_config(train.make_parser(), longer)[0]
    assert options.fork == str(run_folder(workspace).path)


def test_fork_says_that_it_is_forked_not_resumed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fork = CheckpointRef(run_folder(finished))
    train.train(tiny_config(finished, QUIET | {"run.name": "b", "run.steps": STEPS + 2}), fork)
    out = capsys.readouterr().out
    assert f"forked from {run_folder(finished).path} at step {STEPS}" in out
    assert "resumed" not in out


def test_dry_run_prints_plan_and_first_batch_and_writes_nothing(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(workspace.rglob("*"))
    assert errors.run(train.main, [*arguments(workspace), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"Train {STEPS} steps: " in out
    assert "first batch: 8 windows of 17 tokens" in out
    assert "nothing was trained or written" in out
    assert sorted(workspace.rglob("*")) == before


def test_dry_run_says_that_the_run_prepares_its_data(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = workspace / "text.txt"
    text.write_text("abc " * 3000)
    changes = {"data.path": str(workspace / "none"), "data.sources": str(text)}
    assert errors.run(train.main, [*arguments(workspace, changes), "--dry-run"]) == 3
    assert "help: the same command without --dry-run prepares them from data.sources" in capsys.readouterr().err


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_are_logged_at_evaluations_and_the_end(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train.train(tiny_config(workspace, {"run.sample_prompt": "! #", "run.sample_tokens": 5}))
    samples = records(folder, "sample")
    assert [sample["step"] for sample in samples] == [0, 10, STEPS]
    assert {sample["prompt"] for sample in samples} == {"! #"}
    assert f"sample of step {STEPS}:\n! #{samples[-1]['text']}\n" in capsys.readouterr().out


def test_temperature_of_the_sample_is_the_configs(workspace: Path) -> None:
    folder = train.train(tiny_config(workspace, {"run.steps": 2, "run.eval_every": 2}))
    model = load_model(CheckpointRef(folder))
    for temperature, texts in ((0.0, 1), (1.0, 3)):
        runs = [Run(seed=seed, sample_prompt="!", sample_tokens=8, sample_temperature=temperature) for seed in range(3)]
        assert len({train.generate_sample(model, run) for run in runs}) == texts


def test_failed_sample_costs_a_warning(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ConfigError("C069", "the character '!' is not in the vocabulary")

    monkeypatch.setattr(sampler, "generate_texts", fail)
    folder = train.train(tiny_config(workspace, {"run.steps": 2, "run.eval_every": 2, "run.sample_prompt": "!"}))
    output = capsys.readouterr()
    assert "no sample after step 2: error[C069]: the character '!'" in output.out + output.err
    assert "next:" in output.out
    assert not records(folder, "sample")


def test_early_stop_reports_and_samples_the_best_model(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter([9.0, 3.0, 5.0, 6.0])
    monkeypatch.setattr(session, "Evaluator", lambda *_: lambda params: constant_scores(next(scores)))
    stops = iter([None, None, StopReason(EARLY_STOP, "it overfits")])
    monkeypatch.setattr(LiveDiagnosis, "check", lambda _: RunOutlook(stop=next(stops)))
    changes = {"run.eval_every": 5, "run.sample_prompt": "! #", "run.sample_tokens": 5, "run.early_stop": True}
    folder = train.train(tiny_config(workspace, changes), config_name="gpt2_124m")
    out = capsys.readouterr().out
    assert "stopped early, saved after step 15 of 20: it overfits" in out
    assert "best loss on validation text: 3.0000 at step 5" in out
    assert "the last: 6.0000" in out
    assert "sample of step 5:" in out
    assert records(folder, "sample")[-1]["step"] == 5
    assert "--step best --prompt" in out
    assert "jaxgpt.train" not in out  # nothing suggests to train longer


def constant_scores(loss: float) -> Scores:
    score = Score(loss, 0.1, 16, None)
    return Scores(score, score)


def test_a_profile_of_some_steps(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.train(tiny_config(workspace, {"run.steps": 6, "run.profile": "3:5"}))
    assert "profile of steps 3 to 5: pip install xprof, then xprof --logdir" in capsys.readouterr().out
    (trace,) = (workspace / "runs/a/profile").rglob("*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
    assert [record["step"] for record in records(run_folder(workspace))] == list(range(6))
