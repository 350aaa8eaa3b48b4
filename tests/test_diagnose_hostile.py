"""Unusual and hostile logs: the command answers every one of them, and the answers are true."""

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
    """nanoGPT's output of 14,000 steps; `loss` replaces every loss."""
    lines = ["tokens per iteration will be: 524,288", "number of parameters: 40.56M"]
    for step in range(0, 14_001, 100):
        text = loss or f"{curve(step):.4f}"
        if step % 500 == 0:
            lines.append(f"step {step}: train loss {text}, val loss {text}")
        lines.append(f"iter {step}: loss {text}, time {3995 + step % 7}.11ms, mfu 20.11%")
    return "\n".join(lines) + "\n"


def table(rate: float, count: int = 28) -> str:
    rows = [f"{n},{rate},{curve(n) + 0.02:.4f},{curve(n):.4f}" for n in range(0, 500 * count + 1, 500)]
    return "step,lr,train_loss,val_loss\n" + "\n".join(rows) + "\n"


def jaxgpt_log(when: float) -> str:
    rows: list[dict[str, Any]] = []
    for step in range(0, 3000, 10):
        rows.append({"kind": "step", "step": step, "loss": curve(step), "seconds": 4.0, "time": when})
        if step % 500 == 0:
            rows.append({"kind": "eval", "step": step, "val_loss": curve(step), "time": when})
    return "\n".join(json.dumps(row) for row in rows) + "\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("jaxgpt.budget.devices.local_gpu", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(text: str) -> Any:
    raise AssertionError(f"{text} in JSON")


def diagnose_all_ways(capsys: pytest.CaptureFixture[str], text: str, *options: str) -> dict[str, Any]:
    """The answer as JSON, after the text of it has been printed and the page written too."""
    Path("out.log").write_text(text)
    for form in ([], ["--html", "page.html"], ["--json"]):
        status = errors.run(diagnose.main, ["out.log", *options, *form])
        output = capsys.readouterr()
        assert (status, output.err) == (0, "")
    report: dict[str, Any] = json.loads(output.out, parse_constant=refuse)
    return report


def status(report: dict[str, Any], name: str) -> str:
    return next(str(finding["status"]) for finding in report["findings"] if finding["id"] == name)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxgpt.diagnose", *arguments]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"} | options.pop("env", {})
    return subprocess.run(command, text=True, errors="replace", capture_output=True, env=env, timeout=120, **options)


@pytest.mark.parametrize("when", [1e300, 1e18, 2.6e11, -1e18, 12.5])
def test_an_implausible_clock_is_ignored(when: float, capsys: pytest.CaptureFixture[str]) -> None:
    report = diagnose_all_ways(capsys, jaxgpt_log(when), "--total-steps", "5000")
    assert report["eta"]["seconds"] == 8036.0
    assert report["eta"]["counted_from"] == "the file's last change"


def test_an_end_beyond_the_calendar_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    slow = re.sub(r"time \d+\.\d+ms", "time 86399000.0ms", nanogpt())
    report = diagnose_all_ways(capsys, slow.split("step 1000:")[0], "--total-steps", "5000000")
    assert report["eta"]["ends_at"] is None
    assert "beyond any calendar" in report["summary"][0]


@pytest.mark.parametrize("loss", ["nan", "inf", "1e9"])
@pytest.mark.parametrize(("since", "cause"), [(0, "recipe-or-bug"), (7000, "divergence")])
def test_a_loss_that_is_not_finite_has_no_forecast(
    loss: str, since: int, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first update training cannot have caused it: it is no divergence then."""
    start = f"step {since}:"
    text = nanogpt().split(start)[0] + start + nanogpt(loss).split(start)[1]
    report = diagnose_all_ways(capsys, text, "--config", "fineweb40m")
    causes = {name for name in ("recipe-or-bug", "divergence") if status(report, name) == "confirmed"}
    assert causes == {cause}
    assert (report["forecast"], report["scenarios"]) == (None, [])
    assert "its loss is not finite" in report["summary"][1]


def test_a_single_nan_keeps_the_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    report = diagnose_all_ways(
        capsys, re.sub(r"(iter 7000: loss) [\d.]+", r"\1 nan", nanogpt()), "--total-steps", "20000"
    )
    assert report["forecast"]["final_loss"] == pytest.approx(3.59, abs=0.02)


def test_a_rate_of_zero_is_not_taken_for_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    report = diagnose_all_ways(capsys, table(0.0), "--total-steps", "20000")
    assert status(report, "not-annealed") == "ruled out"
    assert "learning rate is 0 throughout" in report["summary"][1]


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0, 600.0])
def test_invalid_rates_are_no_evidence_of_the_schedule(rate: float, capsys: pytest.CaptureFixture[str]) -> None:
    report = diagnose_all_ways(capsys, table(rate), "--total-steps", "20000")
    assert status(report, "not-annealed") == "unknown"


def test_tokens_in_the_column_of_steps_cost_no_memory() -> None:
    rows = [f"{n * 1_000_000},{5 - n / 100}" for n in range(100)]
    history = logs.read_text("step,val_loss\n" + "\n".join(rows) + "\n", "log")
    context = resolve_context(history, Options())
    assert len(context.lr_fractions) == 10_000_000
    assert any("if it counts tokens" in text for text in context.assumed)


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
def test_absurd_numbers_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.log").write_text(nanogpt())
    assert errors.run(diagnose.main, ["out.log", *words.split()]) == 2
    assert "error[C048]" in capsys.readouterr().err


def test_a_gain_of_zero_confirms_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--schedule cosine --total-steps 20000 --batch-tokens 524288 --params 124M --corpus fineweb"
    report = diagnose_all_ways(capsys, table(6e-4), *words.split(), "--unique-tokens", "1000")
    assert status(report, "capacity-limited") != "confirmed"
    assert "inf times" not in json.dumps(report)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_without_the_symbols_gets_an_answer(folder: Path, encoding: str) -> None:
    (folder / "out.log").write_text(nanogpt())
    process = run("out.log", "--total-steps", "20000", "--verbose", env={"PYTHONIOENCODING": encoding})
    assert (process.returncode, process.stderr) == (0, "")
    assert "Assumed" in process.stdout


def test_a_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert errors.run(diagnose.main, ["-"]) == 3
    assert "standard input is closed" in capsys.readouterr().err


def test_without_matplotlib_a_page_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out.log").write_text(nanogpt())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert errors.run(diagnose.main, ["out.log", "--html", "page.html"]) == 2
    assert "error[C059]" in capsys.readouterr().err
    assert not (folder / "page.html").exists()


def test_a_name_that_is_not_unicode_has_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "\udcff.log").write_text(nanogpt())
    assert errors.run(diagnose.main, ["\udcff.log", "--html", "page.html"]) == 0
    assert "\\udcff.log" in (folder / "page.html").read_text()


def test_a_log_on_standard_input_may_be_utf_16(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = nanogpt().replace("step ", "“mine” step ")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-16"))))
    assert errors.run(diagnose.main, ["-", "--config", "fineweb40m", "--json"]) == 0
    stdout = capsys.readouterr().out
    assert "\\u201cmine\\u201d step" in stdout
    assert "\\ufffd" not in stdout


@pytest.mark.parametrize(("every", "height", "is_visible"), [(100, 0.0, False), (10, 0.0, False), (10, 0.3, True)])
def test_a_steep_curve_has_no_jump_at_a_resume(
    every: int, height: float, is_visible: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = []
    for step in range(0, 10_001, every):
        if step in (0, 5000):
            rows.append({"kind": "start", "step": step})
        loss = curve(step) + 0.02 * math.sin(step) + height * (step >= 5000)
        rows.append({"kind": "step", "step": step, "loss": loss, "seconds": 4.0})
    report = diagnose_all_ways(capsys, "\n".join(json.dumps(row) for row in rows), "--total-steps", "20000")
    assert status(report, "data-reused-after-resume") == ("confirmed" if is_visible else "ruled out")
