"""Each finding in its three statuses, on synthetic runs."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from helpers.synthetic_runs import (
    BY_STATUS,
    NOISY,
    REPEATED,
    RULED_OUT,
    TOTAL,
    analyze,
    find_all,
    flat,
    make_run,
    rising,
    slow,
    training,
    widening,
)

from jaxgpt.diagnose.checks import CHECKS, instabilities, run_checks, stagnation, throughput
from jaxgpt.diagnose.checks.learning_rate import noise_not_plateau
from jaxgpt.diagnose.context import RunContext
from jaxgpt.logs.history import Evaluation, History

RUNS = [
    pytest.param(name, status, context, history, id=f"{name}: {status} {number}")
    for status, table in BY_STATUS.items()
    for name in CHECKS
    for number, (context, history) in enumerate(table[name])
]


@pytest.mark.parametrize(("name", "status", "context", "history"), RUNS)
def test_status(name: str, status: str, context: RunContext, history: History) -> None:
    finding = find_all(context, history)[name]
    assert (finding.status, finding.conditions) == (status, finding.conditions)
    for condition in finding.conditions:
        assert condition.question
        assert condition.result is None or condition.evidence or not condition.lines
    if status == "unknown":
        assert any(condition.missing for condition in finding.conditions if condition.result is None)
    if status != "confirmed":
        assert finding.recommendations == ()


def test_consequences_of_overfitting_come_after_it() -> None:
    findings = find_all(*make_run(REPEATED, gap=lambda steps: widening(steps) / 2, done=1000))
    assert findings["overfitting"].status == findings["repetition-risk"].status == "confirmed"
    assert (findings["repetition-risk"].cost or 0.0) > (findings["overfitting"].cost or 0.0) > 0.0
    assert list(findings).index("overfitting") < list(findings).index("repetition-risk")


def test_few_tokens_are_not_a_limit_of_the_model_size() -> None:
    level, ratio = find_all(*RULED_OUT["capacity-limited"][1])["capacity-limited"].conditions
    assert (level.result, ratio.result) == (True, False)


def test_nothing_is_repeated_in_the_first_epoch() -> None:
    first = find_all(*make_run(done=400))["overfitting"].conditions[0]
    assert (first.result, first.evidence) == (False, "0.10 epochs at step 400")


def test_growing_gradients_are_reported_before_a_divergence() -> None:
    context, history = make_run(losses=training(flat), norms=lambda steps: 1 + 9.0 * (steps >= TOTAL - 8))
    finding = find_all(context, history)["divergence"]
    assert finding.status == "ruled out"
    assert "the gradient norm grew from 1 to 10" in finding.conditions[1].evidence


def test_confirmed_findings_come_first_by_cost() -> None:
    context, history = make_run(REPEATED, val=rising, gap=widening)
    findings = run_checks(analyze(context, history))
    assert sorted(finding.id for finding in findings) == sorted(CHECKS)
    confirmed = [finding for finding in findings if finding.status == "confirmed"]
    assert findings[: len(confirmed)] == tuple(confirmed)
    costs = [finding.cost or 0.0 for finding in confirmed]
    assert costs == sorted(costs, reverse=True)
    assert [finding.id for finding in confirmed[:2]] == ["severe-overfitting", "overfitting"]
    statuses = [finding.status for finding in findings]
    assert statuses == sorted(statuses, key=["confirmed", "unknown", "ruled out"].index)


def test_many_evaluations_show_what_two_cannot() -> None:
    """A line through the last 5 % of a long run's evaluations is less noisy than the difference of two."""
    context, history = make_run(NOISY, done=1600, val=slow, noise=0.03)
    dense = [Evaluation(step, 3.6 + 0.01 * (-1) ** step, line=step) for step in range(1521, 1601)]
    many = replace(history, evaluations=(*history.evaluations[:-2], *dense))
    two, eighty = (analyze(context, one).losses for one in (history, many))
    assert two.plateau_window is not None
    assert eighty.plateau_window is not None
    assert hidden_below(context, history) == pytest.approx(2 * (two.plateau_window.stderr or 0.0), abs=6e-4)
    assert hidden_below(context, many) == pytest.approx(2 * (eighty.plateau_window.stderr or 0.0), abs=6e-4)
    assert (eighty.plateau_window.stderr or 0.0) < 0.5 * (eighty.eval_stderr or 0.0)


def hidden_below(context: RunContext, history: History) -> float:
    """The limit that the evidence of a hidden decrease states."""
    evidence = find_all(context, history)["noise-not-plateau"].conditions[3].evidence
    return float(evidence.split("changes below ")[1].split()[0])


def test_a_gap_within_its_noise_has_not_widened() -> None:
    """Two standard errors of the difference of two gaps, as of any other difference."""
    run = analyze(*make_run(NOISY, done=1600, val=slow, noise=0.03, gap=lambda steps: 0.05 + 0.06 * (steps >= 1600)))
    first, last = run.gap.points[-2:]
    assert 1.5 < (last.value - first.value) / math.hypot(first.stderr, last.stderr) < 2
    condition = next(one for one in noise_not_plateau(run).conditions if one.question.startswith("the gap to"))
    assert (condition.result, condition.evidence) == (True, "+0.060 nats since step 800")


def test_shared_quantities_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost seconds where a log has a million steps."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            counts[name] += 1
            return function(*arguments)

        return count

    for module, name in ((instabilities, "_find_train_rise"), (throughput, "find_trend"), (stagnation, "_measure")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    for _ in range(2):
        run_checks(analyze(*make_run(losses=training(flat), seconds=lambda steps: 1.0 + 0 * steps)))
    assert counts == {"_find_train_rise": 2, "find_trend": 2, "_measure": 2 * 3}
