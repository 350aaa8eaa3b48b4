"""The validation losses of a real 40M run (docs/owner.csv), as nanoGPT prints them and as a table."""

import re
import shlex

import pytest

from jaxgpt import logs
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.options import Parser
from jaxgpt.diagnose.checks import CHECKS
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis, diagnose
from jaxgpt.diagnose.options import Options

LOSSES = {0: 10.87, 2000: 4.03, 5000: 3.76, 8000: 3.65, 11000: 3.61, 13500: 3.57, 14500: 3.569}
LAST_TRAIN = 3.6415
OPTIONS = Options(config="fineweb40m", corpus="fineweb")


def stdout() -> str:
    """As nanoGPT prints it; of the train losses only the last is known."""
    lines = ["tokens per iteration will be: 524,288", "number of parameters: 40.56M"]
    for step, val in LOSSES.items():
        train = f"{LAST_TRAIN:.4f}" if step == max(LOSSES) else "nan"
        lines.append(f"step {step}: train loss {train}, val loss {val:.4f}")
        lines.append(f"iter {step}: loss {val:.4f}, time {3995.11 + 60_000:.2f}ms, mfu 12.31%")
        lines.append(f"iter {step + 100}: loss {val:.4f}, time 3995.11ms, mfu 12.31%")
    return "\n".join(lines)


def table(*, train: bool, steps: list[int] | None = None) -> str:
    """As CSV, with or without the one train loss."""
    rows = ["step,tokens,lr,train_loss,val_loss"]
    for step in steps or list(LOSSES):
        known = f"{LAST_TRAIN}" if train and step == max(LOSSES) else ""
        rows.append(f"{step},{step * 524_288},,{known},{LOSSES[step]}")
    return "\n".join(rows)


def diagnosed(text: str) -> Diagnosis:
    history = logs.read_text(text, "owner")
    return diagnose(history, resolve_context(history, OPTIONS), now=0.0)


def status(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.id: finding.status for finding in diagnosis.findings}


TEXTS = {
    "stdout": stdout(),
    "table": table(train=True),
    "six points": table(train=False, steps=[step for step in LOSSES if step]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_size_and_noise_are_the_causes(name: str) -> None:
    diagnosis = diagnosed(TEXTS[name])
    statuses = status(diagnosis)
    assert set(statuses) == set(CHECKS)
    assert diagnosis.findings[0].id == "capacity-limited"
    assert statuses["capacity-limited"] == "confirmed"
    assert statuses["noise-not-plateau"] == "confirmed"
    assert statuses["overfitting"] == "ruled out"
    assert statuses["severe-overfitting"] == "ruled out"
    assert {"recipe-or-bug", "lr-too-high", "data-limited"} & {
        k for k, v in statuses.items() if v == "confirmed"
    } == set()


@pytest.mark.parametrize("name", TEXTS)
def test_cost_of_repetition(name: str) -> None:
    findings = {finding.id: finding for finding in diagnosed(TEXTS[name]).findings}
    evidence = " ".join(condition.evidence for condition in findings["overfitting"].conditions)
    assert "repetition costs about 0.0017 nats here, at most 0.005" in evidence
    risk = " ".join(condition.evidence for condition in findings["repetition-risk"].conditions)
    assert "2.85 epochs" in risk
    assert "0.0025 nats" in risk


@pytest.mark.parametrize("name", TEXTS)
def test_forecast_of_the_end(name: str) -> None:
    forecast = diagnosed(TEXTS[name]).forecast
    assert forecast is not None
    assert 3.50 <= forecast.mean <= 3.56
    assert 3.48 <= forecast.low80 < forecast.high80 <= 3.58


def test_plateau_is_reported_with_noise_and_lines() -> None:
    diagnosis = diagnosed(TEXTS["table"])
    plateau = next(finding for finding in diagnosis.findings if finding.id == "noise-not-plateau")
    flat = plateau.conditions[1]
    assert "from step 13,500 to 14,500; the standard error of an evaluation is 0.0176" in flat.evidence
    assert [diagnosis.history.lines[line - 1].split(",")[0] for line in flat.lines] == ["13500", "14500"]


def test_a_target_loss_near_the_forecast_is_possible() -> None:
    history = logs.read_text(TEXTS["table"], "owner")
    context = resolve_context(history, Options(config="fineweb40m", corpus="fineweb", target_loss=3.51))
    target = diagnose(history, context, now=0.0).target
    assert target is not None
    assert target.possible


def test_missing_inputs_are_named() -> None:
    diagnosis = diagnosed(TEXTS["six points"])
    missing = " ".join(diagnosis.missing)
    assert "the train loss at the end of epoch 1 (step 7,019)" in missing
    needless = next(finding for finding in diagnosis.findings if finding.id == "unneeded-dropout")
    assert needless.status == "unknown"


@pytest.mark.parametrize("name", TEXTS)
def test_recommendations_are_ordered_and_can_be_run(name: str) -> None:
    diagnosis = diagnosed(TEXTS[name])
    assert diagnosis.recommendations
    action = diagnosis.recommendations[0].action
    assert action.startswith("For the same compute, train a 158M model for 5,100 steps")
    assert action.endswith(" h)") is (name == "stdout")
    gains = [one.gain for one in diagnosis.recommendations if one.gain is not None]
    assert gains == sorted(gains, reverse=True)
    for one in diagnosis.recommendations:
        assert one.gain is None or one.low is None or one.low > 0
    commands = [one.command for one in (*diagnosis.recommendations, *diagnosis.scenarios) if one.command]
    assert len(commands) >= 6
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "jaxgpt.train"]
        parser = Parser("train", "")
        parser.add_argument("--fork")
        parse_config(parser, words[3:])


def test_hours_of_another_model_come_from_the_device() -> None:
    """A log without step times: the roofline of the named GPU gives the hours."""
    history = logs.read_text(TEXTS["six points"], "owner")
    context = resolve_context(history, Options(config="fineweb40m", corpus="fineweb", gpu="4070"))
    action = diagnose(history, context, now=0.0).recommendations[0].action
    hours = re.fullmatch(r"For the same compute, train a 158M model for 5,100 steps \((\d+) h\)", action)
    assert hours
    assert 15 <= int(hours[1]) <= 30
