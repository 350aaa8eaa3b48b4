"""Why a run is where it is: sixteen possible causes, each judged by conditions with their numbers.

A verdict is `not supported` as soon as one necessary condition is refuted, `cannot tell` if none is refuted and one was
not measured. Given a clean twin (`Setting.twin`), losses are held against its curve instead of the law's.
"""

from collections.abc import Callable
from dataclasses import replace

from jaxgpt.diagnose.annealing import Posterior
from jaxgpt.diagnose.arrival import Arrival
from jaxgpt.diagnose.mixture import Forecast
from jaxgpt.diagnose.setting import Setting
from jaxgpt.diagnose.verdict import IDS, Verdict
from jaxgpt.diagnose.verdicts import advice, failures, rate, recipe, repetition, size, speed
from jaxgpt.diagnose.verdicts.case import Case
from jaxgpt.logs.history import History

JUDGES: dict[str, Callable[[Case], Verdict]] = {
    "overfitting": repetition.overfitting,
    "severe-overfitting": repetition.severe,
    "repetition-risk": repetition.risk,
    "lr-too-high": rate.too_high,
    "capacity-limited": size.capacity_limited,
    "data-limited": repetition.data_limited,
    "missing-regularisation": repetition.missing_regularisation,
    "needless-regularisation": repetition.needless_regularisation,
    "noise-not-plateau": rate.noise,
    "not-annealed": rate.not_annealed,
    "recipe-or-bug": recipe.recipe_or_bug,
    "divergence": failures.divergence,
    "loss-spikes": failures.spikes,
    "resume-seam": failures.seam,
    "throughput": speed.throughput,
    "pace": speed.pace,
}
# What follows from another verdict stands behind it, whatever its own weight.
FOLLOWS = {
    "repetition-risk": "overfitting",
    "data-limited": "overfitting",
    "missing-regularisation": "overfitting",
    "loss-spikes": "divergence",
}
BEHIND = 0.9
ORDER = {"supported": 0, "cannot tell": 1, "not supported": 2}


def judge(
    history: History,
    setting: Setting,
    posterior: Posterior | None = None,
    forecast: Forecast | None = None,
    arrival: Arrival | None = None,
) -> tuple[Verdict, ...]:
    """All sixteen verdicts: supported ones first, by weight; then what cannot be told, then the rest, as in `IDS`."""
    twin = None if setting.twin is None else Case(setting.twin.history, setting.twin.setting)
    return verdicts(Case(history, setting, posterior, forecast, arrival, twin))


def verdicts(case: Case) -> tuple[Verdict, ...]:
    found = {name: JUDGES[name](case) for name in IDS}
    for name, cause in FOLLOWS.items():
        if found[cause].status == "supported":
            most = BEHIND * found[cause].weight
            found[name] = replace(found[name], weight=min(found[name].weight, most))
    told = [replace(verdict, advice=advice.advise(case, verdict)) for verdict in found.values()]
    return tuple(sorted(told, key=lambda v: (ORDER[v.status], -v.weight if v.status == "supported" else 0)))
