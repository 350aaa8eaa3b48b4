"""The command: what it loads, prints and refuses; its JSON follows docs/diagnose.md."""

import fcntl
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers.diagnose_logs import LOGS, ONE_LINE, answered, nanogpt

from jaxgpt import cli, diagnose, errors
from jaxgpt.diagnose import backtest, messages
from jaxgpt.diagnose.backtest import Backtest
from jaxgpt.diagnose.checks import CHECKS
from jaxgpt.diagnose.forecast.gaussian_mixture import gaussian_forecast
from jaxgpt.runs.folder import RunFolder

STATUS = {"confirmed", "unknown", "ruled out"}


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxgpt.budget.devices.local_gpu", lambda: None)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out.log"
    path.write_text(nanogpt())
    return path


# --- what it prints --------------------------------------------------------------------------------------------------


def test_the_main_answers_come_first(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = answered(capsys, str(log), "--config", "fineweb40m", "--verbose")
    opening = " ".join(text.split("\n\n")[0].split())
    assert re.search(r"It ends in about 6 h \d+ min \(80 %: .* to .*\), on .* at \d\d:\d\d", opening)
    assert re.search(r"At 20,000 steps it will end at a validation loss of 3\.\d{3} \(80 %: 3\.\d+ to 3\.\d+", opening)
    assert "is broken" in opening or "is wrong" in opening
    for part in ("When", "Where", "Why", "Ruled out", "Assumed", "from now", "evaluation and saving"):
        assert part in text


def test_every_check_has_one_finding(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(messages.MEANINGS) == set(CHECKS)
    report = json.loads(answered(capsys, str(log), "--config", "fineweb40m", "--json"))
    assert sorted(finding["id"] for finding in report["findings"]) == sorted(CHECKS)


def test_one_line_gives_an_eta_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ONE_LINE.encode())))
    text = " ".join(answered(capsys, "-", "--total-steps", "6000").split())
    assert "It ends in about 6 h 30 min (80 %: 5 h 50 min to 8 h 10 min)" in text
    assert "There is no forecast of its validation loss: it needs 2 validation losses" in text
    assert "Too early to tell whether something is wrong" in text
    assert len(text.split()) < 120


def test_the_first_screen_answers(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--verbose` the answers and the first commands fit on a terminal of 24 lines."""
    text = answered(capsys, str(log), "--config", "fineweb40m")
    assert sum(max(math.ceil(len(line) / 80), 1) for line in text.splitlines()) <= 23
    assert "It ends in about" in text
    assert "python -m jaxgpt.train" in text
    assert "Ruled out" not in text
    assert "--verbose shows the evidence" in text


def test_the_time_of_steps_needs_no_length(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "log").write_text(ONE_LINE)
    text = " ".join(answered(capsys, str(tmp_path / "log")).split())
    assert "When it ends is unknown without the length of the run (--total-steps)" in text
    assert "1,000 steps take about 1 h 5 min (3.995 s per step)" in text


def test_stated_facts_are_not_asked_for(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """nanoGPT's output states the size of the model and the tokens per step."""
    options = ("--total-steps", "20000", "--gpu", "4070", "--json")
    missing = " ".join(json.loads(answered(capsys, str(log), *options))["missing"])
    assert "(--unique-tokens)" in missing
    for option in ("--params", "--batch-tokens", "--gpu", "--total-steps"):
        assert option not in missing


def test_evidence_quotes_lines_of_the_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(answered(capsys, str(log), "--config", "fineweb40m", "--json"))
    lines = log.read_text().splitlines()
    quoted = [line for v in report["findings"] for condition in v["conditions"] for line in condition["lines"]]
    assert quoted
    for line in quoted:
        assert line["text"] == lines[line["number"] - 1]


def test_piped_text_is_plain_and_80_columns_wide(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text(nanogpt(name="x" * 500).replace("\n", " " + "y" * 300 + "\n"))
    text = answered(capsys, str(log), "--config", "fineweb40m", "--verbose")
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert all(line.strip().startswith(("python -m", "jaxgpt ")) for line in wide)


def test_a_log_cannot_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "o\x1b[31m.log"
    path.write_text(nanogpt().replace("\n", " \x1b[2J\x1b]0;owned\x07\n"))
    text = answered(capsys, str(path), "--config", "fineweb40m", "--verbose")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "line " in text  # one of these lines is quoted


def test_a_finished_run_is_reported_as_done(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text(nanogpt(20_000))
    text = " ".join(answered(capsys, str(log), "--config", "fineweb40m").split())
    assert "It is done: 20,000 steps" in text
    assert re.search(r"It ended at a validation loss of 3\.\d{3,4}, measured at step 20,000\.", text)


# --- JSON ------------------------------------------------------------------------------------------------------------

NUMBER, TEXT, INTEGER, BOOLEAN = (int, float), str, int, bool
FORECAST = dict.fromkeys(("final_loss", "low80", "high80", "low95", "high95", "sd"), NUMBER)
FINAL_LOSS = {name: NUMBER if name == "final_loss" else (NUMBER, None) for name in FORECAST}
RECOMMENDATION = {
    "action": TEXT,
    "command": TEXT,
    "gain": (NUMBER, None),
    "low": (NUMBER, None),
    "high": (NUMBER, None),
}
LINE = {"number": INTEGER, "text": TEXT}
CONDITION = {"question": TEXT, "evidence": TEXT, "result": (BOOLEAN, None), "missing": TEXT, "lines": [LINE]}
TARGET = {"loss": NUMBER, "expected": (FORECAST, None), "possible": BOOLEAN, "reason": TEXT}
BACKTEST = {
    "run": TEXT,
    "step": INTEGER,
    "steps": INTEGER,
    "forecast": FORECAST,
    "observed": NUMBER,
    "error": NUMBER,
} | {
    "inside80": BOOLEAN,
    "inside95": BOOLEAN,
    "time": NUMBER,
}
SCHEMA = {
    "version": INTEGER,
    "source": TEXT,
    "format": TEXT,
    "steps_done": INTEGER,
    "total_steps": (INTEGER, None),
    "summary": [TEXT],
    "stopped_early": (TEXT, None),
    "eta": (
        {
            "done": BOOLEAN,
            "steps_left": INTEGER,
            "seconds": NUMBER,
            "low": NUMBER,
            "high": NUMBER,
            "ends_at": TEXT,
            "counted_from": TEXT,
            "step_time": ({"seconds": NUMBER, "low": NUMBER, "high": NUMBER, "steps_used": INTEGER}, None),
            "breakdown": [{"name": TEXT, "spent": (NUMBER, None), "remaining": NUMBER}],
            "trend": (
                {
                    "kind": TEXT,
                    "since": INTEGER,
                    "before": NUMBER,
                    "after": NUMBER,
                    "p_value": NUMBER,
                    "slope": NUMBER,
                    "change": NUMBER,
                },
                None,
            ),
            "scenarios": [{"description": TEXT, "seconds": NUMBER}],
            "notes": [TEXT],
        },
        None,
    ),
    "forecast": (FINAL_LOSS, None),
    "scenarios": [{"description": TEXT, "steps": INTEGER, "command": TEXT} | FORECAST],
    "findings": [{"id": TEXT, "status": TEXT, "conditions": [CONDITION], "recommendations": [RECOMMENDATION]}],
    "recommendations": [RECOMMENDATION],
    "target": (TARGET, None),
    "backtests": [BACKTEST],
    "assumed": [TEXT],
    "missing": [TEXT],
    "notes": [TEXT],
    "report": [{"title": TEXT, "blocks": [dict]}],
}


def check(value: Any, schema: Any, path: str = "$") -> None:
    """Fails where `value` does not match the schema: exactly its keys, each of its type."""
    if isinstance(schema, tuple) and None in schema:
        if value is not None:
            check(value, schema[0], path)
    elif isinstance(schema, dict):
        assert isinstance(value, dict), path
        assert value.keys() == schema.keys(), path
        for name, part in schema.items():
            check(value[name], part, f"{path}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list), path
        for number, item in enumerate(value):
            check(item, schema[0], f"{path}[{number}]")
    else:
        assert isinstance(value, schema), path
        assert isinstance(value, bool) is (schema is BOOLEAN), path
        assert not isinstance(value, float) or math.isfinite(value), path


def refuse(text: str) -> Any:
    raise AssertionError(f"{text} is not JSON")


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("options", [[], ["--config", "fineweb40m"], ["--total-steps", "20000"]])
def test_json_is_as_documented(
    name: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.write_text(LOGS[name])
    report = json.loads(answered(capsys, str(path), "--json", *options), parse_constant=refuse)
    check(report, SCHEMA)
    assert {finding["status"] for finding in report["findings"]} <= STATUS
    for forecast in [report["forecast"], *report["scenarios"]]:
        if forecast and forecast["sd"] is not None:  # of a run that is over, the loss is measured
            assert forecast["low95"] <= forecast["low80"] <= forecast["final_loss"] <= forecast["high80"]
            assert forecast["high80"] <= forecast["high95"]


def test_every_json_field_is_documented() -> None:
    text = (ROOT / "docs" / "diagnose.md").read_text()

    def names(schema: Any) -> set[str]:
        if isinstance(schema, dict):
            return set(schema).union(*(names(part) for part in schema.values()))
        return set().union(*(names(part) for part in schema)) if isinstance(schema, list | tuple) else set()

    assert not {name for name in names(SCHEMA) if f"`{name}`" not in text}


def test_a_target_loss_is_compared_with_the_forecast(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(answered(capsys, str(log), "--config", "fineweb40m", "--target-loss", "2.5").split())
    assert re.search(r"2\.5: impossible; a run of 20,000 steps ends at 3\.\d+ .* that is out of reach", text)
    report = json.loads(answered(capsys, str(log), "--config", "fineweb40m", "--target-loss", "2.5", "--json"))
    assert (report["target"]["loss"], report["target"]["possible"]) == (2.5, False)


@pytest.fixture
def recorded_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recorded run, by its name under runs/."""
    shutil.copytree(ROOT / "tests" / "planted" / "clean", tmp_path / "runs" / "clean")
    monkeypatch.chdir(tmp_path)
    return "clean"


def test_backtests_of_a_run_are_reported(recorded_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = Backtest(run="p", step=200, steps=20, forecast=gaussian_forecast(3.0, 0.01), observed=3.005, time=1.75e9)
    backtest.append_backtest(RunFolder(Path("runs") / recorded_run), made)
    report = json.loads(answered(capsys, recorded_run, "--json"), parse_constant=refuse)
    check(report, SCHEMA)
    assert [one["inside80"] for one in report["backtests"]] == [True]
    assert "observed 3.0050" in " ".join(answered(capsys, recorded_run).split())


# --- what it loads and refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--help"]])
def test_jax_and_matplotlib_are_not_loaded(arguments: list[str], log: Path) -> None:
    code = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_module('jaxgpt.diagnose', run_name='__main__')\n"
    code += "except SystemExit as e: assert not e.code\nprint(sorted(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", code, "diagnose", str(log), "--config", "fineweb40m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in re.findall(r"'([\w.]+)'", done.stderr)}
    assert "jaxgpt" in loaded
    assert not loaded & {"jax", "jaxlib", "flax", "optax", "orbax", "matplotlib", "scipy"}


def test_it_is_a_command_of_jaxgpt(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(cli.dispatch, ["diagnose", str(log), "--config", "fineweb40m"]) == 0
    assert "It ends in" in capsys.readouterr().out
    assert "diagnose" in cli.usage()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--json", "--html", "x.html"], "C053", ["--json", "--html"]),
        (["--html", "nowhere/x.html"], "C041", ["nowhere"]),
        (["--html", "out.log"], "C041", ["not a report"]),
        (["--total-steps", "0"], "C048", ["--total-steps"]),
        (["--schedule", "cosin"], "C048", ["cosin", "cosine"]),
        (["--config", "nothing"], "C001", ["nothing"]),
        (["--itres", "5"], "C006", ["--itres"]),
        (["--backtest"], "C056", ["out.log"]),
    ],
)
def test_invalid_options_are_refused(
    arguments: list[str], code: str, words: list[str], log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = log.read_text()
    assert errors.run(diagnose.main, [str(log), *arguments]) == errors.EXIT_STATUS[code[0]]
    output = capsys.readouterr()
    assert output.err.startswith(f"error[{code}]: ")
    for word in words:
        assert word in output.err
    assert output.out == ""
    assert log.read_text() == before


@pytest.mark.parametrize("content", [b"", b"hello\nworld\n", b"\x00\xff\xfe" * 100, b"PK\x03\x04" + bytes(range(256))])
def test_a_file_that_is_not_a_log_is_a_data_error(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.log"
    path.write_bytes(content)
    assert errors.run(diagnose.main, [str(path)]) == 3
    assert re.match(r"error\[D04\d\]: .*some\.log", capsys.readouterr().err)


def waiting(pipe: int) -> int:
    """Bytes in a pipe that nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_ctrl_c_while_waiting_for_a_log(tmp_path: Path) -> None:
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background shell's does not
    code = (
        f"{handler}; import sys, runpy; sys.argv[1:] = ['-']; runpy.run_module('jaxgpt.diagnose', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdin
    process.stdin.write(ONE_LINE)
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while waiting(process.stdin.fileno()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert stderr == "interrupted\n"
    assert process.returncode == errors.INTERRUPTED
