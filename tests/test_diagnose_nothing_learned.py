"""Runs that learn nothing: a fault is reported, no forecast is stated, and no healthy run is taken for one."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxgpt import logs
from jaxgpt.diagnose import messages
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis, diagnose
from jaxgpt.diagnose.options import Options

LossAt = Callable[[int], float]
GUESS = math.log(50304)


def diagnosed(text: str, **options: object) -> Diagnosis:
    history = logs.read_text(text, "out.log")
    return diagnose(history, resolve_context(history, Options(**options)), now=0.0)  # type: ignore[arg-type]


def nanogpt(loss: LossAt, steps: int, *, rows: int | None = None, noise: float = 0.0) -> str:
    """nanoGPT's output: evaluations at every quarter, a training loss every 10 steps."""
    random_ = random.Random(0)
    lines = ["tokens per iteration will be: 16,384", "number of parameters: 10.65M"]
    lines += [f"found vocab_size = {rows} (inside data/meta.pkl)"] if rows else []
    for step in range(0, steps + 1, 10):
        if step % (steps // 4) == 0:
            lines.append(f"step {step}: train loss {loss(step):.4f}, val loss {loss(step):.4f}")
        lines.append(f"iter {step}: loss {loss(step) + random_.gauss(0, noise):.4f}, time 200.00ms, mfu 9.00%")
    return "\n".join(lines)


def table(loss: LossAt, steps: int, every: int, column: str = "val_loss") -> str:
    return f"step,{column}\n" + "".join(f"{step},{loss(step):.4f}\n" for step in range(0, steps + 1, every))


def at(level: float) -> LossAt:
    """A loss that falls from that of a guess to a level, and stays there."""
    return lambda step: level + (GUESS - level) * math.exp(-step / 20)


STUCK = {
    "at the guess": nanogpt(lambda step: 10.8259, 3000),
    "at the guess, training losses": table(lambda step: 10.8259, 100, 1, "loss"),
    "at 8.2": table(at(8.2), 3600, 100),
    "at 7.5, no vocabulary": table(at(7.5), 2000, 100),
    "at 8.2, few and noisy": "step,train_loss,val_loss\n"
    + "".join(f"{step},,8.2\n{step + 1},{8.2 + 0.1 * math.sin(step):.4f},\n" for step in range(200, 2401, 200)),
    "at 6.5, noisy": nanogpt(at(6.5), 1800, noise=0.1),
    "characters at 3.1": nanogpt(lambda step: 3.1 + 1.07 * math.exp(-step / 20), 2000, rows=65),
}


@pytest.mark.parametrize("total", [None, 20_000])
@pytest.mark.parametrize("name", STUCK)
def test_nothing_learned_is_a_fault_without_forecast(name: str, total: int | None) -> None:
    diagnosis = diagnosed(STUCK[name], total_steps=total, unique_tokens=1e6, params=10.65e6, batch_tokens=16_384)
    confirmed = [finding.id for finding in diagnosis.findings if finding.status == "confirmed"]
    assert confirmed[0] == "recipe-or-bug"
    assert not {"lr-too-high", "not-annealed", "noise-not-plateau", "repetition-risk", "overfitting"} & set(confirmed)
    assert (diagnosis.forecast, diagnosis.posterior, diagnosis.scenarios) == (None, None, ())
    assert "it learns nothing" in messages.forecast_sentence(diagnosis)
    assert messages.problem_sentence(diagnosis).startswith(
        "What is wrong: nothing is learned (the loss has stayed near"
    )


def falling(step: int) -> float:
    return 3.3 + 7.5 * (1 + step / 30) ** -0.45


LEARNING = {
    "early": table(falling, 200, 10),
    "an overfitting run": "step,train_loss,val_loss\n"
    + "".join(f"{step},{6 - step / 500:.4f},6.2000\n" for step in range(0, 2001, 100)),
    "a finetuned run": table(lambda step: 3.28, 2000, 100),
    "its known warmup": table(lambda step: 10.8, 150, 10),
    "characters": nanogpt(lambda step: 1.4 + 2.77 * (1 + step / 30) ** -0.45, 1000, rows=65),
}


@pytest.mark.parametrize("name", LEARNING)
def test_other_runs_are_not_stuck(name: str) -> None:
    diagnosis = diagnosed(LEARNING[name], total_steps=5000, warmup=120)
    assert "nothing is learned" not in messages.problem_sentence(diagnosis)
    assert "it learns nothing" not in messages.forecast_sentence(diagnosis)


JUMPS = {
    "within a step": (table(lambda step: 1.8 if step < 60 else 11.2, 170, 1, "train_loss"), "recipe-or-bug"),
    "to 7.5": (nanogpt(lambda step: 3.4 if step < 1000 else 7.5, 2000, noise=0.05), "recipe-or-bug"),
    "few training losses": (table(lambda step: 3.4 if step < 1000 else 7.5, 2000, 100, "train_loss"), "recipe-or-bug"),
    "evaluations alone": (table(lambda step: 3.4 if step < 1000 else 7.5, 2000, 100), "divergence"),
    "evaluations, to 5.5": (table(lambda step: 3.4 if step < 1000 else 5.5, 2000, 100), "divergence"),
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_that_stays_has_no_forecast(name: str) -> None:
    text, finding = JUMPS[name]
    diagnosis = diagnosed(text, total_steps=20_000, unique_tokens=1e7, batch_tokens=65_536)
    assert finding in [one.id for one in diagnosis.findings if one.status == "confirmed"]
    assert diagnosis.forecast is None
    assert messages.problem_sentence(diagnosis).startswith("What is wrong: ")


def rising(step: int) -> float:
    """A loss that falls to 3.5 and, from step 2,000 on, rises by one nat."""
    return 3.5 + 4 * math.exp(-step / 400) + max(step - 2000, 0) / 1000


@pytest.mark.parametrize("unique", [None, 1e7])
def test_a_rise_of_both_losses_is_a_divergence(unique: float | None) -> None:
    """A table with an evaluation every 100 steps and a training loss, on rows of its own, every 200."""
    rows = [f"{step},,{rising(step):.4f}" for step in range(100, 3001, 100)]
    rows += [f"{step + 1},{rising(step):.4f}," for step in range(200, 3001, 200)]
    rows.sort(key=lambda row: int(row.split(",")[0]))
    diagnosis = diagnosed("step,train_loss,val_loss\n" + "\n".join(rows), unique_tokens=unique, batch_tokens=65_536)
    statuses = {finding.id: finding.status for finding in diagnosis.findings}
    assert statuses["divergence"] == "confirmed"
    assert statuses["severe-overfitting"] != "confirmed"
    assert diagnosis.analysis.gap.points == ()  # ten training losses say nothing of the train loss at an evaluation


def test_equal_losses_of_both_splits_are_not_memorized() -> None:
    """Many epochs that the repetition law expects to cost a nat, of which train and validation show nothing."""
    text = "step,train_loss,val_loss\n" + "".join(f"{step},3.1000,3.1000\n" for step in range(0, 2001, 100))
    diagnosis = diagnosed(text, unique_tokens=1e6, batch_tokens=16_384, params=10.65e6, total_steps=5000)
    confirmed = {finding.id for finding in diagnosis.findings if finding.status == "confirmed"}
    assert not {"repetition-risk", "overfitting", "severe-overfitting", "data-limited"} & confirmed


# build-nanogpt's logs of two runs: in the first, each of 8 processes trains on its own gradients.
NOT_SYNCHRONIZED = {250: 6.43, 500: 5.6548, 750: 5.2014, 1000: 4.8797, 1500: 4.466, 2000: 4.274, 2500: 4.125}
SYNCHRONIZED = {250: 6.1631, 500: 5.1582, 750: 4.5704, 1000: 4.1533, 1250: 3.9518, 2500: 3.55}


@pytest.mark.parametrize("facts", [{}, {"total_steps": 19_073}, {"total_steps": 19_073, "corpus": "fineweb-edu"}])
@pytest.mark.parametrize(("losses", "is_broken"), [(NOT_SYNCHRONIZED, True), (SYNCHRONIZED, False)])
def test_gradients_without_synchronization(losses: dict[int, float], is_broken: bool, facts: dict[str, object]) -> None:
    text = "".join(f"{step} val {loss:.4f}\n{step} train {loss:.6f}\n" for step, loss in losses.items())
    diagnosis = diagnosed(text, params=124e6, batch_tokens=524_288.0, **facts)
    faults = [finding.id for finding in diagnosis.findings if finding.status == "confirmed"]
    assert ("recipe-or-bug" in faults) is is_broken
    forecast = diagnosis.forecast
    assert forecast is None or not is_broken or forecast.mean > 3.6


def test_a_healthy_baseline_does_not_hide_a_fault(tmp_path: Path) -> None:
    """Neither log has a length or a learning rate: that of the options counts for both."""
    texts = {
        name: "".join(f"{step} val {loss:.4f}\n{step} train {loss:.6f}\n" for step, loss in losses.items())
        for name, losses in (("broken", NOT_SYNCHRONIZED), ("healthy", dict(list(SYNCHRONIZED.items())[:-1])))
    }
    healthy = tmp_path / "healthy.txt"
    healthy.write_text(texts["healthy"])
    facts = {"total_steps": 19_073, "corpus": "fineweb-edu", "params": 124e6, "batch_tokens": 524_288.0}
    diagnosis = diagnosed(texts["broken"], baseline=str(healthy), **facts)
    assert "recipe-or-bug" in [finding.id for finding in diagnosis.findings if finding.status == "confirmed"]


INVALID = {
    "flat at 5.9": (table(at(5.9), 5900, 100), "it stopped learning early (the loss has stayed near 5.9 since"),
    "flat at 5": (table(at(5.0), 5900, 100), "it stopped learning early (the loss has stayed near 5 since"),
    "constant": (
        "step,val_loss\n" + "".join(f"{step},3.3\n" for step in range(100, 4000, 100)),
        "the last 39 validation losses are all exactly 3.3: a fault of the evaluation",
    ),
    "zero": (
        table(lambda step: falling(step) * (step < 2000), 3900, 100),
        "the validation loss is 0 since step 2,000: the model sees its targets",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_losses_of_no_trained_model_are_a_fault(name: str) -> None:
    text, problem = INVALID[name]
    diagnosis = diagnosed(text, total_steps=10_000)
    assert problem in messages.problem_sentence(diagnosis)
    assert (diagnosis.forecast, diagnosis.scenarios) == (None, ())
    confirmed = {finding.id for finding in diagnosis.findings if finding.status == "confirmed"}
    assert confirmed == {"recipe-or-bug"}


def test_a_flat_character_model_has_not_stopped_learning() -> None:
    diagnosis = diagnosed(nanogpt(at(1.5), 4000, rows=65, noise=0.01), total_steps=5000)
    assert "stopped learning" not in messages.problem_sentence(diagnosis)
