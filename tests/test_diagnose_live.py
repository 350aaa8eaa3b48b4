"""Early stopping by a run's own diagnosis: the reasons, the messages, and how the run continues."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from helpers.training import STEPS, arguments, logged_losses, records, run_folder, saved_steps, tiny_config

from jaxgpt import errors, logs, train
from jaxgpt.config import Optim
from jaxgpt.diagnose import diagnosis, live
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Condition, Finding
from jaxgpt.diagnose.forecast.gaussian_mixture import gaussian_forecast
from jaxgpt.diagnose.live import LiveDiagnosis, RunOutlook, early_stop
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.formats import jaxgpt_log
from jaxgpt.logs.history import Evaluation, History, Step
from jaxgpt.runs import log as runlog
from jaxgpt.runs.checkpoint_files import MANIFEST
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training import session
from jaxgpt.training.records import Score, Scores

PLANTED = ROOT / "tests" / "planted"
OVERFITTING = "validation loss no longer falls: overfitting (best 4.0000 at step 80, 4.0000 at step 80)"
EARLY = {"run.eval_every": 4, "run.early_stop": True, "run.save_every": STEPS}


class Line:
    """A posterior that expects the loss to fall by `slope` nats per step."""

    def __init__(self, slope: float) -> None:
        self._slope = slope

    def predict(self, steps: list[int]) -> tuple[Any, Any]:
        return np.array([5 - self._slope * step for step in steps]), np.zeros(len(steps))


def make_diagnosis(*supported: str, done: int = 80, slope: float = 1e-3, schedule: str = "wsd") -> Diagnosis:
    """A diagnosis after `done` of 100 steps whose learning rate is final from step 60 on."""
    conditions = (Condition("it turns up", "minimum at 28 %", True),)
    history = History(
        source="log",
        format="jaxgpt",
        traits=jaxgpt_log.TRAITS,
        steps=tuple(Step(number, 4.0) for number in range(done)),
        evaluations=(Evaluation(done, 4.0, 4.0, 0.01),),
    )
    rates = np.ones(100) if schedule == "constant" else np.array([1.0] * 50 + [0.5] * 10 + [0.1] * 40)
    context = dataclasses.replace(resolve_context(history, Options(total_steps=100)), lr_fractions=rates, optim=Optim())
    return dataclasses.replace(
        diagnosis.diagnose(history, context),
        findings=tuple(Finding(id=name, conditions=conditions) for name in supported),
        posterior=Line(slope),  # type: ignore[arg-type]
        forecast=gaussian_forecast(5 - slope * 100, 0.01),
    )


# --- the decision ----------------------------------------------------------------------------------------------------


def decisions(*diagnoses: Diagnosis) -> list[str | None]:
    """The sentence with which each diagnosis in a row stops the run; None to continue."""
    live_diagnosis = LiveDiagnosis(RunFolder(Path("unused")), forecasting=False, stopping=True)
    confirmed = [live_diagnosis.confirm(early_stop(each)) for each in diagnoses]
    return [reason.sentence if reason else None for reason in confirmed]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("severe-overfitting", OVERFITTING),
        ("divergence", "the loss has risen and does not recover: divergence (minimum at 28 %)"),
    ],
)
def test_two_equal_reasons_in_a_row_stop_the_run(name: str, sentence: str) -> None:
    diagnoses = [make_diagnosis(*names) for names in ((name,), (), (name,), (name,))]
    assert decisions(*diagnoses) == [None, None, None, sentence]


def test_overfitting_is_explained_with_its_length_and_best_loss() -> None:
    rising = (
        Evaluation(0, 9.0, 9.0),
        Evaluation(250, 1.47, 1.2),
        Evaluation(340, 1.5, 1.1),
        Evaluation(430, 1.521, 1.0),
    )
    overfitting = make_diagnosis("severe-overfitting")
    history = dataclasses.replace(overfitting.history, evaluations=rising)
    assert live._describe_overfitting(history, overfitting.findings[0]) == (
        "validation loss has risen for 180 steps while training loss falls: overfitting "
        "(best 1.4700 at step 250, 1.5210 at step 430)"
    )


def test_other_findings_stop_nothing() -> None:
    assert decisions(*[make_diagnosis("overfitting", "lr-too-high", "loss-spikes")] * 3) == [None] * 3


def test_a_gain_below_the_evaluation_error_stops_the_run() -> None:
    reason = early_stop(make_diagnosis(slope=3e-4))
    assert reason is not None
    assert reason.name == "little-to-gain"
    assert "the remaining 20 steps are expected to gain 0.0060 nats, less than" in reason.sentence
    assert reason.sentence.endswith("0.0100")
    assert early_stop(make_diagnosis(slope=6e-4)) is None
    assert early_stop(make_diagnosis(slope=1e-4, done=55)) is None  # the decay is not over
    assert early_stop(make_diagnosis(slope=3e-4, schedule="constant")) is None  # there is no decay
    assert early_stop(make_diagnosis(slope=3e-4, done=100)) is None


def stopped_at(name: str) -> int | None:
    """The step at which the planted run of that name would have stopped."""
    lines = (PLANTED / name / "log.jsonl").read_text().splitlines(keepends=True)
    tokens = logs.read(PLANTED / name).metadata.unique_tokens
    live_diagnosis = LiveDiagnosis(RunFolder(PLANTED / name), forecasting=False, stopping=True)
    for number, line in enumerate(lines, start=1):
        if '"eval"' in line:
            history = logs.read_text("".join(lines[:number]), name)
            context = resolve_context(history, Options(unique_tokens=tokens))
            if live_diagnosis.confirm(early_stop(diagnosis.diagnose(history, context))):
                return history.steps_done
    return None


def test_a_run_that_memorizes_its_corpus_is_stopped_by_half() -> None:
    step = stopped_at("tiny-corpus")
    assert step is not None
    assert step <= 175


def test_a_clean_run_is_not_stopped() -> None:
    assert stopped_at("clean") is None


# --- the run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every diagnosis of a run says that it overfits severely, and its validation loss rises: no best to save."""
    val = itertools.count(4.0)

    class RisingLoss:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, params: Any) -> Scores:
            return Scores(Score(4.0, 0.1, 16, None), Score(next(val), 0.1, 16, None))

    monkeypatch.setattr(session, "Evaluator", RisingLoss)
    monkeypatch.setattr(live, "diagnose_run", lambda folder: make_diagnosis("severe-overfitting"))


@pytest.mark.usefixtures("advised")
def test_a_stopped_run_is_saved_and_can_continue(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(train.main, arguments(workspace, EARLY)) == 0
    message = f"stopped early, saved after step 8 of 20: {OVERFITTING}"
    assert message in capsys.readouterr().out
    assert saved_steps(run_folder(workspace))[-1] == 8
    stop = records(run_folder(workspace), "stop")[-1]
    assert (stop["reason"], stop["detail"]) == ("early-stop", OVERFITTING)

    assert errors.run(train.main, arguments(workspace, EARLY)) == 0
    again = capsys.readouterr().out
    assert message in again
    assert "--run.early-stop false" in again
    assert len(records(run_folder(workspace), "start")) == 1

    assert errors.run(train.main, arguments(workspace, EARLY | {"run.early_stop": False})) == 0
    assert list(logged_losses(run_folder(workspace))) == list(range(STEPS))
    assert records(run_folder(workspace), "stop")[-1]["reason"] == "done"


@pytest.mark.usefixtures("advised")
def test_a_stopped_run_whose_best_checkpoint_is_damaged_uses_the_next(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = train.finish
    best = run_folder(workspace).checkpoints / "4"
    damaged = "runs/a/checkpoints/4 cannot be read: manifest.json is damaged"

    def finish(*arguments: Any) -> None:
        (best / MANIFEST).write_text("{}")
        original(*arguments)

    monkeypatch.setattr(train, "finish", finish)
    monkeypatch.setattr(train, "generate_sample", lambda model, _: f" of step {model.step}")
    assert errors.run(train.main, arguments(workspace, EARLY | {"run.sample_prompt": "!"})) == 0
    out, err = capsys.readouterr()
    assert damaged in err
    assert "moved to" in err
    assert "sample of step 8:\n! of step 8\n" in out
    assert not best.exists()

    (run_folder(workspace).quarantine / "4").rename(best)
    assert errors.run(train.main, arguments(workspace, EARLY)) == 0
    out, err = capsys.readouterr()
    assert damaged in err
    assert "stopped early, saved after step 8" in out
    assert not best.exists()


@pytest.mark.usefixtures("advised")
def test_a_run_stops_early_only_if_configured(workspace: Path) -> None:
    train.train(tiny_config(workspace, {"run.eval_every": 4}))
    assert len(logged_losses(run_folder(workspace))) == STEPS


@pytest.mark.usefixtures("advised")
def test_a_stopped_run_that_was_interrupted_resumes(workspace: Path) -> None:
    train.train(tiny_config(workspace, EARLY))
    with runlog.RunLog(run_folder(workspace).log_file) as log:
        log.write("start", step=8)
    train.train(tiny_config(workspace, EARLY))
    assert len(logged_losses(run_folder(workspace))) == 16  # two evaluations further on, it is advised to stop again


def test_a_failing_diagnosis_costs_one_warning_only(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Any) -> Diagnosis:
        raise ZeroDivisionError("of course")

    monkeypatch.setattr(live, "diagnose_run", broken)
    train.train(tiny_config(workspace, EARLY))
    assert len(logged_losses(run_folder(workspace))) == STEPS
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    assert (
        stderr.count("the run is not diagnosed while it trains: ZeroDivisionError: of course (see it with --debug)")
        == 1
    )


def test_nothing_is_diagnosed_unless_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "diagnose_run", lambda folder: pytest.fail("diagnosed"))
    live_diagnosis = LiveDiagnosis(run_folder(tmp_path), forecasting=False, stopping=False)
    assert live_diagnosis.check() == RunOutlook(None, None)


# --- the report at the end -------------------------------------------------------------------------------------------


def test_a_run_leaves_its_report(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train.train(tiny_config(workspace, {"run.name": "tea"}))
    page = folder.report_file.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "tea" in page
    assert capsys.readouterr().err == ""


def test_a_failing_report_costs_one_warning_only(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jaxgpt.diagnose.report.build_report", lambda diagnosis, run: 1 / 0)
    folder = train.train(tiny_config(workspace))
    assert (
        capsys.readouterr().err
        == "warning: report.html was not written: ZeroDivisionError: division by zero (see it with --debug)\n"
    )
    assert not folder.report_file.exists()
    assert records(folder, "stop")[-1]["reason"] == "done"


def test_a_foreign_report_file_is_kept(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(finished)
    folder.report_file.write_text("my own notes")
    live.write_run_report(folder)
    assert folder.report_file.read_text() == "my own notes"
    assert "report.html' exists and is not a report of jaxgpt" in capsys.readouterr().err


def test_debug_shows_the_traceback_of_a_failing_report(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jaxgpt.diagnose.report.build_report", lambda diagnosis, run: 1 / 0)
    monkeypatch.setattr("sys.argv", ["jaxgpt", "train", "--debug"])
    train.train(tiny_config(workspace))
    assert "Traceback (most recent call last)" in capsys.readouterr().err
