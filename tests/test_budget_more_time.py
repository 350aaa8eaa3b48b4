"""More time never yields a worse plan, and the answer names the run to train."""

import json
import re
from pathlib import Path

import pytest
from helpers.manifests import write_manifest

from jaxgpt import budget, errors
from jaxgpt.budget import options, search
from jaxgpt.budget.devices import DEVICES
from jaxgpt.budget.search import Goal, SearchResult
from jaxgpt.config.files import load_config

pytestmark = pytest.mark.usefixtures("planner_workspace")


def found(*argv: str) -> SearchResult:
    request = options.read(["fineweb40m", "--gpu", "RTX 4070", *argv])
    assert request.goal
    return search.best_run(request.inputs, request.goal)


@pytest.mark.parametrize(("unique", "gpu"), [(3e5, "H100"), (23.5e6, "RTX 4070"), (3e8, "H100"), (1e12, "RTX 4070")])
def test_more_hours_never_end_higher(unique: float, gpu: str) -> None:
    """From minutes to days, in steps that are no multiples of each other."""
    inputs = options.read(["fineweb40m", "--gpu", gpu, "--unique-tokens", str(unique), "--hours", "1"]).inputs
    hours = [0.1 * 2.17**power for power in range(9)]
    losses = [search.best_run(inputs, Goal(hours=each)).best.comparable_loss for each in hours]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] or unique < 1e6


@pytest.mark.parametrize("goal", [("--hours", "20"), ("--kwh", "10")])
def test_unused_time_is_named(goal: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fineweb40m", "--gpu", "RTX 4070", *goal]
    assert errors.run(budget.main, [*arguments, "--unique-tokens", "23.5e6", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert re.search(r"The other \d+\.?\d* (h|kWh) are not used: after \d+ epochs .* tokens per parameter", summary[2])
    assert errors.run(budget.main, [*arguments, "--unique-tokens", "1e12", "--json"]) == 0
    assert "are not used" not in str(json.loads(capsys.readouterr().out)["summary"])


def test_first_line_names_the_run_to_train(capsys: pytest.CaptureFixture[str]) -> None:
    """20,000 steps would read 23.5M tokens 446 times; the loss is lowest at 20 epochs, 896 steps."""
    arguments = ["fineweb40m", "--gpu", "RTX 4070", "--unique-tokens", "23.5e6", "--json"]
    assert errors.run(budget.main, arguments) == 0
    values = json.loads(capsys.readouterr().out)
    answer = re.match(
        r"Train (\d+) steps, not 20,000: about .* on RTX 4070 .*, validation loss 4\.2", values["summary"][0]
    )
    assert answer
    advised = values["recommendation"]["advised"]
    assert int(answer[1]) == advised["total_steps"]
    assert advised["loss"] < min(row["loss"] for row in values["rows"])
    assert "20 epochs" in values["summary"][1]


def test_planned_run_has_no_unneeded_dropout(tmp_path: Path) -> None:
    """Fewer than four epochs need none; the config's own stays where text is repeated more often."""
    dropout = ["--model.dropout", "0.1"]
    assert found(*dropout, "--hours", "2", "--unique-tokens", "3.68e9").best.config.model.dropout == 0.0
    assert found(*dropout, "--hours", "2", "--unique-tokens", "23.5e6").best.config.model.dropout == 0.1


def test_written_config_reads_the_folder_of_data(tmp_path: Path) -> None:
    write_manifest(tmp_path / "novels", 23_500_000)
    goal = ["--data", "novels", "--hours", "1", "--write-config", "mine.py", "--json"]
    assert errors.run(budget.main, ["gpt2_124m", "--gpu", "RTX 4070", *goal]) == 0
    written = load_config(tmp_path / "mine.py")
    assert (written.data.path, written.data.corpus, written.data.unique_tokens) == ("novels", "", 23_500_000)


def test_small_run_without_a_gpu_is_planned_for_the_cpu() -> None:
    small = options.read(["quickstart"]).inputs
    assert small.device is None
    assert "this machine has no GPU" in small.device_reason
    large = options.read(["fineweb40m"]).inputs
    assert large.device is DEVICES["RTX 4070"]
    assert "assumed" in large.device_reason


def test_assumed_device_is_named_in_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(budget.main, ["fineweb40m", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["summary"][0]
    assert "on RTX 4070, assumed because this machine has no GPU (" in first
