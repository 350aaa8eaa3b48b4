"""What runs teach the plan: ours and nanoGPT's logs, and the plan that lies beside a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import logsamples

from jaxgpt import budget, errors
from jaxgpt.budget import calibrate, command, memory, options, plan, plan_file, preflight, query, scaling_law
from jaxgpt.budget.devices import DEVICES
from jaxgpt.config import Config
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError
from jaxgpt.runs import folder as runfolder
from jaxgpt.runs.folder import RunFolder

CONFIG = load_config("fineweb40m")
FINEWEB = scaling_law.CORPORA["fineweb"]
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


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("jaxgpt.budget.devices.local_gpu", lambda: None)
    monkeypatch.setattr("jaxgpt.budget.step_time.measured", lambda *_: None)
    monkeypatch.chdir(tmp_path)


def run_of(place: Path, config: Config, steps: int, seconds: float, loss: float | None) -> RunFolder:
    """A run's folder as far as the planner reads it."""
    folder = RunFolder(place / "run")
    folder.path.mkdir()
    folder.config_file.write_text(json.dumps(config.to_dict()))
    lines = [{"kind": "step", "step": n, "seconds": 60.0 if n == 0 else seconds} for n in range(steps)]
    if loss is not None:
        lines.append({"kind": "eval", "step": steps, "val_loss": loss})
    folder.log_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_nanogpts_log_gives_the_pace_without_evaluations_and_the_loss(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(NANOGPT.replace("\n", "\r\n"))
    record = calibrate.read("log")
    assert record.seconds == pytest.approx((3.99511, 3.99, 4.001))
    assert record.evaluations == ((0, 10.9), (20_000, 3.60))


def test_a_finished_run_moves_the_offset_to_its_loss(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(NANOGPT)
    request = options.read(["fineweb40m", "--calibrate", "log"])
    found = plan.plan(command.learned(request))
    assert found.last.loss == pytest.approx(3.60, abs=0.005)
    assert found.paces["jaxgpt"].seconds == pytest.approx(3.99511)
    assert found.last.seconds == pytest.approx(plan.duration(CONFIG, 20_000, 3.99511))
    wide = plan.plan(options.read(["fineweb40m", "--corpus", "unknown"]).inputs).last
    assert found.last.loss_high - found.last.loss_low < 0.5 * (wide.loss_high - wide.loss_low)


def test_a_running_run_is_compared_as_if_its_rate_had_fallen(tmp_path: Path) -> None:
    """The reference run stood at 3.57 at step 13,500 with a third of its rate left, which is 0.026 of loss."""
    steps, loss = 13_500, 3.57
    run_of(tmp_path, CONFIG, 20, 4.0, None)
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"kind": "eval", "step": steps, "val_loss": loss}) + "\n")
    record = calibrate.read("run")
    found = calibrate.calibration(record, CONFIG, DEVICES["RTX 4070"], FINEWEB, 3.68e9)
    expected = scaling_law.predict_loss(query.build_query(CONFIG, steps, FINEWEB, 3.68e9))
    assert found.shift == pytest.approx(loss - 0.026 - expected.loss, abs=0.003)
    assert found.sd == calibrate.RUNNING_SD


def test_a_run_that_has_only_begun_leaves_the_loss_to_the_law(tmp_path: Path) -> None:
    run_of(tmp_path, CONFIG, 1000, 4.0, 5.0)
    found = calibrate.calibration(calibrate.read("run"), CONFIG, DEVICES["RTX 4070"], FINEWEB, None)
    assert found.shift is None
    assert found.pace
    assert found.pace.seconds == 4.0


def test_another_models_pace_is_scaled_by_the_work(tmp_path: Path) -> None:
    run_of(tmp_path, CONFIG, 50, 4.0, None)
    record, larger = calibrate.read("run"), load_config("gpt2_124m")
    for device in (DEVICES["RTX 4070"], None):
        found = calibrate.calibration(record, larger, device, FINEWEB, None)
        assert found.pace
        assert 2 < found.pace.seconds / 4.0 < 3.5
        assert "another model" in found.pace.why


def test_other_programs_logs_teach_as_well(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(logsamples.modded())
    record = calibrate.read("log")
    assert {round(seconds, 6) for seconds in record.seconds} == {0.214}
    assert [step for step, _ in record.evaluations] == [0, 50, 100, 150, 200]
    with pytest.raises(ConfigError, match="no run or log at 'lgo'") as caught:
        calibrate.read("lgo")
    assert "did you mean log?" in caught.value.help


@pytest.mark.parametrize("text", ["", "hello\n", "{}\n", '{"kind": "step"}\n', "\x00\xff"])
def test_a_file_that_is_no_log_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(ConfigError, match="holds no step") as caught:
        calibrate.read("log")
    assert caught.value.code == "C043"


def test_a_runs_plan_is_kept_once_and_compared_with_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(tmp_path, CONFIG, 40, 4.5, 3.9)
    plan_file.write_plan(folder, CONFIG, 3_680_000_000, "NVIDIA GeForce RTX 4070")
    first = (folder.path / plan_file.NAME).read_text()
    held = json.loads(first)
    assert held["data"]["unique"] == 3.68e9
    assert [row["max_iters"] for row in held["rows"]] == [20_000]
    plan_file.write_plan(folder, load_config("gpt2_124m"), 1, "H100")
    assert (folder.path / plan_file.NAME).read_text() == first
    lines = {line.what: line for line in plan_file.compare_with_actual(folder)}
    assert lines["steps"].actual == "40"
    assert lines["seconds per step"].inside is True
    assert "so far" in lines["loss at the end"].actual
    assert errors.run(budget.main, ["--actual", "run"]) == 0
    assert "plan against actual" in capsys.readouterr().out


def test_a_plan_that_fails_is_a_warning_and_not_the_runs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("planned badly")

    folder = run_of(tmp_path, CONFIG, 1, 1.0, None)
    monkeypatch.setattr(plan_file, "make", broken)
    plan_file.write_plan(folder, CONFIG, 10**9, "cpu")
    assert "planned badly" in capsys.readouterr().err
    assert plan_file.final_comparison(folder) == ""


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"rows": []}'])
def test_a_run_without_a_readable_plan_is_told_so(text: str | None, tmp_path: Path) -> None:
    folder = run_of(tmp_path, CONFIG, 1, 1.0, None)
    if text is not None:
        (folder.path / plan_file.NAME).write_text(text)
    with pytest.raises(ConfigError) as caught:
        plan_file.compare_with_actual(runfolder.find_run("run")[0])
    assert caught.value.code == "C046"


def test_a_run_that_does_not_fit_is_refused_with_the_micro_batch_that_does() -> None:
    needed = memory.estimate(CONFIG).total
    preflight.check_memory(CONFIG, None)
    preflight.check_memory(CONFIG, needed)
    with pytest.raises(ConfigError) as caught:
        preflight.check_memory(CONFIG, needed // 2)
    assert caught.value.code == "C022"
    assert "GiB is free" in caught.value.message
    words = caught.value.help.split()
    micro_batch, accum = int(words[1]), int(words[3])
    assert micro_batch * accum == 16 * 32
    smaller = CONFIG.replace({"data": {"micro_batch": micro_batch, "accum": accum}})
    assert memory.estimate(smaller).total <= needed // 2
    with pytest.raises(ConfigError, match="needs about"):
        preflight.check_memory(CONFIG, 1000)


def test_a_run_far_outside_the_law_is_promised_no_loss() -> None:
    row = {"loss": 8.318, "loss_low": 5.32, "loss_high": 8.318}
    line = plan_file._loss_line(5.164, row, done=True)
    assert (line.inside, line.actual) == (None, "5.164")
    assert "nothing, so far outside" in line.promised
    assert plan_file._loss_line(3.6, {"loss": 3.5, "loss_low": 3.4, "loss_high": 3.65}, done=True).inside


def test_an_evaluation_that_cannot_be_believed_widens_the_interval(tmp_path: Path) -> None:
    def learnt(loss: float) -> float:
        (tmp_path / "log").write_text(f"step 20000: train loss 3.6, val loss {loss}\n")
        record = calibrate.read(str(tmp_path / "log"))
        return calibrate.calibration(record, CONFIG, DEVICES["RTX 4070"], scaling_law.CORPORA["fineweb"], 3.68e9).sd

    assert learnt(3.5) < 0.05
    assert learnt(2.0) > 1.0


@pytest.mark.parametrize("time", ["-5.00", "0.00", "1e308"])
def test_times_that_no_step_takes(time: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"iter 10: loss 3.5, time {time}ms\n" * 9)
    with pytest.raises(ConfigError, match="holds no step"):
        calibrate.read(str(tmp_path / "log"))


@pytest.mark.parametrize(("step", "loss"), [(20_000, "1e9"), (20_000, "-3.0"), (20_000, "0.0"), (900_000_000, "3.5")])
def test_a_loss_that_no_run_can_have_moves_nothing(step: int, loss: str, capsys: pytest.CaptureFixture[str]) -> None:
    head = NANOGPT.split("step 20000")[0]
    Path("log").write_text(f"{head}step {step}: train loss {loss}, val loss {loss}\n")
    assert calibrate.read("log").evaluations == ((0, 10.9),)
    assert errors.run(budget.main, ["--config", "fineweb40m", "--gpu", "h100", "--calibrate", "log"]) == 0
    assert capsys.readouterr().err == ""
