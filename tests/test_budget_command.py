"""The command: what it loads, prints, refuses and writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from jaxgpt import budget, errors
from jaxgpt.config.files import find_config

pytestmark = pytest.mark.usefixtures("planner_workspace")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "jaxgpt.budget", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--hours", "20"], ["--help"]])
def test_planner_loads_neither_jax_nor_matplotlib(arguments: list[str]) -> None:
    done = run("fineweb40m", *arguments)
    assert done.returncode == 0
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "jaxgpt" in loaded
    assert not loaded & {"jax", "jaxlib", "flax", "optax", "orbax", "matplotlib", "scipy"}


def test_piped_text_is_plain_and_80_columns_wide() -> None:
    text = run("--config", "gpt2_124m").stdout
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "[eliebak/modded-nanogpt, README]" in text.replace("\n", " ")  # no source is taken for markup
    for part in (
        "123.59M parameters",
        "By length",
        "Memory",
        "irreducible",
        "nearest published runs",
        "Recommendations",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--price", "-1"], "C038", ["--price", "-1"]),
        (["--price", "nan"], "C038", ["nan"]),
        (["--price", "cheap"], "C038", ["cheap"]),
        (["--gpu", "rtx4071"], "C037", ["rtx4071", "RTX 4070"]),
        (["--lengths", "0"], "C038", ["--lengths", "0"]),
        (["--lengths", "10", "-5"], "C038", ["-5"]),
        (["--lengths", "1.5"], "C038", ["1.5"]),
        (["--lengths", ""], "C038", ["--lengths"]),
        (["--unique-tokens", ""], "C038", ["--unique-tokens"]),
        (["--claim", ""], "C038", ["--claim"]),
        (["--unique-tokens", "0"], "C038", ["0"]),
        (["--unique-tokens", "-3e9"], "C038", ["--unique-tokens", "-3000000000"]),
        (["--unique-tokens", "512"], "D013", ["512", "1,025"]),
        (["--corpus", "finweb"], "C040", ["finweb", "fineweb"]),
        (["--json", "--html", "x.html"], "C039", ["--json", "--html"]),
        (["--hours", "2", "--kwh", "3"], "C039", ["--hours", "--kwh"]),
        (["--lengths", "5", "--hours", "3"], "C039", ["--lengths", "--hours"]),
        (["--unique-tokens", "1e9", "--data", "."], "C039", ["--unique-tokens", "--data"]),
        (["--write-config", "x.py"], "C039", ["--write-config"]),
        (["--html", "nowhere/x.html"], "C041", ["nowhere"]),
        (["--html", "."], "C041", ["folder"]),
        (["--html", __file__], "C041", ["not a report"]),
        (["--calibrate", "nothing"], "C043", ["nothing"]),
        (["--hours", "0.001"], "C044", ["0.001", "RTX 4070"]),
        (["--hours", "0"], "C038", ["--hours", "0"]),
        (["--target-loss", "1.2"], "C044", ["1.2"]),
        (["--target-loss", "inf"], "C038", ["inf"]),
        (["--pilot", "soon"], "C038", ["soon"]),
        (["--data", "nowhere"], "D002", ["nowhere"]),
        (["--actual", "nowhere"], "C024", ["nowhere"]),
        (["--model.n-layer", "0"], "C009", ["0"]),
        (["--itres", "5"], "C005", ["itres"]),
    ],
)
def test_invalid_options_are_refused_with_a_sentence(
    arguments: list[str], code: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert errors.run(budget.main, ["fineweb40m", *arguments]) == errors.EXIT_STATUS[code[0]]
    told = capsys.readouterr()
    assert told.err.startswith(f"error[{code}]: ")
    for word in words:
        assert word in told.err
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


def test_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    odd = tmp_path / "<b>odd&.py"
    odd.write_text(find_config("fineweb40m").read_text())
    page = tmp_path / "plan.html"
    assert errors.run(budget.main, ["--config", str(odd), "--html", str(page)]) == 0
    text = page.read_text()
    assert "<b>odd" not in text
    assert "&lt;b&gt;odd&amp;" in text
    assert "<svg" in text
    assert "http-equiv" in text
    assert "src=" not in text


def test_cpu_has_no_step_time_until_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(budget.main, ["fineweb40m", "--gpu", "cpu", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["step_time"] == {}
    assert values["rows"][0]["seconds"] is None
    assert any("--measure" in text for text in values["warnings"])
