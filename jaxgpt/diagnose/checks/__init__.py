"""Why a run is where it is: sixteen possible causes, each judged by conditions with their numbers.

A finding is `ruled out` as soon as one necessary condition is refuted, `unknown` if none is refuted and one was
not measured. Given a clean baseline (`RunContext.baseline`), losses are held against its curve instead of the law's.
"""

from collections.abc import Callable
from dataclasses import replace

from jaxgpt.diagnose.checks import (
    capacity,
    instabilities,
    learning_rate,
    recipe,
    recommendations,
    repetition,
    throughput,
)
from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.completion import CompletionEstimate
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.finding import IDS, Finding
from jaxgpt.diagnose.forecast.annealing import Posterior
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.logs.history import History

CHECKS: dict[str, Callable[[RunAnalysis], Finding]] = {
    "overfitting": repetition.overfitting,
    "severe-overfitting": repetition.severe,
    "repetition-risk": repetition.risk,
    "lr-too-high": learning_rate.too_high,
    "capacity-limited": capacity.capacity_limited,
    "data-limited": repetition.data_limited,
    "missing-regularization": repetition.missing_regularisation,
    "unneeded-dropout": repetition.needless_regularisation,
    "noise-not-plateau": learning_rate.noise,
    "not-annealed": learning_rate.not_annealed,
    "recipe-or-bug": recipe.recipe_or_bug,
    "divergence": instabilities.divergence,
    "loss-spikes": instabilities.spikes,
    "data-reused-after-resume": instabilities.seam,
    "throughput": throughput.throughput,
    "input-or-overhead-bound": throughput.pace,
}
# What follows from another finding stands behind it, whatever its own weight.
FOLLOWS = {
    "repetition-risk": "overfitting",
    "data-limited": "overfitting",
    "missing-regularization": "overfitting",
    "loss-spikes": "divergence",
}
BEHIND = 0.9
ORDER = {"confirmed": 0, "unknown": 1, "ruled out": 2}


def run_checks(
    history: History,
    context: RunContext,
    posterior: Posterior | None = None,
    forecast: Forecast | None = None,
    completion: CompletionEstimate | None = None,
) -> tuple[Finding, ...]:
    """All sixteen findings: supported ones first, by weight; then what cannot be told, then the rest, as in `IDS`."""
    baseline = None if context.baseline is None else RunAnalysis(context.baseline.history, context.baseline.context)
    return findings(RunAnalysis(history, context, posterior, forecast, completion, baseline))


def findings(run: RunAnalysis) -> tuple[Finding, ...]:
    found = {name: CHECKS[name](run) for name in IDS}
    for name, cause in FOLLOWS.items():
        if found[cause].status == "confirmed":
            most = BEHIND * found[cause].weight
            found[name] = replace(found[name], weight=min(found[name].weight, most))
    told = [replace(finding, recommendations=recommendations.advise(run, finding)) for finding in found.values()]
    return tuple(sorted(told, key=lambda v: (ORDER[v.status], -v.weight if v.status == "confirmed" else 0)))
