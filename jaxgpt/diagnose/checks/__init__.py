"""Sixteen checks of a run. Each makes one finding, a possible problem, from necessary conditions with their numbers.

Without a baseline run, losses are compared with the scaling law; with one, with its loss curve.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.checks import (
    capacity,
    faults,
    instabilities,
    learning_rate,
    recommendations,
    repetition,
    throughput,
)
from jaxgpt.diagnose.finding import Finding

CHECKS: dict[str, Callable[[RunAnalysis], Finding]] = {
    "overfitting": repetition.overfitting,
    "severe-overfitting": repetition.severe_overfitting,
    "repetition-risk": repetition.repetition_risk,
    "lr-too-high": learning_rate.lr_too_high,
    "capacity-limited": capacity.capacity_limited,
    "data-limited": repetition.data_limited,
    "missing-regularization": repetition.missing_regularization,
    "unneeded-dropout": repetition.unneeded_dropout,
    "noise-not-plateau": learning_rate.noise_not_plateau,
    "not-annealed": learning_rate.not_annealed,
    "recipe-or-bug": faults.recipe_or_bug,
    "divergence": instabilities.divergence,
    "loss-spikes": instabilities.loss_spikes,
    "data-reused-after-resume": instabilities.data_reused_after_resume,
    "throughput": throughput.slower_steps,
    "input-or-overhead-bound": throughput.input_or_overhead_bound,
}
# A confirmed finding that follows from another confirmed one comes after it, whatever its own cost.
CAUSES = {
    "overfitting": "severe-overfitting",
    "repetition-risk": "overfitting",
    "data-limited": "overfitting",
    "missing-regularization": "overfitting",
    "loss-spikes": "divergence",
}
# Confirmed findings come in the order of their cost; those without a known cost follow in this order.
WITHOUT_COST = (
    "recipe-or-bug",
    "data-reused-after-resume",
    "loss-spikes",
    "noise-not-plateau",
    "throughput",
    "input-or-overhead-bound",
    "unneeded-dropout",
)
STATUSES = ("confirmed", "unknown", "ruled out")


def run_checks(run: RunAnalysis) -> tuple[Finding, ...]:
    """All findings: the confirmed ones first, by what they cost, then the unknown ones, then those ruled out."""
    findings = {name: check(run) for name, check in CHECKS.items()}
    confirmed = {name: finding for name, finding in findings.items() if finding.status == "confirmed"}
    advised = [
        replace(finding, recommendations=recommendations.recommend(run, finding)) for finding in findings.values()
    ]
    return tuple(sorted(advised, key=lambda finding: _sort_key(finding, confirmed)))


def _sort_key(finding: Finding, confirmed: Mapping[str, Finding]) -> tuple[int, float, int, bool, int]:
    status = STATUSES.index(finding.status)
    if finding.status != "confirmed":
        return status, 0.0, 0, False, 0
    cost, depth = _rank(finding, confirmed)
    priority = WITHOUT_COST.index(finding.id) if finding.id in WITHOUT_COST else 0
    return status, -cost, depth, finding.is_minor, priority


def _rank(finding: Finding, confirmed: Mapping[str, Finding]) -> tuple[float, int]:
    """The cost, at most that of the cause, and the number of confirmed causes behind it."""
    cost = finding.cost or 0.0
    cause = confirmed.get(CAUSES.get(finding.id, ""))
    if cause is None:
        return cost, 0
    cost_of_cause, depth = _rank(cause, confirmed)
    return min(cost, cost_of_cause), depth + 1
