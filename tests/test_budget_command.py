"""The command: what it loads, prints, refuses and writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.manifests import write_manifest

from jaxgpt import budget, errors
from jaxgpt.budget import options
from jaxgpt.budget.devices import DEVICES
from jaxgpt.budget.suggestion import suggest_run
from jaxgpt.config.files import find_config, load_config

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
    text = run("--config", "gpt2_124m", "--verbose").stdout
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


@pytest.mark.parametrize("arguments", [[], ["--hours", "20"], ["--unique-tokens", "23.5e6"]])
def test_first_screen_begins_with_the_answer(arguments: list[str]) -> None:
    lines = run("--config", "fineweb40m", "--gpu", "RTX 4070", *arguments).stdout.rstrip().splitlines()
    assert len(lines) <= 24
    text = " ".join(line.strip() for line in lines)
    answer = text[text.index("Train ") :]
    assert text.index("Train ") < 40
    assert re.search(r"Train (a \d+M model for )?[\d,]+ steps[,:].* about \d+ (h|min).* on RTX 4070 \(", answer[:100])
    if "--unique-tokens" in arguments:  # 446 epochs
        assert "Train 8" in text.split("Recommendations")[1]
        return
    assert re.search(r"validation loss \d\.\d\d \(\d\.\d\d to \d\.\d\d\)", answer[:180])
    assert "--verbose" in lines[-1] + lines[-2]


def test_signs_and_plurals_are_written_as_in_prose() -> None:
    text = run("--config", "fineweb40m", "--hours", "1", "--unique-tokens", "23.5e6", "--verbose").stdout
    assert "1 hour" in text
    assert "1 hours" not in text
    assert not re.search("[−+]-|--?\\d\\.\\d", text)


def test_json_begins_with_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(budget.main, ["fineweb40m", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert next(iter(values)) == "summary"
    assert values["summary"][0].startswith("Train 20,000 steps: about ")


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


def test_step_time_of_a_cpu_is_rough_until_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(budget.main, ["quickstart", "--gpu", "cpu", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    time = values["step_time"]["jaxgpt"]
    assert time["seconds_high"] >= 4 * time["seconds_low"] > 0
    assert "assumed" in time["basis"]
    assert any("--measure" in text for text in values["warnings"])


def test_data_folder_determines_corpus_vocabulary_and_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config that is written for a folder trains on that folder."""
    write_manifest(tmp_path / "novels", 3_000_000, 4000)
    goal = ["--data", "novels", "--hours", "1", "--write-config", "mine.py", "--json"]
    assert errors.run(budget.main, ["fineweb40m", *goal]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["data"]["corpus"], values["data"]["unique"]) == ("unknown", 3_000_000)
    written = load_config(tmp_path / "mine.py")
    assert (written.data.path, written.data.corpus, written.model.vocab_size) == ("novels", "", 4032)
    write_manifest(tmp_path / "c4", 3_000_000_000)
    assert errors.run(budget.main, ["fineweb40m", "--data", "c4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["corpus"] == "c4"


def test_data_folder_alone_gets_a_suggested_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(tmp_path / "novels", 3_000_000, 4000)
    assert errors.run(budget.main, ["--data", "novels", "--gpu", "H100"]) == 0
    out = capsys.readouterr().out
    assert "on H100" in out
    suggested = suggest_run(Path("novels"), DEVICES["H100"])
    assert suggested
    assert re.search(rf"M model for {suggested.config.run.steps:,} steps: about 2 min .*on H100", out)
    assert suggested.command() in out
    assert errors.run(budget.main, ["--gpu", "H100"]) == errors.EXIT_STATUS["C"]


@pytest.mark.parametrize("option", [["--measure"], ["--pilot", "10m"]])
def test_measurement_describes_the_machine_that_it_ran_on(option: list[str]) -> None:
    inputs = options.read(["quickstart", *option]).inputs
    assert inputs.device is None
    assert "this machine's CPU" in inputs.device_reason
    assert options.read(["fineweb40m"]).inputs.device is DEVICES["RTX 4070"]
    with pytest.raises(errors.ConfigError, match="this machine's CPU, and --gpu names H100") as caught:
        options.read(["quickstart", *option, "--gpu", "H100"])
    assert caught.value.code == "C039"
