"""`tune`: programs are compared with the config's own, bad ones are never chosen, and the fastest is used."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.training import arguments, run_folder, tiny_config

from jaxgpt import errors, train
from jaxgpt.budget import devices
from jaxgpt.budget.tuned_steps import find_tuned
from jaxgpt.config import Config
from jaxgpt.config.command_line import parse_config
from jaxgpt.errors import ConfigError, JaxgptError, Stopped
from jaxgpt.tune import cache, command, search, trial
from jaxgpt.tune.candidates import DEFAULT, Candidate, dimensions
from jaxgpt.tune.search import Outcome, Tuned, Tuner

pytestmark = pytest.mark.usefixtures("fast_compilation")

CPU = {"kind": "cpu", "platform": "cpu", "driver": "1", "count": 1, "jax": "0", "attention": "xla"}
GPU = CPU | {"kind": "NVIDIA GeForce RTX 4070", "platform": "gpu", "attention": "cudnn"}
MODERN = {"model.architecture": "modern", "model.n_kv_head": 1, "optim.optimizer": "muon"}


def all_candidates(config: Config, device: dict[str, Any]) -> list[Candidate]:
    return [candidate for dimension in dimensions(config, device) for candidate in dimension.candidates(DEFAULT)[1:]]


# --- one trial -------------------------------------------------------------------------------------------------------


def result_of(config: Config, folder: Path, seconds: float = 0.01) -> dict[str, Any]:
    return trial.run(trial.Request(config.to_dict(), seconds, str(folder / "reference.npz"), ""))


@pytest.mark.parametrize("changes", [{}, MODERN, {"model.block_size": 17, "data.micro_batch": 1, "data.accum": 6}])
def test_every_candidate_agrees_with_the_config(workspace: Path, xla_cache: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(workspace, {"mesh.data_parallel": 1, "model.n_layer": 1, "model.loss_chunk": 32, **changes})
    reference = result_of(config, workspace)
    assert "problem" not in reference
    assert len(reference["step_seconds"]) >= trial.MIN_STEPS
    for candidate in all_candidates(config, CPU):
        assert result_of(candidate.apply(config), workspace)["problem"] == "", candidate.name


WRONG = [{"run.seed": 1}, {"optim.grad_clip": 0.01}, {"model.dropout": 0.2}]


@pytest.mark.parametrize("changes", WRONG)
def test_a_program_that_computes_something_else_is_found(
    workspace: Path, xla_cache: Path, changes: dict[str, Any]
) -> None:
    result_of(tiny_config(workspace, {"mesh.data_parallel": 1}), workspace)
    other = tiny_config(workspace, {"mesh.data_parallel": 1, **changes})
    assert result_of(other, workspace)["problem"]


def test_infinite_values_differ() -> None:
    import numpy as np

    reference = {"loss": np.float64(4.0), "optimizer state mu": np.ones(3)}
    for broken in ({"loss": np.float64("nan")}, {"optimizer state mu": np.array([1.0, np.nan, 1.0])}):
        assert trial.compare(reference | broken, reference, 1e-4)
    assert trial.compare(reference, reference, 1e-4) == ""


# --- the search ------------------------------------------------------------------------------------------------------

FAKE_TRIAL = """
import json, os, pathlib, sys, time
request = json.loads(pathlib.Path(sys.argv[1]).read_text())
plans = json.loads(pathlib.Path(sys.argv[2]).read_text())
data, model = request["config"]["data"], request["config"]["model"]
plan = plans.get(f"chunk {model['loss_chunk']}") or plans.get(str(data["micro_batch"])) or 0.1
result = {"device": plans["device"]}
if plan == "crash":
    sys.exit("Traceback\\nsegmentation fault")
if plan == "memory":
    sys.exit("RESOURCE_EXHAUSTED: 1 GiB\\nsome more")
if plan == "hang":
    time.sleep(60)
if plan == "abort":
    os.abort()
if plan == "refused":
    result["error"] = ["C013", "4 is not divisible", "try 3"]
if plan == "exception":
    result["failure"] = "XlaRuntimeError: no such option\\nsome more"
if plan == "silent":
    sys.exit(0)
if plan == "wrong":
    result["problem"] = "loss 3 instead of 4"
if isinstance(plan, list):  # of the trials of this kind, in order
    count = pathlib.Path(sys.argv[2] + ".count")
    used = int(count.read_text()) if count.exists() else 0
    count.write_text(str(used + 1))
    plan = plan[min(used, len(plan) - 1)]
result["step_seconds"] = [plan if isinstance(plan, float) else 0.001] * 3
pathlib.Path(request["result"]).write_text(json.dumps(result))
"""


def fake_command(folder: Path, plans: dict[str, Any]) -> list[str]:
    """Trials whose step times, or faults, `plans` gives by micro-batch or loss chunk."""
    (folder / "plans.json").write_text(json.dumps({"device": CPU} | plans))
    (folder / "fake.py").write_text(FAKE_TRIAL)
    # The request is the last word, so that the script has to be called with it first.
    caller = "import runpy, sys; sys.argv = [sys.argv[1], sys.argv[3], sys.argv[2]]; runpy.run_path(sys.argv[0])"
    return [sys.executable, "-c", caller, str(folder / "fake.py"), str(folder / "plans.json")]


def tuned_by(config: Config, folder: Path, plans: dict[str, Any], seconds: float = 300.0) -> Tuned:
    tuner = Tuner(config, folder, seconds, lambda _: None, fake_command(folder, plans))
    return tuner.run(tuner.device())


@pytest.fixture
def config(workspace: Path) -> Config:
    return tiny_config(workspace, {"model.loss_chunk": 512})


def test_the_fastest_program_wins(config: Config, tmp_path: Path) -> None:
    tuned = tuned_by(config, tmp_path, {"8": 0.05, "2": 0.2})
    assert tuned.winner.changes["data"] == {"micro_batch": 8, "accum": 1}
    assert (tuned.default_seconds, tuned.winner_seconds) == (0.1, 0.05)
    assert tuned.speedup == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("crash", "failed: segmentation fault"),
        ("memory", "out of memory"),
        ("hang", "no result after"),
        ("silent", "failed: no message"),
        ("abort", "failed: ended by SIGABRT"),
        ("refused", "refused: 4 is not divisible"),
        ("exception", "failed: XlaRuntimeError: no such option"),
        ("wrong", "wrong: loss 3 instead of 4"),
    ],
)
def test_a_bad_program_is_reported_and_never_chosen(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    """It would be the fastest one by far."""
    monkeypatch.setattr(search, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(search, "FIRST_SECONDS", 0.1)
    tuned = tuned_by(config, tmp_path, {"8": fault, "2": 0.05})
    assert tuned.winner.changes["data"]["micro_batch"] == 2
    (problem,) = {outcome.problem for outcome in tuned.outcomes if "micro-batch 8" in outcome.candidate.name}
    assert words in problem
    assert any(words in line for line in command.report_lines(tuned, config))


def test_a_program_that_only_noise_made_fast_is_not_chosen(config: Config, tmp_path: Path) -> None:
    tuned = tuned_by(config, tmp_path, {"8": [0.01, 0.01, 0.2], "2": 0.3, "1": 0.3})
    assert tuned.winner == DEFAULT
    assert "No program that was measured is faster" in command.result_line(tuned)


def test_time_of_the_config_is_its_own(config: Config, tmp_path: Path) -> None:
    """Not that of a program which only its first round made fast."""
    tuned = tuned_by(config, tmp_path, {"8": [0.05, 0.2], "2": 0.3, "1": 0.3})
    assert (tuned.winner, tuned.default_seconds) == (DEFAULT, 0.1)


def test_later_choices_build_on_the_first(config: Config, tmp_path: Path) -> None:
    tuned = tuned_by(config, tmp_path, {"8": 0.05, "chunk 1024": 0.02})
    changes = tuned.winner.changes
    assert changes["data"] == {"micro_batch": 8, "accum": 1}
    assert "micro-batch 8" in tuned.winner.name


def test_a_config_that_does_not_train_is_an_error(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"C045.*segmentation fault"):
        tuned_by(config, tmp_path, {"4": "crash"})
    with pytest.raises(JaxgptError, match=r"C013.*4 is not divisible\n.*try 3"):
        tuned_by(config, tmp_path, {"4": "refused"})


def test_a_trial_hands_over_its_error(workspace: Path) -> None:
    config = tiny_config(workspace, {"mesh.data_parallel": 64, "data.micro_batch": 64})
    code, message, _ = trial.result_or_error(trial.Request(config.to_dict(), 0.0, "", ""))["error"]
    assert code == "C013"
    assert message.startswith("mesh.data_parallel = 64; JAX sees ")


CHILD = """
import os, pathlib, sys, threading, time
from jaxgpt.tune.trial import end_with_parent

folder = pathlib.Path(sys.argv[1])
threading.Thread(target=end_with_parent, args=(folder / "reference.npz",), daemon=True).start()
(folder / "pid").write_text(str(os.getpid()))
time.sleep(120)
"""


def test_a_trial_ends_when_the_tuning_is_killed(tmp_path: Path) -> None:
    (tmp_path / "reference.npz").write_text("large")
    trial_command = [sys.executable, "-c", CHILD, str(tmp_path)]
    parent = subprocess.Popen(
        [sys.executable, "-c", f"from jaxgpt.tune import search; search._run({trial_command}, 99)"]
    )
    wait_until((tmp_path / "pid").exists)
    parent.kill()
    parent.wait()
    wait_until(lambda: not (tmp_path / "reference.npz").exists())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_signal_stops_in_order(config: Config) -> None:
    folders: list[Path] = []

    def stop_inside() -> None:
        with command.open_tuner(config, 9.0, print) as tuner:
            folders.append(tuner._folder)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(9)

    with pytest.raises(Stopped) as stopped:
        stop_inside()
    assert stopped.value.status == errors.PREEMPTED
    assert not folders[0].exists()


def test_no_time_means_no_candidates(config: Config, tmp_path: Path) -> None:
    tuned = tuned_by(config, tmp_path, {"8": 0.01}, seconds=0.0)
    assert tuned.winner == DEFAULT
    assert len(tuned.outcomes) == 1


def test_a_gpu_has_more_choices(config: Config) -> None:
    names = [candidate.name for candidate in all_candidates(config, GPU)]
    assert "attention xla" in names
    assert "attention cudnn" not in names  # that of the config already
    assert any("xla_gpu" in name for name in names)
    assert not any("xla_gpu" in candidate.name for candidate in all_candidates(config, CPU))
    own = ("xla_a=1", "xla_gpu_enable_triton_gemm=true")
    for candidate in all_candidates(config.replace({"mesh": {"compiler_options": own}}), GPU):
        given = candidate.changes.get("mesh", {}).get("compiler_options", own)
        assert given[:2] == own
        assert "xla_gpu_enable_triton_gemm=false" not in given
    for candidate in all_candidates(config, GPU):
        assert candidate.apply(config).tokens_per_step == config.tokens_per_step


# --- what is done with the result ------------------------------------------------------------------------------------


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's cache, without results."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache" / "xla"))
    return tmp_path / "cache" / "tune"


def winner(config: Config, device: dict[str, Any] = CPU) -> Tuned:
    changes = {"data": {"micro_batch": 8, "accum": 1}}
    outcomes = [Outcome(DEFAULT, 0.1), Outcome(Candidate("micro-batch 8", changes), 0.05)]
    return Tuned(Candidate("micro-batch 8", changes), 0.1, 0.05, device, outcomes)


def test_result_is_kept_for_this_device_and_step(config: Config, cached: Path) -> None:
    cache.write_result(config, winner(config))
    read = cache.read_result(config, CPU)
    assert read is not None
    assert read.winner == winner(config).winner
    assert cache.read_result(config, GPU) is None
    assert cache.read_result(config.replace({"model": {"n_layer": 3}}), CPU) is None
    assert cache.read_result(config.replace({"run": {"steps": 7}}), CPU) is not None
    (file,) = cached.iterdir()
    file.write_text(file.read_text()[:50])
    assert cache.read_result(config, CPU) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"changes": ["data"]},
        {"changes": None},
        {"changes": {"data": 3}},
        {"changes": {"nope": {}}},
        {"changes": {"data": {"nope": 1}}},
        {"changes": {"data": {"micro_batch": -1}}},
        {"changes": {"data": {"micro_batch": 16}}},  # another number of tokens
        {"changes": {"run": {"name": "b"}}},
        {"winner_seconds": float("nan")},
        {"default_seconds": [1]},
    ],
)
def test_damaged_result_is_not_used(config: Config, cached: Path, damage: dict[str, Any]) -> None:
    cache.write_result(config, winner(config, GPU))
    (file,) = cached.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    assert cache.read_result(config, GPU) is None
    if "changes" not in damage:
        assert find_tuned(config, devices.find("RTX 4070")) is None


def test_result_that_cannot_be_kept(config: Config, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached.parent.mkdir()
    cached.write_text("a file")
    said: list[str] = []
    monkeypatch.setattr(Tuner, "device", lambda _: CPU)
    monkeypatch.setattr(Tuner, "run", lambda *_: winner(config))
    command.tune(config, 1.0, said.append)
    assert said[-1] == f"the result is not kept for train --tune: File exists: {cached}"


def test_budget_takes_the_tuned_step_time(config: Config, cached: Path) -> None:
    rtx = devices.find("RTX 4070")
    assert find_tuned(config, rtx) is None
    cache.write_result(config, winner(config, GPU))
    calibration = find_tuned(config, rtx)
    assert calibration is not None
    assert calibration.measured is not None
    assert calibration.measured.seconds == 0.1
    assert "with train --tune 2.00 times as fast" in calibration.measured.basis
    fastest = winner(config).winner.apply(config)
    tuned = find_tuned(fastest, rtx)
    assert tuned is not None
    assert tuned.step_time(fastest, rtx) == tuned.measured
    assert tuned.measured is not None
    assert tuned.measured.seconds == 0.05
    assert find_tuned(config, rtx, count=2) is None
    assert find_tuned(config, None) is None
    assert find_tuned(config, devices.find("A100")) is None


def test_run_is_tuned_and_resumed_with_its_program(
    workspace: Path, cached: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Tuner, "device", lambda _: CPU)
    options = arguments(workspace, {"run.steps": 4, "run.eval_every": 4})
    config, _ = parse_config(train.make_parser(), options)
    cache.write_result(config, winner(config))
    assert errors.run(train.main, [*options, "--tune"]) == 0
    assert "2.00 times as fast" in capsys.readouterr().out
    stored = run_folder(workspace).config()
    assert (stored.data.micro_batch, stored.data.accum) == (8, 1)
    next(cached.iterdir()).unlink()
    assert errors.run(train.main, [*options, "--tune"]) == 0  # by its own config.json
    out = capsys.readouterr().out
    assert "2.00 times" not in out
    assert "continues with the program that it was started with" in out
    assert errors.run(train.main, options) == 4
    assert "help: add --tune to resume it with its own program" in capsys.readouterr().err
    assert errors.run(train.main, [*options, "--tune", "--data.accum", "7"]) == 4
    assert "data.accum 1 → 7" in capsys.readouterr().err


def test_dry_run_shows_the_tuned_program(
    workspace: Path, cached: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Tuner, "device", lambda _: CPU)
    monkeypatch.setattr(Tuner, "run", None)
    assert errors.run(train.main, [*arguments(workspace), "--tune", "--dry-run"]) == 0
    assert "this step has not been tuned here" in capsys.readouterr().out
    config, _ = parse_config(train.make_parser(), arguments(workspace))
    cache.write_result(config, winner(config))
    assert errors.run(train.main, [*arguments(workspace), "--tune", "--dry-run"]) == 0
    assert "2.00 times as fast" in capsys.readouterr().out


def test_what_cannot_be_trained_is_not_measured(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Tuner, "device", None)
    assert errors.run(train.main, [*arguments(workspace, {"data.path": str(workspace / "none")}), "--tune"]) == 3
    assert "error[D002]" in capsys.readouterr().err


def test_network_of_given_weights_is_tuned(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    measured: list[Config] = []
    monkeypatch.setattr("jaxgpt.convert.initial.resolve_network", lambda *_: config)
    monkeypatch.setattr(command, "tune", lambda config, *_: measured.append(config) or winner(config))
    command.main(["quickstart", "--init-from", "gpt2"])
    assert measured == [config]


def test_several_processes_are_not_tuned() -> None:
    with pytest.raises(ConfigError, match=r"C039.*several"):
        train.tuned(Config(), object())


def test_command_measures_and_prints(workspace: Path, cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With trials of their own processes, as a user runs it; the shortest time leaves the config as it is."""
    from jaxgpt import tune

    options = [word for word in arguments(workspace, {}) if word != "--yes"]
    assert errors.run(tune.main, [*options, "--minutes", "0.05"]) == 0
    out = capsys.readouterr().out
    assert "the config as it is: " in out
    assert "there was no time for another program" in out
    assert not cached.exists()


def test_minutes_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    from jaxgpt import tune

    assert errors.run(tune.main, ["quickstart", "--minutes", "0"]) == 2
    assert "error[C009]: --minutes 0; must be a number above 0" in capsys.readouterr().err


def test_planning_a_tuned_run_loads_no_jax() -> None:
    code = "import sys; import jaxgpt.tune.command; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
