"""A run that ends early by its own advice: on what grounds, how it says so, and how it goes on."""

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
from jaxgpt.diagnose import diagnosis, report, stopper, watch
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Condition, Finding
from jaxgpt.diagnose.forecast.gaussian_mixture import gaussian_forecast
from jaxgpt.diagnose.options import Options
from jaxgpt.diagnose.stopper import Stopper
from jaxgpt.diagnose.watch import Watch
from jaxgpt.logs.history import Evaluation, History, Step
from jaxgpt.runs import log as runlog
from jaxgpt.training import session
from jaxgpt.training.records import Score, Scores

PLANTED = ROOT / "tests" / "planted"
EARLY = {"run.eval_every": 4, "run.early_stop": True, "run.save_every": STEPS}


class Line:
    """A posterior that expects the loss to fall by `slope` nats per step."""

    def __init__(self, slope: float) -> None:
        self._slope = slope

    def predict(self, steps: list[int]) -> tuple[Any, Any]:
        return np.array([5 - self._slope * step for step in steps]), np.zeros(len(steps))


def found(*supported: str, done: int = 80, slope: float = 1e-3, schedule: str = "wsd") -> Diagnosis:
    """A diagnosis after `done` of 100 steps whose rate is at its last value from step 60 on."""
    conditions = (Condition("it turns up", "minimum at 28 %", True),)
    history = History(
        source="log",
        format="jaxgpt",
        steps=tuple(Step(number, 4.0) for number in range(done)),
        evaluations=(Evaluation(done, 4.0, 4.0, 0.01),),
    )
    rates = np.ones(100) if schedule == "constant" else np.array([1.0] * 50 + [0.5] * 10 + [0.1] * 40)
    held = dataclasses.replace(resolve_context(history, Options(total_steps=100)), lr_fractions=rates, optim=Optim())
    return dataclasses.replace(
        diagnosis.diagnose(history, held),
        findings=tuple(Finding(id=name, conditions=conditions) for name in supported),
        posterior=Line(slope),  # type: ignore[arg-type]
        forecast=gaussian_forecast(5 - slope * 100, 0.01),
    )


# --- the decision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ground", stopper.GROUNDS)
def test_a_ground_stops_the_run_when_it_stands_at_two_evaluations_in_a_row(ground: str) -> None:
    asked = Stopper()
    assert [asked.ask(found(*which)) for which in ((ground,), (), (ground,))] == ["", "", ""]
    assert asked.ask(found(ground)) == f"{ground}: minimum at 28 %"


def test_other_verdicts_stop_nothing() -> None:
    asked = Stopper()
    assert [asked.ask(found("overfitting", "lr-too-high", "loss-spikes")) for _ in range(3)] == ["", "", ""]


def test_a_gain_below_the_evaluations_error_stops_the_run_once_the_rate_is_at_its_last_value() -> None:
    assert (
        "the 20 steps that are left are expected to gain 0.0060 nats, less than the 0.0100"
        in stopper.little_to_gain(found(slope=3e-4))
    )
    assert stopper.little_to_gain(found(slope=6e-4)) == ""
    assert stopper.little_to_gain(found(slope=1e-4, done=55)) == ""  # the fall is not over
    assert stopper.little_to_gain(found(slope=3e-4, schedule="constant")) == ""  # nothing has fallen
    assert stopper.little_to_gain(found(slope=3e-4, done=100)) == ""


def stopped_at(name: str) -> int | None:
    """The step at which the planted run of that name would have stopped."""
    lines = (PLANTED / name / "log.jsonl").read_text().splitlines(keepends=True)
    tokens = logs.read(PLANTED / name).metadata.unique_tokens
    asked = Stopper()
    for number, line in enumerate(lines, start=1):
        if '"eval"' in line:
            history = logs.read_text("".join(lines[:number]), name)
            if asked.ask(diagnosis.diagnose(history, resolve_context(history, Options(unique_tokens=tokens)))):
                return history.steps_done
    return None


def test_a_run_that_learns_its_tiny_corpus_by_heart_would_have_been_stopped_by_half() -> None:
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

    class Judge:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, params: Any) -> Scores:
            return Scores(Score(4.0, 0.1, 16, None), Score(next(val), 0.1, 16, None))

    monkeypatch.setattr(session, "Evaluator", Judge)
    monkeypatch.setattr(watch.own, "of", lambda folder: found("severe-overfitting"))


@pytest.mark.usefixtures("advised")
def test_the_run_stops_saves_and_says_why_and_how_to_go_on(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(train.main, arguments(workspace, EARLY)) == 0
    said = "stopped early, saved after step 8 of 20: severe-overfitting: minimum at 28 %"
    assert said in capsys.readouterr().out
    assert saved_steps(run_folder(workspace))[-1] == 8
    assert records(run_folder(workspace), "stop")[-1]["reason"] == "early-stop: severe-overfitting: minimum at 28 %"

    assert errors.run(train.main, arguments(workspace, EARLY)) == 0
    again = capsys.readouterr().out
    assert said in again
    assert "--run.early-stop false" in again
    assert len(records(run_folder(workspace), "start")) == 1

    assert errors.run(train.main, arguments(workspace, EARLY | {"run.early_stop": False})) == 0
    assert list(logged_losses(run_folder(workspace))) == list(range(STEPS))
    assert records(run_folder(workspace), "stop")[-1]["reason"] == "done"


@pytest.mark.usefixtures("advised")
def test_a_run_stops_early_only_if_it_was_asked_to(workspace: Path) -> None:
    train.train(tiny_config(workspace, {"run.eval_every": 4}))
    assert len(logged_losses(run_folder(workspace))) == STEPS


@pytest.mark.usefixtures("advised")
def test_a_run_that_was_stopped_early_and_then_interrupted_goes_on(workspace: Path) -> None:
    train.train(tiny_config(workspace, EARLY))
    with runlog.RunLog(run_folder(workspace).log_file) as log:
        log.write("start", step=8)
    train.train(tiny_config(workspace, EARLY))
    assert len(logged_losses(run_folder(workspace))) == 16  # two evaluations further on, it is advised to stop again


def test_a_diagnosis_that_fails_costs_one_warning_and_not_the_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Any) -> Diagnosis:
        raise ZeroDivisionError("of course")

    monkeypatch.setattr(watch.own, "of", broken)
    train.train(tiny_config(workspace, EARLY))
    assert len(logged_losses(run_folder(workspace))) == STEPS
    assert capsys.readouterr().err.count("warning: the run is not diagnosed while it trains: of course") == 1


def test_nobody_who_asks_means_no_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.own, "of", lambda folder: pytest.fail("a look"))
    assert Watch(run_folder(tmp_path), shown=False, stopping=False).look() == (None, "")


# --- the report at the end -------------------------------------------------------------------------------------------


def test_a_run_leaves_its_report(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train.train(tiny_config(workspace, {"run.name": "tea"}))
    page = folder.report_file.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "tea" in page
    assert capsys.readouterr().err == ""


def test_a_report_that_fails_costs_a_warning_and_not_the_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jaxgpt.diagnose.page.page", lambda found: 1 / 0)
    folder = train.train(tiny_config(workspace))
    assert capsys.readouterr().err == "warning: no report.html: division by zero\n"
    assert not folder.report_file.exists()
    assert records(folder, "stop")[-1]["reason"] == "done"


def test_a_report_of_somebody_else_stays(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train.train(tiny_config(workspace))
    folder.report_file.write_text("my own notes")
    report.keep(folder)
    assert folder.report_file.read_text() == "my own notes"
    assert "report.html' exists and is no page of ours" in capsys.readouterr().err
