"""Runs that no law of learning is for: they get no forecast, and the first thing to do answers what is wrong."""

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


def judged(loss: Callable[[int], float]) -> Diagnosis:
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


def supported(found: Diagnosis) -> list[str]:
    return [finding.id for finding in found.findings if finding.status == "confirmed"]


def test_learning_run_has_a_forecast() -> None:
    found = judged(learning)
    assert found.forecast
    assert "divergence" not in supported(found)


@pytest.mark.parametrize(
    ("loss", "cause", "why", "first"),
    [
        (diverging, "divergence", "has diverged", "use a peak learning rate of"),
        (lambda step: 10.82, "recipe-or-bug", "unigram model", "train a short run with a known recipe"),
    ],
    ids=["diverged", "stuck"],
)
def test_law_does_not_apply(loss: Callable[[int], float], cause: str, why: str, first: str) -> None:
    found = judged(loss)
    assert supported(found)[0] == cause
    assert found.forecast is found.posterior is None
    assert found.scenarios == ()
    assert why in found.no_forecast
    assert f"First: {first}" in messages.summarize_problem(found)


def test_stuck_run_gets_no_annealing_advice() -> None:
    assert not {"lr-too-high", "not-annealed"} & set(supported(judged(lambda step: 10.82)))


def test_ruled_out_cause_shows_earlier_evidence() -> None:
    said = Finding(
        id="overfitting",
        conditions=(
            Condition("read twice", "2 epochs", True, (1,)),
            Condition("the gap grew", "validation stands below train", None, (2,), "more"),
            Condition("it has cost loss", "0.002 nats", False),
            Condition("another sign", "nothing", None, (3,)),
        ),
    )
    assert messages.why_ruled_out(said) == "not true that it has cost loss: 0.002 nats; validation stands below train"
