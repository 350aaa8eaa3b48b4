"""Runs that are over: the loss of the last evaluation, as it was logged, and no forecast of it, in every format."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import logformats, logsamples
from helpers.diagnose_logs import answered
from helpers.html import Reader
from helpers.synthetic_runs import COSINE, TOTAL, flat, make_run, training

from jaxgpt import logs
from jaxgpt.diagnose import live, messages
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import diagnose
from jaxgpt.diagnose.forecast.scenarios import forecast_scenarios
from jaxgpt.diagnose.options import Options
from jaxgpt.diagnose.report import build_report
from jaxgpt.runs.folder import RunFolder
from jaxgpt.utils.report import to_json

RUN = logsamples.CONFIG.replace({"run": {"steps": 60}})
# A finished run of each format, its length, and its last evaluation as the log prints it.
FINISHED = {
    "jaxgpt": (logsamples.jsonl(logsamples.jaxgpt_records(60, config=RUN)), 60, logsamples.loss(59)),
    "nanogpt": (logsamples.NANOGPT_HEAD.replace("20000", "1000") + logsamples.nanogpt(), 1000, logsamples.loss(1000)),
    "llmc": (logsamples.llmc(), 1000, logsamples.loss(1000)),
    "modded": (logsamples.modded(), 200, logsamples.loss(200)),
    "buildnanogpt": (logsamples.buildnanogpt(), 500, logsamples.loss(500)),
    "table": (logsamples.table(), 2000, logsamples.loss(2000)),
}
EVERY_FORMAT = logsamples.ALL | logformats.SAMPLES
# The loss jumps up at the end, where no smooth curve follows.
JUMPED = "step,val_loss\n" + "".join(
    f"{step},{3.2 + 7.7 * (1 + step / 40) ** -0.48:.4f}\n" for step in range(0, 2000, 100)
)
JUMPED += "2000,4.5671\n"


def answers(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[str, str, dict[str, Any]]:
    """The answer as text, as the text of the page, and as JSON."""
    printed = " ".join(answered(capsys, str(path), *options).split())
    page = path.with_suffix(".html")
    answered(capsys, str(path), *options, "--html", str(page))
    text = " ".join(Reader(page.read_text()).text.split())
    return printed, text, json.loads(answered(capsys, str(path), *options, "--json"))


@pytest.mark.parametrize("name", FINISHED)
def test_every_answer_has_the_last_evaluation(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, steps, loss = FINISHED[name]
    path = tmp_path / "out.log"
    path.write_text(text)
    terminal, page, data = answers(capsys, path, "--total-steps", str(steps))
    assert data["format"] == name
    assert data["forecast"]["final_loss"] == pytest.approx(loss, abs=5.1e-5)
    intervals = ("sd", "low80", "high80", "low95", "high95")
    assert [data["forecast"][field] for field in intervals] == [None] * len(intervals)
    for answer in (terminal, page, data["summary"][1]):
        assert f"It ended at a validation loss of {round(loss, 4):g}" in answer
    assert "will end at" not in terminal + page


@pytest.mark.parametrize("name", EVERY_FORMAT)
def test_every_format_states_its_last_evaluation(name: str) -> None:
    history = logs.read_text(EVERY_FORMAT[name], "out.log")
    known = Options(total_steps=max(history.steps_done, 1))
    diagnosis = diagnose(history, resolve_context(history, known), now=0.0)
    last = history.evaluations[-1].val
    assert last is not None
    assert to_json(build_report(diagnosis))["forecast"]["final_loss"] == last
    assert f"It ended at a validation loss of {round(last, 4):g}" in messages.forecast_sentence(diagnosis)
    assert diagnosis.forecast is None


def test_a_loss_that_no_curve_fits_is_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.csv"
    path.write_text(JUMPED)
    terminal, page, data = answers(capsys, path, "--total-steps", "2000", "--target-loss", "4.5")
    assert data["forecast"]["final_loss"] == 4.5671
    assert (data["target"]["possible"], data["target"]["expected"]) == (False, None)
    assert "4.5671" in terminal
    assert "as it ran, measured2,000–4.5671" in page


def test_scenarios_start_from_the_measured_end() -> None:
    """A longer run is compared with the loss that this one has reached, not with the fitted one."""
    context, history = make_run()
    last = history.evaluations[-1]
    jumped = (last.val or 0.0) + 0.05
    history = replace(history, evaluations=(*history.evaluations[:-1], last._replace(val=jumped)))
    diagnosis = diagnose(history, context, now=0.0)
    assert diagnosis.posterior is not None
    fitted = diagnosis.posterior.final_loss().mean
    assert fitted < jumped - 0.03
    changes = [one.forecast.mean - fitted for one in forecast_scenarios(history, context, diagnosis.posterior)]
    assert changes
    assert [one.forecast.mean - jumped for one in diagnosis.scenarios] == pytest.approx(changes)


def test_a_run_without_evaluations_has_no_forecast() -> None:
    """The scaling law knows an end for it, but it has happened."""
    text = logsamples.NANOGPT_HEAD.replace("20000", "1000") + logsamples.nanogpt()
    training = "\n".join(line for line in text.splitlines() if not line.startswith("step "))
    history = logs.read_text(training, "out.log")
    diagnosis = diagnose(history, resolve_context(history, Options()), now=0.0)
    assert diagnosis.forecast is None
    assert "the log has no validation loss of its end" in messages.forecast_sentence(diagnosis)


def test_steps_that_became_slower_do_not_break_a_finished_run() -> None:
    context, history = make_run(losses=training(flat), seconds=lambda steps: 1.0 + (steps >= 1200))
    diagnosis = diagnose(history, context, now=0.0)
    slower = next(finding for finding in diagnosis.findings if finding.id == "throughput")
    assert (slower.status, slower.is_minor) == ("confirmed", True)


def test_the_console_forecasts_nothing_at_the_end(tmp_path: Path) -> None:
    """Nor of a run that learns nothing, after 90 of its 100 steps or at its end."""
    folder = RunFolder(tmp_path / "small")
    folder.path.mkdir()
    for steps, stuck, expected in ((60, False, True), (100, False, False), (180, False, True), (180, True, False)):
        config = logsamples.CONFIG.replace({"run": {"steps": 100 if steps <= 100 else 200}})
        records = logsamples.jaxgpt_records(steps, config=config)
        for record in records:
            record |= {name: 4.15 for name in ("loss", "val_loss", "train_loss") if stuck and name in record}
        folder.log_file.write_text(logsamples.jsonl(records))
        assert (live.forecast_only(folder) is not None) is expected


def test_advice_of_a_finished_run_is_to_resume_or_run_another() -> None:
    """Half of a cosine: its decay was to last twice as long."""
    context, history = make_run({"optim": replace(COSINE, decay_steps=2 * TOTAL)})
    diagnosis = diagnose(history, context, now=0.0)
    actions = [item.action for item in diagnosis.recommendations]
    assert any(action.startswith("Resume it for 200 steps more") for action in actions)
    assert not any("by step" in action or action.startswith("Let the") for action in actions)
    problem = messages.problem_sentence(diagnosis)
    assert "will still fall" not in problem
    assert "Nothing is broken" not in problem


def test_it_is_never_too_early_for_a_finished_run() -> None:
    text = "step,val_loss\n" + "".join(f"{step},{3.2 + 100 / step:.4f}\n" for step in range(100, 2001, 100))
    history = logs.read_text(text, "out.csv")
    diagnosis = diagnose(history, resolve_context(history, Options(total_steps=2000)), now=0.0)
    assert messages.problem_sentence(diagnosis).startswith("The log shows nothing wrong; ")


def test_the_date_of_the_end_is_that_of_a_record_or_named(tmp_path: Path) -> None:
    """A log without a clock has the date of its file alone, and one from standard input has none."""
    path = tmp_path / "out.csv"
    path.write_text(JUMPED)
    os.utime(path, (1e9, 1e9))
    known = Options(total_steps=2000)
    timed = "step,time,val_loss\n" + "".join(f"{n},{1.7e9 + n},{5 - n / 1000}\n" for n in range(0, 2001, 100))
    texts = []
    for history in (logs.read(path), logs.read_text(JUMPED, "<stdin>"), logs.read_text(timed, "<stdin>")):
        texts.append(messages.eta_sentence(diagnose(history, resolve_context(history, known), now=1.8e9)))
    assert texts[0].startswith("It is done: 2,000 steps; the log has no times, and its file was last changed on ")
    assert texts[1] == "It is done: 2,000 steps."
    assert texts[2].startswith("It is done: 2,000 steps, the last of them on ")


def test_steps_are_those_of_the_run_where_nanogpt_does_one_more() -> None:
    head = logsamples.NANOGPT_HEAD.replace("20000", "400")
    lines = [
        f"step {n}: train loss {4 - n / 400}, val loss {4 - n / 400}\niter {n}: loss 3, time 90.00ms"
        for n in range(0, 401, 50)
    ]
    history = logs.read_text(head + "\n".join(lines), "out.log")
    assert history.steps_done == 401
    report = build_report(diagnose(history, resolve_context(history, Options()), now=0.0))
    assert report.title == "out.log: nanogpt, 400 of 400 steps done"
    assert report.summary[0] == "It is done: 400 steps."


@pytest.mark.parametrize(("name", "last"), [("jaxgpt", '"kind": "eval"'), ("nanogpt", ", val loss")])
def test_an_unfinished_last_evaluation_is_not_done(name: str, last: str) -> None:
    """The process died while it evaluated: the log has no line of it, or a part of one."""
    text, steps, _ = FINISHED[name]
    complete, _, rest = text.rpartition(last)
    cut = complete[: complete.rfind("\n")] if name == "jaxgpt" else complete
    assert rest
    for log, is_done in ((text, True), (cut, False)):
        history = logs.read_text(log, "out.log")
        diagnosis = diagnose(history, resolve_context(history, Options(total_steps=steps)), now=0.0)
        assert history.steps_done >= steps
        assert messages.eta_sentence(diagnosis).startswith("It is done") is is_done
        assert messages.forecast_sentence(diagnosis).startswith("It ended at") is is_done
    assert "but the log ends before the evaluation that follows them" in messages.eta_sentence(diagnosis)
    assert "the log has no validation loss of its end" in messages.forecast_sentence(diagnosis)
