"""Search for a goal: the run meets it, no candidate is better, and its config plans the same run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from jaxgpt import budget, errors
from jaxgpt.budget import memory, options, plan, search
from jaxgpt.budget.search import Goal, SearchResult
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError

Json = dict[str, Any]
pytestmark = pytest.mark.usefixtures("planner_workspace")


def chosen(*argv: str) -> SearchResult:
    request = options.read(["--config", "fineweb40m", *argv])
    assert request.goal
    return search.best_run(request.inputs, request.goal)


@pytest.mark.parametrize("gpu", ["RTX 4070", "H100"])
@pytest.mark.parametrize("hours", [5.0, 20.0, 100.0])
def test_best_run_for_hours_uses_them_and_ends_lowest(gpu: str, hours: float) -> None:
    result = chosen("--gpu", gpu, "--hours", str(hours))
    row = result.best.row
    assert row.seconds == pytest.approx(hours * 3600, rel=0.04)  # repeated tokens: lengths 2 % apart
    assert (row.seconds or 0) <= hours * 3600
    assert all(one.ratio >= 15 for one in result.candidates)
    assert row.loss == min(one.row.loss for one in result.candidates)
    needed = memory.estimate(result.best.config).total
    device = result.inputs.device
    assert device
    assert needed <= device.usable * memory.GIB


def test_short_goal_gets_a_run_and_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    values = plan_of(capsys, "--config", "quickstart", "--hours", "0.05")
    assert values["rows"][-1]["seconds"] <= 0.05 * 3600
    assert any("outside the scaling law" in text for text in values["warnings"])


def test_best_run_for_energy_uses_it() -> None:
    row = chosen("--kwh", "5").best.row
    assert row.energy_kwh is not None
    assert 4.9 < row.energy_kwh <= 5


def test_target_loss_gets_the_shortest_run() -> None:
    result = chosen("--target-loss", "3.4")
    best = result.best
    assert best.row.loss <= 3.4
    assert best.row.seconds == min(one.row.seconds or 0 for one in result.candidates if not one.row.prediction.outside)
    exact = [one for one in result.candidates if one.ratio > 16]
    assert exact
    for one in exact:
        shorter = search.with_steps(one.config, one.row.total_steps - 1, None)
        inputs = plan.replace(result.inputs, config=shorter)
        assert one.row.loss <= 3.4 < plan.predict_loss(inputs, one.row.total_steps - 1).loss + 1e-9


def test_goals_on_a_cpu() -> None:
    """Its step time is assumed and its power unknown: hours and losses are goals there, energy is not."""
    result = search.best_run(
        options.read(["--config", "books", "--gpu", "cpu", "--hours", "2"]).inputs, Goal(hours=2.0)
    )
    row = result.best.row
    assert row.seconds is not None
    assert 0.8 * 7200 < row.seconds <= 7200
    assert row.energy_kwh is None
    assert result.best.config.data.micro_batch <= 16
    longer = search.best_run(result.inputs, Goal(hours=20.0)).best.row
    assert longer.seconds is not None
    assert longer.seconds > row.seconds
    assert longer.loss < row.loss
    with pytest.raises(ConfigError, match="needs a device whose power is known"):
        search.best_run(result.inputs, Goal(kwh=1.0))


def test_repeated_tokens_can_make_a_target_unreachable() -> None:
    assert chosen("--target-loss", "3.4", "--unique-tokens", "3e9")
    with pytest.raises(ConfigError) as caught:
        chosen("--target-loss", "2.9", "--unique-tokens", "1e7")
    assert caught.value.code == "C044"


def plan_of(capsys: pytest.CaptureFixture[str], *argv: str) -> Json:
    assert errors.run(budget.main, ["--config", "fineweb40m", *argv, "--json"]) == 0
    values: Json = json.loads(capsys.readouterr().out)
    return values


@pytest.mark.parametrize("base", ["fineweb40m", "fineweb40m_modern", "gpt2_124m"])
@pytest.mark.parametrize("goal", [["--hours", "20"], ["--target-loss", "3.3"], ["--kwh", "2"]])
def test_written_config_plans_the_same_run(
    base: str, goal: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "tonight.py"
    common = ["--gpu", "RTX 4090", "--config", base]
    planned = plan_of(capsys, *common, *goal, "--corpus", "fineweb-edu", "--write-config", str(file))
    replanned = plan_of(capsys, "--gpu", "RTX 4090", "--config", str(file))
    assert replanned["rows"][-1] | {"gain_per_hour": None} == planned["rows"][-1]  # a single row has no gain
    assert replanned["memory"]["total"] == planned["memory"]["total"]
    assert replanned["data"]["unique"] == planned["data"]["unique"]
    assert replanned["data"]["corpus"] == "fineweb-edu"


def test_existing_files_are_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("mine")
    assert errors.run(budget.main, ["fineweb40m", "--hours", "20", "--write-config", str(file)]) == 2
    assert "error[C041]" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_written_config_trains_unchanged(tmp_path: Path) -> None:
    """Two steps of it on a CPU, through the command; only its length and its tokens are this test's."""
    small = ["--model.block-size", "32", "--data.micro-batch", "2", "--data.accum", "1", "--gpu", "h100"]
    small += ["--model.n-layer", "1", "--data.path", "tokens", "--model.loss-chunk", "64", "--run.eval-tokens", "64"]
    goal = ["--hours", "2", "--unique-tokens", "1e9", "--write-config", "tiny.py"]
    assert errors.run(budget.main, ["fineweb40m", *small, *goal]) == 0
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    for seed, name in enumerate(("train.bin", "val.bin")):
        np.random.default_rng(seed).integers(0, 50257, 4000, dtype=np.uint16).tofile(tokens / name)
    short = ["--run.steps", "2", "--optim.warmup-steps", "1", "--mesh.device", "cpu"]
    command = [sys.executable, "-m", "jaxgpt.train", "--config", "tiny.py", *short]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, check=False, cwd=tmp_path, env=os.environ | path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny" / "plan.json").is_file()
    assert "plan and actual run" in done.stdout


def test_written_config_keeps_every_field(tmp_path: Path) -> None:
    result = chosen("--hours", "20")
    search.write_config(result, tmp_path / "a b.py")
    config = load_config(str(tmp_path / "a b.py"))
    assert config.run.name == "a-b"
    data = {"corpus": "fineweb", "unique_tokens": 3_680_000_000}
    assert config == result.best.config.replace({"run": {"name": "a-b"}, "data": data})
    assert str(Goal(hours=20)) in (tmp_path / "a b.py").read_text()
