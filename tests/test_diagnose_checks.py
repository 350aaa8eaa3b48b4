"""Each finding in its three statuses, on synthetic runs."""

import pytest
from helpers.synthetic_runs import (
    BY_STATUS,
    REPEATED,
    RULED_OUT,
    TOTAL,
    analyze,
    find_all,
    flat,
    make_run,
    rising,
    training,
    widening,
)

from jaxgpt.diagnose.checks import CHECKS, run_checks
from jaxgpt.diagnose.context import RunContext
from jaxgpt.logs.history import History

RUNS = [
    pytest.param(name, status, own, seen, id=f"{name}: {status} {number}")
    for status, table in BY_STATUS.items()
    for name in CHECKS
    for number, (own, seen) in enumerate(table[name])
]


@pytest.mark.parametrize(("name", "status", "own", "seen"), RUNS)
def test_status(name: str, status: str, own: RunContext, seen: History) -> None:
    found = find_all(own, seen)[name]
    assert (found.status, found.conditions) == (status, found.conditions)
    for condition in found.conditions:
        assert condition.question
        assert condition.result is None or condition.evidence or not condition.lines
    if status == "unknown":
        assert any(condition.missing for condition in found.conditions if condition.result is None)
    if status != "confirmed":
        assert found.recommendations == ()


def test_consequences_of_overfitting_come_after_it() -> None:
    found = find_all(*make_run(REPEATED, gap=lambda steps: widening(steps) / 2, done=1000))
    assert found["overfitting"].status == found["repetition-risk"].status == "confirmed"
    assert (found["repetition-risk"].cost or 0.0) > (found["overfitting"].cost or 0.0) > 0.0
    assert list(found).index("overfitting") < list(found).index("repetition-risk")


def test_few_tokens_are_not_a_limit_of_the_model_size() -> None:
    level, ratio = find_all(*RULED_OUT["capacity-limited"][1])["capacity-limited"].conditions
    assert (level.result, ratio.result) == (True, False)


def test_nothing_is_repeated_in_the_first_epoch() -> None:
    first = find_all(*make_run(done=400))["overfitting"].conditions[0]
    assert (first.result, first.evidence) == (False, "0.10 epochs at step 400")


def test_growing_gradients_are_reported_before_a_divergence() -> None:
    own, seen = make_run(losses=training(flat), norms=lambda steps: 1 + 9.0 * (steps >= TOTAL - 8))
    found = find_all(own, seen)["divergence"]
    assert found.status == "ruled out"
    assert "the gradient norm grew from 1 to 10" in found.conditions[1].evidence


def test_confirmed_findings_come_first_by_cost() -> None:
    own, seen = make_run(REPEATED, val=rising, gap=widening)
    found = run_checks(analyze(own, seen))
    assert sorted(finding.id for finding in found) == sorted(CHECKS)
    held = [finding for finding in found if finding.status == "confirmed"]
    assert found[: len(held)] == tuple(held)
    costs = [finding.cost or 0.0 for finding in held]
    assert costs == sorted(costs, reverse=True)
    assert [finding.id for finding in held[:2]] == ["severe-overfitting", "overfitting"]
    statuses = [finding.status for finding in found]
    assert statuses == sorted(statuses, key=["confirmed", "unknown", "ruled out"].index)
