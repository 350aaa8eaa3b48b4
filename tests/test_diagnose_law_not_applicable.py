"""Runs that no loss model covers: they have no forecast, and the first recommendation addresses the problem."""

import math
import random
from collections.abc import Callable

import pytest

from jaxgpt import logs
from jaxgpt.diagnose import messages
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis, diagnose
from jaxgpt.diagnose.finding import Condition, Finding
from jaxgpt.diagnose.options import Options


def diagnosed(loss: Callable[[int], float]) -> Diagnosis:
    """The diagnosis of 12,000 of 20,000 iterations of nanoGPT that follow `loss`."""
    noise = random.Random(0)
    lines = ["tokens per iteration will be: 524,288", "number of parameters: 40.56M"]
    for step in range(0, 12_000, 10):
        if step % 500 == 0:
            val = loss(step) + noise.gauss(0, 0.01)
            lines.append(f"step {step}: train loss {val + 0.01:.4f}, val loss {val:.4f}")
        lines.append(f"iter {step}: loss {loss(step) + noise.gauss(0, 0.05):.4f}, time {noise.gauss(3995, 20):.2f}ms")
    history = logs.read_text("\n".join(lines), "out.log")
    return diagnose(history, resolve_context(history, Options(config="fineweb40m", corpus="fineweb")), now=0.0)


def learning(step: int) -> float:
    return 3.3 + 6 * math.exp(-step / 150) + 1.5 * (1 + step / 300) ** -0.45


def diverging(step: int) -> float:
    return learning(step) + (3.5 * (1 - math.exp((8000 - step) / 300)) if step > 8000 else 0.0)


def confirmed(diagnosis: Diagnosis) -> list[str]:
    return [finding.id for finding in diagnosis.findings if finding.status == "confirmed"]


def test_learning_run_has_a_forecast() -> None:
    diagnosis = diagnosed(learning)
    assert diagnosis.forecast
    assert "divergence" not in confirmed(diagnosis)


@pytest.mark.parametrize(
    ("loss", "cause", "why", "first"),
    [
        (diverging, "divergence", "has diverged", "Use a peak learning rate of"),
        (lambda step: 10.82, "recipe-or-bug", "unigram model", "Train a short run with a known recipe"),
    ],
    ids=["diverged", "stuck"],
)
def test_law_does_not_apply(loss: Callable[[int], float], cause: str, why: str, first: str) -> None:
    diagnosis = diagnosed(loss)
    assert confirmed(diagnosis)[0] == cause
    assert diagnosis.forecast is diagnosis.posterior is None
    assert diagnosis.scenarios == ()
    assert why in diagnosis.no_forecast
    assert f". {first}" in messages.summary(diagnosis)[2]


def test_stuck_run_gets_no_annealing_advice() -> None:
    assert not {"lr-too-high", "not-annealed"} & set(confirmed(diagnosed(lambda step: 10.82)))


def test_ruled_out_cause_shows_earlier_evidence() -> None:
    finding = Finding(
        id="overfitting",
        conditions=(
            Condition("read twice", "2 epochs", True, (1,)),
            Condition("the gap grew", "validation is below train", None, (2,), "more"),
            Condition("it has cost loss", "0.002 nats", False),
            Condition("another sign", "nothing", None, (3,)),
        ),
    )
    assert messages.why_ruled_out(finding) == "not true that it has cost loss: 0.002 nats; validation is below train"
