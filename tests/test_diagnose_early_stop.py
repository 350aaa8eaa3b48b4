"""Runs that were stopped early, and runs without a validation split: no answer pretends that they continue."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.diagnose_logs import answered
from helpers.synthetic_runs import COSINE, REPEATED, flat, make_run, rising, slower, training, widening

from jaxgpt import logs
from jaxgpt.diagnose import messages
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis, diagnose
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import RunMetadata
from jaxgpt.runs.log import EARLY_STOP, StopReason

PLANTED = Path(__file__).parent / "planted"
REASON = "validation loss has risen for 800 steps while training loss falls: overfitting"
STOPPED = RunMetadata(stop_reason=StopReason(EARLY_STOP, REASON))


def stopped_run(changes: dict[str, object] | None = None, **curves: object) -> Diagnosis:
    context, history = make_run(changes, done=1600, metadata=STOPPED, **curves)
    return diagnose(history, context, now=0.0)


def test_an_overfitted_run_says_why_it_stopped() -> None:
    eta, loss, problem = messages.summary(stopped_run(REPEATED, val=rising, gap=widening))
    assert eta == f"It stopped early, after 1,600 of 2,000 steps: {REASON}."
    assert loss.startswith("It ended at a validation loss of 3.5")
    assert loss.endswith("was at step 800.")
    assert "Use the checkpoint of step 800" in problem


@pytest.mark.parametrize("changes", [REPEATED, {"optim": COSINE}])
def test_a_stopped_run_is_not_trained_longer(changes: dict[str, object]) -> None:
    diagnosis = stopped_run(changes)
    assert (diagnosis.forecast, diagnosis.posterior, diagnosis.scenarios) == (None, None, ())
    actions = " ".join(item.action for item in diagnosis.recommendations)
    for words in ("steps instead of", "Let the run finish", "End sooner", "decay to 0"):
        assert words not in actions


def test_a_slightly_slower_run_is_not_broken() -> None:
    context, history = make_run(losses=training(flat), seconds=slower)
    diagnosis = diagnose(history, context, now=0.0)
    slowed = [finding for finding in diagnosis.findings if finding.id == "throughput"]
    only_slower = replace(diagnosis, findings=tuple(slowed))
    assert messages.problem_sentence(only_slower) == "Nothing is broken, but the steps have become slower."


def planted_records(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (PLANTED / name / "log.jsonl").read_text().splitlines()]


def write_run(folder: Path, records: list[dict[str, object]]) -> str:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_the_log_of_a_stopped_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [record for record in planted_records("tiny-corpus") if int(str(record.get("step", 0))) <= 210]
    stop: dict[str, object] = {
        "kind": "stop",
        "reason": EARLY_STOP,
        "detail": REASON,
        "time": 2e9,
    }
    shutil.copytree(PLANTED / "tiny-corpus", tmp_path, dirs_exist_ok=True)
    write_run(tmp_path, [*(record for record in records if record["kind"] != "stop"), stop])
    path = str(tmp_path)
    text = " ".join(answered(capsys, path, "--verbose").split())
    assert f"It stopped early, after 211 of 350 steps: {REASON}." in text
    assert "It ends in" not in text
    report = json.loads(answered(capsys, path, "--json"))
    assert report["stopped_early"] == REASON
    assert (report["forecast"]["sd"], report["scenarios"], report["eta"]["steps_left"]) == (None, [], 0)


def test_without_a_validation_split_no_loss_is_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = planted_records("clean")
    for record in records:
        record.pop("val_loss", None)
        record.pop("val_standard_error", None)
    path = write_run(tmp_path, records)
    history = logs.read(path)
    assert diagnose(history, resolve_context(history, Options()), now=0.0).forecast is None
    text = " ".join(answered(capsys, path).split())
    assert "There is no forecast of its validation loss: the run has no validation split." in text
