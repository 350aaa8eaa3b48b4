"""Losses that somebody claims or hopes for, held against the forecast: those that cannot be are marked, and why."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxgpt.budget import scaling_law
from jaxgpt.budget.recommend import required_for_loss
from jaxgpt.config import schedule
from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast, gaussian_forecast


class Claim(NamedTuple):
    """A claimed loss after `steps`, what is expected there, whether it is possible, and why not or what it needs."""

    claim: str
    steps: int
    low: float
    high: float
    expected: Forecast
    possible: bool
    reason: str


def claims(case: RunAnalysis) -> tuple[Claim, ...]:
    """The reader's own claim for the run's end (`--target-loss`)."""
    asked = (
        []
        if case.context.target_loss is None
        else [(case.total_steps, case.context.target_loss, case.context.target_loss)]
    )
    found = [_judged(case, steps, low, high) for steps, low, high in asked]
    return tuple(claim for claim in found if claim is not None)


def _judged(case: RunAnalysis, steps: int, low: float, high: float) -> Claim | None:
    expected = ending_at(case, steps)
    if expected is None:
        return None
    told = f"{high:g}" if low == high else f"{low:g} to {high:g}"
    possible = expected.low95 <= high
    said = f"a run of {steps:,} steps ends at {expected.mean:.3f} (95 %: {expected.low95:.2f} to {expected.high95:.2f})"
    if not possible:
        said += f", {expected.mean - high:.2f} above; that {_needs(case, high)}"
    return Claim(f"{steps:,} steps end at {told}", steps, low, high, expected, possible, said)


def _needs(case: RunAnalysis, loss: float) -> str:
    size = case.context.parameters
    return "takes a larger model, or another corpus" if not size else required_for_loss(size, case.context.corpus, loss)


def ending_at(case: RunAnalysis, steps: int) -> Forecast | None:
    """The loss of this run if it had been planned for `steps`; the law's where the curve gives no forecast."""
    if steps == case.context.total_steps and case.forecast is not None:
        return case.forecast
    optim = case.context.optim
    if case.posterior is not None and optim.learning_rate and steps > optim.warmup_steps:
        planned = optim if optim.schedule == "wsd" else replace(optim, decay_steps=None)
        return case.posterior.final_loss(np.asarray(schedule.learning_rates(planned, steps) / optim.learning_rate))
    asked = case.query_for(steps)
    if asked is None:
        return None
    law = scaling_law.predict_loss(asked)
    return gaussian_forecast(law.loss, law.sigma)
