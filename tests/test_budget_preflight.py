"""Checks before a training: its memory, and whether its cost needs a confirmation."""

from pathlib import Path

import pytest
from helpers.manifests import write_manifest
from helpers.training import STEPS, arguments, run_folder, saved_steps

from jaxgpt import errors, train
from jaxgpt.budget import plan_file, preflight, speed
from jaxgpt.budget.devices import DEVICES, Device
from jaxgpt.budget.query import TokenCount
from jaxgpt.budget.step_time import StepTime
from jaxgpt.config import Config
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError

REFERENCE = load_config("fineweb40m")


@pytest.mark.parametrize(
    ("name", "tokens", "device", "words"),
    [
        ("fineweb40m", 300_000, "NVIDIA H100 80GB HBM3", ["read the training data 34,953 times"]),
        ("fineweb40m", 3_680_000_000, "cpu", ["days on this device", "20,000 steps"]),
        ("quickstart", 10_000, "unknown GPU", ["times"]),
    ],
)
def test_expensive_run_needs_a_confirmation(name: str, tokens: int, device: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        preflight.check_cost(load_config(name), tokens, device)
    assert caught.value.code == "C066"
    assert "--yes" in caught.value.help
    assert all(word in caught.value.message for word in words)


@pytest.mark.parametrize(
    ("name", "tokens", "device"),
    [
        ("fineweb40m", 3_680_000_000, "NVIDIA GeForce RTX 4070"),
        ("fineweb40m", 3_680_000_000, "a GPU that no table has"),
        ("quickstart", 5_000_000, "cpu"),
        ("books", 23_500_000, "cpu"),
    ],
)
def test_usual_runs_need_none(name: str, tokens: int, device: str) -> None:
    preflight.check_cost(load_config(name), tokens, device)


def test_several_devices_divide_the_time() -> None:
    large = REFERENCE.replace({"run": {"steps": 100_000}})
    with pytest.raises(ConfigError, match="days"):
        preflight.check_cost(large, 10**11, "NVIDIA GeForce RTX 4070")
    preflight.check_cost(large, 10**11, "NVIDIA GeForce RTX 4070", 8)


def test_plan_of_several_devices_is_that_of_their_number() -> None:
    """Preflight and plan.json use the planner's estimate for eight devices, with the all-reduce."""
    tokens = TokenCount(unique=1e10, source="test")
    planned = plan_file.plan_of_run(REFERENCE, tokens, "NVIDIA GeForce RTX 4090", 8).data
    expected = speed.estimate(REFERENCE, DEVICES["RTX 4090"], gpus=8)
    assert planned["device"]["count"] == 8
    assert planned["step_time"]["jaxgpt"]["seconds_per_step"] == expected.seconds


def test_preflight_counts_the_all_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def expected(config: Config, device: Device, gpus: int) -> StepTime:
        asked.append(gpus)
        return StepTime(seconds=100, low=100, high=100, basis="")

    monkeypatch.setattr(speed, "expected", expected)
    with pytest.raises(ConfigError, match=r"at least 2\d days"):
        preflight.check_cost(REFERENCE, 10**10, "NVIDIA GeForce RTX 4090", 8)
    assert asked == [8]


def test_help_names_a_better_run_for_the_data(tmp_path: Path) -> None:
    write_manifest(tmp_path / "data", 300_000)
    config = REFERENCE.replace({"data": {"path": str(tmp_path / "data")}})
    with pytest.raises(ConfigError) as caught:
        preflight.check_cost(config, 300_000, "cpu")
    assert "python -m jaxgpt.train --config" in caught.value.help
    assert str(tmp_path / "data") in caught.value.help


def test_train_asks_once_and_not_again_for_a_resumed_run(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def status(*more: str) -> int:
        """Of a run of 26 epochs."""
        words = arguments(workspace, {"run.steps": 10 * STEPS})
        return errors.run(train.main, [word for word in words if word != "--yes"] + [*more])

    assert status() == errors.EXIT_STATUS["C"]
    assert "error[C066]" in capsys.readouterr().err
    assert not run_folder(workspace).path.exists()
    assert status("--yes") == 0
    assert saved_steps(run_folder(workspace))[-1] == 10 * STEPS
    assert status() == 0
