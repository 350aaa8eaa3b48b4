"""The planner's text at extremes: large goals, a claim, long and short runs."""

import pytest

from jaxgpt import budget, errors
from jaxgpt.budget.search import Goal
from jaxgpt.utils import formatting

pytestmark = pytest.mark.usefixtures("planner_workspace")


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert errors.run(budget.main, ["fineweb40m", "--gpu", "RTX 4070", *argv]) == 0
    return capsys.readouterr().out


def test_claim_is_answered_on_the_first_screen(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(answer(capsys, "--claim", "2.5").split())
    assert "A loss of 2.5 is out of reach of this model" in text


def test_large_goals_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "--unique-tokens", "1e8", "--hours", "10000")
    assert "e+0" not in text
    assert "10,000 hours" in text
    assert str(Goal(hours=1.5)) == "1.5 hours"


def test_table_of_extreme_lengths_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer(capsys, "--lengths", "1", "1000000000").splitlines()
    start = lines.index("By length") + 1
    assert [line.split()[0] for line in lines[start : start + 3]] == ["steps", "1", "1.00B"]
    assert lines[start + 3] == ""


def test_small_energy_and_gain_are_not_zero(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(answer(capsys, "--lengths", "30").split())
    assert "0.0 kWh" not in text
    text = " ".join(answer(capsys, "--lengths", "1000000").split())
    assert "gains less than 0.001" in text


def test_durations_of_years_are_in_years() -> None:
    assert formatting.format_hours(4 * formatting.YEAR) == "4 years"
    assert formatting.format_hours_range(3e8, 6e8, 5e8) == "10–19"


def test_energy_goal_on_a_cpu_says_that_it_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(budget.main, ["fineweb40m", "--gpu", "cpu", "--kwh", "1"]) == errors.EXIT_STATUS["C"]
    assert "--kwh needs a device whose power is known, and this plan is for a CPU" in capsys.readouterr().err
