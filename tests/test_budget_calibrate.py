"""Calibration by runs and logs, and the plan file of a run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import logsamples

from jaxgpt import budget, errors
from jaxgpt.budget import calibrate, command, memory, options, plan, plan_file, preflight, query, scaling_law, search
from jaxgpt.budget.devices import DEVICES
from jaxgpt.config import Config
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError
from jaxgpt.runs import folder as runfolder
from jaxgpt.runs.folder import RunFolder

CONFIG = load_config("fineweb40m")
FINEWEB = scaling_law.CORPORA["fineweb"]
pytestmark = pytest.mark.usefixtures("planner_workspace")
NANOGPT = """tokens per iteration will be: 524,288
number of parameters: 40.56M
step 0: train loss 10.9, val loss 10.9
iter 0: loss 10.9123, time 35392.00ms, mfu -100.00%
iter 100: loss 5.1, time 3995.11ms, mfu 12.1%
iter 200: loss nan, time 3990.00ms, mfu 12.1%
step 20000: train loss 3.60, val loss 3.60
iter 20000: loss 3.5, time 95392.00ms, mfu 12.1%
iter 300: loss 5.0, time 4001.00ms
"""


def write_run(parent: Path, config: Config, steps: int, seconds: float, loss: float | None) -> RunFolder:
    """A run's folder as far as the planner reads it."""
    folder = RunFolder(parent / "run")
    folder.path.mkdir()
    folder.config_file.write_text(json.dumps(config.to_dict()))
    lines = [{"kind": "step", "step": n, "seconds": 60.0 if n == 0 else seconds} for n in range(steps)]
    if loss is not None:
        lines.append({"kind": "eval", "step": steps, "val_loss": loss})
    folder.log_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_nanogpt_log_gives_step_times_and_losses(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(NANOGPT.replace("\n", "\r\n"))
    record = calibrate.read_record("log")
    assert record.seconds == pytest.approx((3.99511, 3.99, 4.001))
    assert record.evaluations == ((0, 10.9), (20_000, 3.60))


def test_finished_run_moves_the_offset_to_its_loss(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(NANOGPT)
    request = options.read(["fineweb40m", "--calibrate", "log"])
    planned_run = plan.make_plan(command.calibrated_inputs(request))
    assert planned_run.last.loss == pytest.approx(3.60, abs=0.005)
    assert planned_run.step_times["nanogpt"].seconds == pytest.approx(3.99511)
    wide = plan.make_plan(options.read(["fineweb40m", "--corpus", "unknown"]).inputs).last
    assert planned_run.last.loss_high - planned_run.last.loss_low < 0.5 * (wide.loss_high - wide.loss_low)


def test_running_run_is_compared_as_if_annealed(tmp_path: Path) -> None:
    """A run at 3.57 at step 13,500 with a third of its learning rate left has 0.026 nats of annealing gain to come."""
    steps, loss = 13_500, 3.57
    write_run(tmp_path, CONFIG, 20, 4.0, None)
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"kind": "eval", "step": steps, "val_loss": loss}) + "\n")
    record = calibrate.read_record("run")
    calibration = calibrate.calibrate(record, CONFIG, FINEWEB, 3.68e9)
    expected = scaling_law.predict_loss(query.build_query(CONFIG, steps, FINEWEB, 3.68e9))
    assert calibration.loss_shift == pytest.approx(loss - 0.026 - expected.loss, abs=0.003)
    assert calibrate.FINISHED_SD < calibration.loss_sd < 0.02


def test_early_run_does_not_change_the_loss(tmp_path: Path) -> None:
    write_run(tmp_path, CONFIG, 1000, 4.0, 5.0)
    calibration = calibrate.calibrate(calibrate.read_record("run"), CONFIG, FINEWEB, None)
    assert calibration.loss_shift is None
    assert calibration.measured
    assert calibration.measured.seconds == 4.0


def test_step_time_of_another_model_is_scaled_by_its_work(tmp_path: Path) -> None:
    write_run(tmp_path, CONFIG, 50, 4.0, None)
    record, larger = calibrate.read_record("run"), load_config("gpt2_124m")
    for device in (DEVICES["RTX 4070"], None):
        time = calibrate.calibrate(record, larger, FINEWEB, None).step_time(larger, device)
        assert time
        assert 2 < time.seconds / 4.0 < 3.5
        assert "another model" in time.basis


def test_logs_of_other_programs_calibrate_too(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(logsamples.modded())
    record = calibrate.read_record("log")
    assert {round(seconds, 6) for seconds in record.seconds} == {0.214}
    assert [step for step, _ in record.evaluations] == [0, 50, 100, 150, 200]
    with pytest.raises(ConfigError, match="no run or log at 'lgo'") as caught:
        calibrate.read_record("lgo")
    assert "did you mean log?" in caught.value.help


@pytest.mark.parametrize("text", ["", "hello\n", "{}\n", '{"kind": "step"}\n', "\x00\xff"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(ConfigError, match="contains no training steps") as caught:
        calibrate.read_record("log")
    assert caught.value.code == "C043"


def test_plan_is_written_once_and_compared_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path, CONFIG, 40, 4.5, 3.9)
    plan_file.write_plan(folder, CONFIG, 3_680_000_000, "NVIDIA GeForce RTX 4070")
    first = (folder.path / plan_file.NAME).read_text()
    values = json.loads(first)
    assert values["data"]["unique"] == 3.68e9
    assert [row["total_steps"] for row in values["rows"]] == [20_000]
    plan_file.write_plan(folder, load_config("gpt2_124m"), 1, "H100")
    assert (folder.path / plan_file.NAME).read_text() == first
    lines = {line.quantity: line for line in plan_file.compare_with_actual(folder)}
    assert lines["steps"].actual == "40"
    assert lines["seconds per step"].inside is True
    assert "so far" in lines["final loss"].actual
    assert errors.run(budget.main, ["--actual", "run"]) == 0
    assert "plan and actual run" in capsys.readouterr().out


def test_failing_plan_is_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("planned badly")

    folder = write_run(tmp_path, CONFIG, 1, 1.0, None)
    monkeypatch.setattr(plan_file, "plan_of_run", broken)
    plan_file.write_plan(folder, CONFIG, 10**9, "cpu")
    assert "planned badly" in capsys.readouterr().err
    assert plan_file.final_comparison(folder) == ""


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"rows": []}'])
def test_missing_plan_is_an_error(text: str | None, tmp_path: Path) -> None:
    folder = write_run(tmp_path, CONFIG, 1, 1.0, None)
    if text is not None:
        (folder.path / plan_file.NAME).write_text(text)
    with pytest.raises(ConfigError) as caught:
        plan_file.compare_with_actual(runfolder.find_run("run")[0])
    assert caught.value.code == "C046"


def test_memory_check_names_a_micro_batch_that_fits() -> None:
    needed = memory.estimate(CONFIG).total
    preflight.check_memory(CONFIG, None)
    preflight.check_memory(CONFIG, needed)
    with pytest.raises(ConfigError) as caught:
        preflight.check_memory(CONFIG, needed // 2)
    assert caught.value.code == "C022"
    assert "JAX may use" in caught.value.message
    words = caught.value.help.split()
    micro_batch, accum = int(words[1]), int(words[3])
    assert micro_batch * accum == 16 * 32
    smaller = CONFIG.replace({"data": {"micro_batch": micro_batch, "accum": accum}})
    assert memory.estimate(smaller).total <= needed // 2
    with pytest.raises(ConfigError, match="needs about"):
        preflight.check_memory(CONFIG, 1000)


def test_plan_far_from_fitted_runs_predicts_no_loss() -> None:
    row = {"loss": 8.318, "loss_low": 5.32, "loss_high": 8.318}
    line = plan_file._loss_line(5.164, row, finished=True, is_law_run=True)
    assert (line.inside, line.actual) == (None, "5.164")
    assert "too far outside" in line.planned
    planned = {"loss": 3.5, "loss_low": 3.4, "loss_high": 3.65}
    assert plan_file._loss_line(3.6, planned, finished=True, is_law_run=True).inside
    from_weights = plan_file._loss_line(3.6, planned, finished=True, is_law_run=False)
    assert from_weights.inside is None
    assert from_weights.planned == "none (the run starts from given weights)"


GOALS = [("hours", 20.0), ("kwh", 5.0)]


@pytest.mark.parametrize(("goal", "limit"), GOALS)
def test_goal_uses_the_calibrated_step_time_of_each_model(goal: str, limit: float) -> None:
    """Larger models get fewer steps, and each candidate meets the goal at its own calibrated step time."""
    Path("slow.log").write_text("".join(f"iter {10 * n}: loss 5.0, time 10000.00ms\n" for n in range(1, 20)))
    options_given = [f"--{goal}", str(limit), "--unique-tokens", "1e10", "--calibrate", "slow.log"]
    request = options.read(["fineweb40m", "--gpu", "RTX 4070", *options_given])
    assert request.goal
    result = search.best_run(command.calibrated_inputs(request), request.goal)
    steps = [candidate.row.total_steps for candidate in result.candidates]
    assert len(steps) > 5
    assert steps[0] > 2 * steps[-1]
    for candidate in result.candidates:
        used = (candidate.row.seconds or 0) / 3600 if goal == "hours" else candidate.row.energy_kwh or 0
        assert 0.98 * limit < used <= limit
    last = plan.make_plan(result.inputs).last
    assert dataclasses.replace(last, gain_per_hour=None) == result.best.row


def test_target_loss_uses_the_calibrated_offset() -> None:
    """A run that ended 0.1 below the scaling law shortens the way to a target."""
    Path("log").write_text(NANOGPT.replace("3.60", "3.43"))
    argv = ["fineweb40m", "--gpu", "RTX 4070", "--target-loss", "3.3"]
    calibrated = options.read([*argv, "--calibrate", "log"])
    goal = calibrated.goal
    assert goal
    result = search.best_run(command.calibrated_inputs(calibrated), goal)
    uncalibrated = search.best_run(options.read(argv).inputs, goal)
    assert result.best.row.tokens < 0.8 * uncalibrated.best.row.tokens
    assert plan.make_plan(result.inputs).last.loss == result.best.row.loss <= 3.3


def test_implausible_loss_widens_the_interval(tmp_path: Path) -> None:
    def calibrated_sd(loss: float) -> float:
        (tmp_path / "log").write_text(f"number of parameters: 40.56M\nstep 20000: train loss 3.6, val loss {loss}\n")
        record = calibrate.read_record(str(tmp_path / "log"))
        return calibrate.calibrate(record, CONFIG, FINEWEB, 3.68e9).loss_sd

    assert calibrated_sd(3.5) < 0.05
    assert calibrated_sd(2.0) > 1.0


@pytest.mark.parametrize("time", ["-5.00", "0.00", "1e308"])
def test_impossible_step_times_are_ignored(time: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"iter 10: loss 3.5, time {time}ms\n" * 9)
    with pytest.raises(ConfigError, match="contains no training steps"):
        calibrate.read_record(str(tmp_path / "log"))


@pytest.mark.parametrize(("step", "loss"), [(20_000, "1e9"), (20_000, "-3.0"), (20_000, "0.0"), (900_000_000, "3.5")])
def test_impossible_losses_are_ignored(step: int, loss: str, capsys: pytest.CaptureFixture[str]) -> None:
    head = NANOGPT.split("step 20000")[0]
    Path("log").write_text(f"{head}step {step}: train loss {loss}, val loss {loss}\n")
    assert calibrate.read_record("log").evaluations == ((0, 10.9),)
    assert errors.run(budget.main, ["--config", "fineweb40m", "--gpu", "h100", "--calibrate", "log"]) == 0
    assert capsys.readouterr().err == ""
