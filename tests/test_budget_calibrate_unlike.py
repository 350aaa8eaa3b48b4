"""Runs that cannot calibrate a plan: impossible paces, unknown or other sizes, characters."""

from pathlib import Path

import pytest

from jaxgpt.budget import calibrate, command, options, plan, report, scaling_law, speed
from jaxgpt.budget.calibrate import RunRecord
from jaxgpt.budget.devices import DEVICES
from jaxgpt.budget.plan import Plan
from jaxgpt.budget.recommend import recommend
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError

CONFIG = load_config("fineweb40m")
FINEWEB = scaling_law.CORPORA["fineweb"]
CARD = DEVICES["RTX 4070"]
pytestmark = pytest.mark.usefixtures("planner_workspace")


def calibrated(record: RunRecord) -> Plan:
    inputs = options.read(["fineweb40m", "--gpu", "RTX 4070"]).inputs
    calibration = calibrate.calibrate(record, CONFIG, FINEWEB, None).with_possible_pace(inputs.device)
    return plan.make_plan(inputs.calibrated(calibration))


def first_screen(planned: Plan) -> str:
    return " ".join(map(str, report.brief_report(planned, recommend(planned)).summary))


def test_impossible_pace_is_not_used() -> None:
    """0.04 s per step would need 30 times the peak of the card."""
    planned = calibrated(RunRecord(source="log", seconds=(0.04,) * 50, evaluations=(), config=CONFIG))
    assert planned.step_times["jaxgpt"].seconds == speed.estimate(CONFIG, CARD).seconds
    assert "The pace of log, 0.04 s per step, is not used: RTX 4070 cannot" in first_screen(planned)


def test_pace_at_the_best_case_is_used() -> None:
    seconds = 1.01 * speed.fastest(CONFIG, CARD)
    planned = calibrated(RunRecord(source="log", seconds=(seconds,) * 50, evaluations=(), config=CONFIG))
    assert planned.step_times["jaxgpt"].seconds == pytest.approx(seconds)
    assert "not used" not in first_screen(planned)


def test_losses_of_an_unknown_size_are_not_used() -> None:
    without = calibrated(RunRecord(source="log", seconds=(), evaluations=((20_000, 3.30),), config=None))
    assert without.last.loss == pytest.approx(plan.make_plan(options.read(["fineweb40m"]).inputs).last.loss)
    assert "The losses of log are not used" in first_screen(without)


@pytest.mark.parametrize(("parameters", "tokens_per_step"), [(17.06e6, None), (40.5e6, 16_384)])
def test_log_of_another_size_calibrates_nothing(parameters: float, tokens_per_step: float | None) -> None:
    record = RunRecord(
        source="log",
        seconds=(4.0,) * 50,
        evaluations=((20_000, 3.3),),
        config=None,
        parameters=parameters,
        tokens_per_step=tokens_per_step,
    )
    planned = calibrated(record)
    assert planned.step_times["jaxgpt"].seconds == speed.estimate(CONFIG, CARD).seconds
    assert planned.inputs.corpus == FINEWEB
    assert "log calibrates nothing" in first_screen(planned)


def test_run_on_characters_is_refused() -> None:
    record = RunRecord(source="log", seconds=(), evaluations=((5000, 1.7),), config=None, vocab_size=65)
    with pytest.raises(ConfigError, match="run on characters"):
        calibrate.calibrate(record, CONFIG, FINEWEB, None)
    characters = CONFIG.replace({"model": {"vocab_size": 65}})
    assert calibrate.calibrate(record, characters, FINEWEB, None).notes


def test_option_calibrate_checks_the_pace(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,train_loss,ms\n" + "".join(f"{n},5.0,40\n" for n in range(30)))
    request = options.read(["fineweb40m", "--gpu", "RTX 4070", "--calibrate", str(tmp_path / "log.csv")])
    calibration = command.calibrated_inputs(request).calibration
    assert calibration
    assert calibration.measured is None
    assert any("The pace of" in note for note in calibration.notes)
