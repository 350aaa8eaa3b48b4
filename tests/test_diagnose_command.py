"""The command: what it loads, prints and refuses; its JSON is what docs/diagnose.md says it is."""

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

from jaxgpt import cli, diagnose, errors
from jaxgpt.diagnose import backtest, messages
from jaxgpt.diagnose.backtest import Backtest
from jaxgpt.diagnose.finding import IDS
from jaxgpt.diagnose.forecast.gaussian_mixture import gaussian_forecast
from jaxgpt.runs.folder import RunFolder

ONE_LINE = "iter 100: loss 3.9012, time 3995.11ms, mfu 20.11%\n"
STATUS = {"confirmed", "unknown", "ruled out"}


def nanogpt(done: int = 14_000, name: str = "") -> str:
    """What nanoGPT prints of the reference run: a smooth fall, evaluations every 500 steps, a line every 100."""
    lines = ["tokens per iteration will be: 524,288", "number of parameters: 40.56M", *([name] if name else [])]
    for step in range(0, done + 1, 100):
        loss = 3.2 + 7.7 * (1 + step / 40) ** -0.48
        if step % 500 == 0:
            lines.append(f"step {step}: train loss {loss + 0.03:.4f}, val loss {loss:.4f}")
        extra = 60_000 * (step % 500 == 0) + 45_000 * (step == 0)
        lines.append(f"iter {step}: loss {loss + 0.02 * math.sin(step):.4f}, time {3995 + step % 7 + extra}.11ms")
    return "\n".join(lines) + "\n"


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxgpt.budget.devices.local_gpu", lambda: None)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out.log"
    path.write_text(nanogpt())
    return path


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert errors.run(diagnose.main, arguments) == 0
    return capsys.readouterr().out


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_three_sentences_come_first(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = answered(capsys, str(log), "--config", "fineweb40m")
    opening = " ".join(text.split("\n\n")[0].split())
    assert re.search(r"It ends in 6 h \d+ min \d+ s \(80 %: .* to .*\), on .* at \d\d:\d\d", opening)
    assert re.search(r"At 20,000 steps it will end at a validation loss of 3\.\d{3} \(80 %: 3\.\d+ to 3\.\d+", opening)
    assert "is broken" in opening or "is wrong" in opening
    for part in ("When", "Where", "Why", "Ruled out", "Assumed", "from now", "evaluation and saving"):
        assert part in text


def test_every_id_is_answered_once(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(messages.MEANING) == set(IDS)
    found = json.loads(answered(capsys, str(log), "--config", "fineweb40m", "--json"))
    assert sorted(finding["id"] for finding in found["findings"]) == sorted(IDS)


def test_one_line_is_enough_for_a_time_and_not_for_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ONE_LINE.encode())))
    text = " ".join(answered(capsys, "-", "--total-steps", "6000").split())
    assert "It ends in 6 h 32 min 51 s" in text
    assert "this rests on one line with a time" in text
    assert "Where it ends cannot be told: 0 validation losses" in text
    assert "What is wrong cannot be told yet" in text
    assert "too few lines have a time" in text


def test_evidence_shows_lines_of_the_log_with_their_numbers(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(answered(capsys, str(log), "--config", "fineweb40m", "--json"))
    held = log.read_text().splitlines()
    quoted = [line for v in found["findings"] for condition in v["conditions"] for line in condition["lines"]]
    assert quoted
    for line in quoted:
        assert line["text"] == held[line["number"] - 1]


def test_piped_text_is_plain_and_80_columns_wide_but_for_commands(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write_text(nanogpt(name="x" * 500).replace("\n", " " + "y" * 300 + "\n"))
    text = answered(capsys, str(log), "--config", "fineweb40m")
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert all(line.strip().startswith(("python -m", "jaxgpt ")) for line in wide)


def test_a_log_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "o\x1b[31m.log"
    path.write_text(nanogpt().replace("\n", " \x1b[2J\x1b]0;owned\x07\n"))
    text = answered(capsys, str(path), "--config", "fineweb40m")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "line " in text  # one of these lines is quoted


def test_a_run_that_is_done_says_so(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text(nanogpt(20_000))
    text = " ".join(answered(capsys, str(log), "--config", "fineweb40m").split())
    assert "It is done: 20,001 steps" in text
    assert "it ended at a validation loss of" in text


# --- JSON ------------------------------------------------------------------------------------------------------------

NUMBER, TEXT, WHOLE, TRUTH = (int, float), str, int, bool
FORECAST = dict.fromkeys(("final_loss", "low80", "high80", "low95", "high95", "sd"), NUMBER)
ADVICE = {"what": TEXT, "command": TEXT, "gain": (NUMBER, None), "low": (NUMBER, None), "high": (NUMBER, None)}
LINE = {"number": WHOLE, "text": TEXT}
EVIDENCE = {"question": TEXT, "evidence": TEXT, "result": (TRUTH, None), "missing": TEXT, "lines": [LINE]}
CLAIM = {"claim": TEXT, "steps": WHOLE, "low": NUMBER, "high": NUMBER, "expected": FORECAST} | {
    "possible": TRUTH,
    "reason": TEXT,
}
PROOF = {"run": TEXT, "step": WHOLE, "steps": WHOLE, "forecast": FORECAST, "observed": NUMBER, "error": NUMBER} | {
    "inside80": TRUTH,
    "inside95": TRUTH,
    "time": NUMBER,
}
SCHEMA = {
    "version": WHOLE,
    "source": TEXT,
    "format": TEXT,
    "steps_done": WHOLE,
    "total_steps": (WHOLE, None),
    "summary": [TEXT],
    "eta": (
        {
            "done": TRUTH,
            "steps_left": WHOLE,
            "seconds": NUMBER,
            "low": NUMBER,
            "high": NUMBER,
            "arrives": TEXT,
            "counted_from": TEXT,
            "pace": ({"seconds": NUMBER, "low": NUMBER, "high": NUMBER, "steps_used": WHOLE}, None),
            "parts": [{"name": TEXT, "spent": (NUMBER, None), "left": NUMBER}],
            "trend": (
                {
                    "kind": TEXT,
                    "since": WHOLE,
                    "before": NUMBER,
                    "after": NUMBER,
                    "chance": NUMBER,
                    "slope": NUMBER,
                    "change": NUMBER,
                },
                None,
            ),
            "scenarios": [{"what": TEXT, "seconds": NUMBER}],
            "notes": [TEXT],
        },
        None,
    ),
    "forecast": (FORECAST, None),
    "scenarios": [{"what": TEXT, "steps": WHOLE, "command": TEXT} | FORECAST],
    "findings": [{"id": TEXT, "status": TEXT, "conditions": [EVIDENCE], "recommendations": [ADVICE]}],
    "recommendations": [ADVICE],
    "claims": [CLAIM],
    "backtests": [PROOF],
    "assumed": [TEXT],
    "missing": [TEXT],
    "notes": [TEXT],
}


def check(value: Any, schema: Any, place: str = "$") -> None:
    """Fails where `value` is not what the schema says: no key more, none less, every type as it stands there."""
    if isinstance(schema, tuple) and None in schema:
        if value is not None:
            check(value, schema[0], place)
    elif isinstance(schema, dict):
        assert isinstance(value, dict), place
        assert value.keys() == schema.keys(), place
        for name, part in schema.items():
            check(value[name], part, f"{place}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list), place
        for number, item in enumerate(value):
            check(item, schema[0], f"{place}[{number}]")
    else:
        assert isinstance(value, schema), place
        assert isinstance(value, bool) is (schema is TRUTH), place
        assert not isinstance(value, float) or math.isfinite(value), place


def refuse(text: str) -> Any:
    raise AssertionError(f"{text} is no JSON")


LOGS = {
    "a long run": nanogpt(),
    "a run that is done": nanogpt(20_000),
    "one line": ONE_LINE,
    "NaN": nanogpt(6000) + "iter 6100: loss nan, time 3995.11ms\nstep 6500: train loss nan, val loss nan\n",
    "no time": "step,val_loss\n2000,4.05\n5000,3.73\n8000,3.64\n11000,3.6\n",
    "one evaluation": "step 500: train loss 5.1, val loss 5.2\n",
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("options", [[], ["--config", "fineweb40m"], ["--total-steps", "20000"]])
def test_json_is_as_documented(
    name: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.write_text(LOGS[name])
    found = json.loads(answered(capsys, str(path), "--json", *options), parse_constant=refuse)
    check(found, SCHEMA)
    assert {finding["status"] for finding in found["findings"]} <= STATUS
    for forecast in [found["forecast"], *found["scenarios"]]:
        if forecast:
            assert forecast["low95"] <= forecast["low80"] <= forecast["final_loss"] <= forecast["high80"]
            assert forecast["high80"] <= forecast["high95"]


def test_every_field_of_the_json_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "diagnose.md").read_text()

    def names(schema: Any) -> set[str]:
        if isinstance(schema, dict):
            return set(schema).union(*(names(part) for part in schema.values()))
        return set().union(*(names(part) for part in schema)) if isinstance(schema, list | tuple) else set()

    assert not {name for name in names(SCHEMA) if f"`{name}`" not in text}


def test_a_claim_is_judged(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(answered(capsys, str(log), "--config", "fineweb40m", "--target-loss", "2.5").split())
    assert re.search(r"20,000 steps end at 2\.5: impossible; .* that is out of reach", text)
    found = json.loads(answered(capsys, str(log), "--config", "fineweb40m", "--target-loss", "2.5", "--json"))
    assert [one["possible"] for one in found["claims"] if one["high"] == one["low"] == 2.5] == [False]


@pytest.fixture
def run_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recorded run, by its name under runs/."""
    shutil.copytree(ROOT / "tests" / "planted" / "clean", tmp_path / "runs" / "clean")
    monkeypatch.chdir(tmp_path)
    return "clean"


def test_proofs_that_are_kept_with_a_run_are_told(run_of_ours: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = Backtest(run="p", step=200, steps=20, forecast=gaussian_forecast(3.0, 0.01), observed=3.005, time=1.75e9)
    backtest.append_backtest(RunFolder(Path("runs") / run_of_ours), made)
    found = json.loads(answered(capsys, run_of_ours, "--json"), parse_constant=refuse)
    check(found, SCHEMA)
    assert [one["inside80"] for one in found["backtests"]] == [True]
    assert "observed 3.0050" in " ".join(answered(capsys, run_of_ours).split())


# --- what it loads and refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--help"]])
def test_neither_jax_nor_matplotlib_is_loaded(arguments: list[str], log: Path) -> None:
    told = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_module('jaxgpt.diagnose', run_name='__main__')\n"
    told += "except SystemExit as e: assert not e.code\nprint(sorted(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", told, "diagnose", str(log), "--config", "fineweb40m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in re.findall(r"'([\w.]+)'", done.stderr)}
    assert "jaxgpt" in loaded
    assert not loaded & {"jax", "jaxlib", "flax", "optax", "orbax", "matplotlib", "scipy"}


def test_it_is_a_verb_of_jaxgpt(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(cli.dispatch, ["diagnose", str(log), "--config", "fineweb40m"]) == 0
    assert "It ends in" in capsys.readouterr().out
    assert "diagnose" in cli.usage()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--json", "--html", "x.html"], "C053", ["--json", "--html"]),
        (["--html", "nowhere/x.html"], "C041", ["nowhere"]),
        (["--html", "out.log"], "C041", ["no page"]),
        (["--total-steps", "0"], "C048", ["--total-steps"]),
        (["--schedule", "cosin"], "C048", ["cosin", "cosine"]),
        (["--config", "nothing"], "C001", ["nothing"]),
        (["--itres", "5"], "C006", ["--itres"]),
        (["--backtest"], "C056", ["out.log"]),
    ],
)
def test_nonsense_is_refused_with_a_sentence(
    arguments: list[str], code: str, words: list[str], log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = log.read_text()
    assert errors.run(diagnose.main, [str(log), *arguments]) == errors.EXIT_STATUS[code[0]]
    told = capsys.readouterr()
    assert told.err.startswith(f"error[{code}]: ")
    for word in words:
        assert word in told.err
    assert told.out == ""
    assert log.read_text() == before


@pytest.mark.parametrize("content", [b"", b"hello\nworld\n", b"\x00\xff\xfe" * 100, b"PK\x03\x04" + bytes(range(256))])
def test_a_log_that_is_none_is_an_error_of_the_data(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.log"
    path.write_bytes(content)
    assert errors.run(diagnose.main, [str(path)]) == 3
    assert re.match(r"error\[D04\d\]: .*some\.log", capsys.readouterr().err)


def waiting(pipe: int) -> int:
    """Bytes in a pipe that nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_ctrl_c_while_it_waits_for_a_log_is_one_word(tmp_path: Path) -> None:
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background shell's does not
    code = f"{heeds}; import sys, runpy; sys.argv[1:] = ['-']; runpy.run_module('jaxgpt.diagnose', run_name='__main__')"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdin
    process.stdin.write(ONE_LINE)
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while waiting(process.stdin.fileno()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert told == "interrupted\n"
    assert process.returncode == errors.INTERRUPTED
