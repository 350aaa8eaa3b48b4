"""What users and worse give to the command: every answer is a sentence, and every sentence is true."""

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from jaxgpt import diagnose, errors, logs
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.options import Options


def curve(step: int) -> float:
    return 3.2 + 7.7 * (1 + step / 40) ** -0.48


def nanogpt(loss: str = "") -> str:
    """What nanoGPT prints of 14,000 steps; `loss` stands in for every loss."""
    lines = ["tokens per iteration will be: 524,288", "number of parameters: 40.56M"]
    for step in range(0, 14_001, 100):
        said = loss or f"{curve(step):.4f}"
        if step % 500 == 0:
            lines.append(f"step {step}: train loss {said}, val loss {said}")
        lines.append(f"iter {step}: loss {said}, time {3995 + step % 7}.11ms, mfu 20.11%")
    return "\n".join(lines) + "\n"


def table(rate: float, count: int = 28) -> str:
    rows = [f"{n},{rate},{curve(n) + 0.02:.4f},{curve(n):.4f}" for n in range(0, 500 * count + 1, 500)]
    return "step,lr,train_loss,val_loss\n" + "\n".join(rows) + "\n"


def ours(when: float) -> str:
    rows: list[dict[str, Any]] = []
    for step in range(0, 3000, 10):
        rows.append({"kind": "step", "step": step, "loss": curve(step), "seconds": 4.0, "time": when})
        if step % 500 == 0:
            rows.append({"kind": "eval", "step": step, "val_loss": curve(step), "time": when})
    return "\n".join(json.dumps(row) for row in rows) + "\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("jaxgpt.budget.devices.local_gpu", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(text: str) -> Any:
    raise AssertionError(f"{text} in JSON")


def asked(capsys: pytest.CaptureFixture[str], text: str, *options: str) -> dict[str, Any]:
    """The answer as JSON, after the text of it has been printed and the page written too."""
    Path("out.log").write_text(text)
    for form in ([], ["--html", "page.html"], ["--json"]):
        status = errors.run(diagnose.main, ["out.log", *options, *form])
        said = capsys.readouterr()
        assert (status, said.err) == (0, "")
    found: dict[str, Any] = json.loads(said.out, parse_constant=refuse)
    return found


def status(found: dict[str, Any], name: str) -> str:
    return next(str(finding["status"]) for finding in found["findings"] if finding["id"] == name)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxgpt.diagnose", *arguments]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"} | options.pop("env", {})
    return subprocess.run(command, text=True, errors="replace", capture_output=True, env=env, timeout=120, **options)


@pytest.mark.parametrize("when", [1e300, 1e18, 2.6e11, -1e18, 12.5])
def test_a_clock_of_another_world_is_no_end_of_the_run(when: float, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, ours(when), "--total-steps", "5000")
    assert found["eta"]["seconds"] == 8036.0
    assert found["eta"]["counted_from"] == "the file's last change"


def test_an_end_beyond_the_calendar_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    slow = re.sub(r"time \d+\.\d+ms", "time 86399000.0ms", nanogpt())
    found = asked(capsys, slow.split("step 1000:")[0], "--total-steps", "5000000")
    assert found["eta"]["ends_at"] is None
    assert "beyond any calendar" in found["summary"][0]


@pytest.mark.parametrize("loss", ["nan", "inf", "1e9"])
def test_a_loss_that_is_lost_has_no_forecast(loss: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, nanogpt(loss), "--config", "fineweb40m")
    assert status(found, "divergence") == "confirmed"
    assert (found["forecast"], found["scenarios"]) == (None, [])
    assert "its loss is not finite" in found["summary"][1]


def test_one_loss_that_came_back_keeps_the_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, re.sub(r"(iter 7000: loss) [\d.]+", r"\1 nan", nanogpt()), "--total-steps", "20000")
    assert found["forecast"]["final_loss"] == pytest.approx(3.59, abs=0.02)


def test_a_rate_of_zero_is_not_taken_for_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, table(0.0), "--total-steps", "20000")
    assert status(found, "not-annealed") == "ruled out"
    assert "learning rate is 0 throughout" in found["summary"][1]


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0, 600.0])
def test_rates_that_are_none_say_nothing_of_the_schedule(rate: float, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, table(rate), "--total-steps", "20000")
    assert status(found, "not-annealed") == "unknown"


def test_tokens_in_the_column_of_steps_cost_no_memory() -> None:
    rows = [f"{n * 1_000_000},{5 - n / 100}" for n in range(100)]
    history = logs.read_text("step,val_loss\n" + "\n".join(rows) + "\n", "log")
    found = resolve_context(history, Options())
    assert len(found.lr_fractions) == 10_000_000
    assert any("if it counts tokens" in said for said in found.assumed)


@pytest.mark.parametrize(
    "words",
    [
        "--params 1e308",
        "--batch-tokens 1e300",
        "--batch-tokens 1e-9",
        "--unique-tokens 1",
        "--eval-tokens 1e-5",
        "--peak-lr 1e9",
        "--target-step-time 1e-300",
        "--now 1e300",
        "--now 1e18",
        "--target-loss 1e300",
    ],
)
def test_numbers_out_of_this_world_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.log").write_text(nanogpt())
    assert errors.run(diagnose.main, ["out.log", *words.split()]) == 2
    assert "error[C048]" in capsys.readouterr().err


def test_a_gain_that_is_none_supports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--schedule cosine --total-steps 20000 --batch-tokens 524288 --params 124M --corpus fineweb"
    found = asked(capsys, table(6e-4), *words.split(), "--unique-tokens", "1000")
    assert status(found, "capacity-limited") != "confirmed"
    assert "inf times" not in json.dumps(found)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_without_our_signs_gets_its_answer(place: Path, encoding: str) -> None:
    (place / "out.log").write_text(nanogpt())
    found = run("out.log", "--total-steps", "20000", env={"PYTHONIOENCODING": encoding})
    assert (found.returncode, found.stderr) == (0, "")
    assert "Assumed" in found.stdout


def test_a_closed_standard_input_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert errors.run(diagnose.main, ["-"]) == 3
    assert "standard input is closed" in capsys.readouterr().err


def test_without_matplotlib_a_page_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out.log").write_text(nanogpt())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert errors.run(diagnose.main, ["out.log", "--html", "page.html"]) == 2
    assert "error[C059]" in capsys.readouterr().err
    assert not (place / "page.html").exists()


def test_a_name_that_is_no_text_has_a_page_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "\udcff.log").write_text(nanogpt())
    assert errors.run(diagnose.main, ["\udcff.log", "--html", "page.html"]) == 0
    assert "\\udcff.log" in (place / "page.html").read_text()


def test_a_log_on_standard_input_may_be_utf_16(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = nanogpt().replace("step ", "“mine” step ")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-16"))))
    assert errors.run(diagnose.main, ["-", "--config", "fineweb40m", "--json"]) == 0
    said = capsys.readouterr().out
    assert "\\u201cmine\\u201d step" in said
    assert "\\ufffd" not in said


@pytest.mark.parametrize(("every", "height", "seen"), [(100, 0.0, False), (10, 0.0, False), (10, 0.3, True)])
def test_a_steep_curve_has_no_seam_where_it_was_resumed(
    every: int, height: float, seen: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = []
    for step in range(0, 10_001, every):
        if step in (0, 5000):
            rows.append({"kind": "start", "step": step})
        loss = curve(step) + 0.02 * math.sin(step) + height * (step >= 5000)
        rows.append({"kind": "step", "step": step, "loss": loss, "seconds": 4.0})
    found = asked(capsys, "\n".join(json.dumps(row) for row in rows), "--total-steps", "20000")
    assert status(found, "data-reused-after-resume") == ("confirmed" if seen else "ruled out")
