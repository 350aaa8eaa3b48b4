"""Everything that is said of a run, before it is put into text, JSON or a page."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxgpt.diagnose import annealing, arrival, checks, prior
from jaxgpt.diagnose.annealing import Posterior
from jaxgpt.diagnose.arrival import Arrival
from jaxgpt.diagnose.checks import recipe, recommendations, series
from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.claims import Claim, claims
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.diagnose.mixture import Forecast
from jaxgpt.diagnose.proofs import Proof
from jaxgpt.diagnose.setting import Setting
from jaxgpt.diagnose.whatif import WhatIf, what_ifs
from jaxgpt.logs.history import History

TOO_FEW = (
    "{count} validation losses past the warmup; {least} are needed, or the run's size, batch and corpus (--config, or "
    "--params, --batch-tokens and --corpus) for a forecast without any"
)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The answers. `arrival` is None where `no_arrival` says what it lacks, `forecast` where `no_forecast` says why."""

    history: History
    setting: Setting
    arrival: Arrival | None
    no_arrival: str
    posterior: Posterior | None
    forecast: Forecast | None
    no_forecast: str
    what_ifs: tuple[WhatIf, ...]
    findings: tuple[Finding, ...]  # all ids; supported ones first, by weight
    recommendations: tuple[Recommendation, ...]  # by expected gain
    claims: tuple[Claim, ...]  # what is claimed of the run, and whether it can be
    missing: tuple[str, ...]  # what to log or to give for a better answer
    proofs: tuple[Proof, ...] = ()  # of a run of ours: forecasts that were put to the test


def diagnose(history: History, setting: Setting, now: float | None = None) -> Diagnosis:
    """The diagnosis of the run behind `history`, seen at `now` (seconds since 1970; None: the clock's).

    Whatever the log lacks is said in the answer; nothing that a log may hold raises.
    """
    arrived = arrival.arrive(history, setting, now)
    no_arrival = arrival.unknown(history, setting)
    posterior, forecast, no_forecast = forecast_run(history, setting)
    judged = checks.run_checks(history, setting, posterior, forecast, arrived)
    lawless = _lawless(RunAnalysis(history, setting, posterior, forecast), judged)
    if posterior and lawless:
        posterior, forecast, no_forecast = None, None, lawless
    return Diagnosis(
        history=history,
        setting=setting,
        arrival=arrived,
        no_arrival=no_arrival,
        posterior=posterior,
        forecast=forecast,
        no_forecast=no_forecast,
        what_ifs=what_ifs(history, setting, posterior) if posterior else (),
        findings=judged,
        recommendations=recommendations.ordered(judged),
        claims=claims(RunAnalysis(history, setting, posterior, forecast)),
        missing=_missing(judged, no_arrival, no_forecast),
    )


def forecast_run(history: History, setting: Setting) -> tuple[Posterior | None, Forecast | None, str]:
    """The law fitted to the run and its final loss, or why there are none."""
    if not setting.total_steps:
        return None, None, "it is not known how long the run is to be (--total-steps)"
    if _lost(history):
        return None, None, "its loss is not finite"
    if not setting.rates.any():
        return None, None, "its learning rate is 0 throughout, or not known"
    held = prior.curve(history, setting)
    try:
        posterior = annealing.fit(held, prior.pre_run(setting))
    except ValueError:
        return None, None, TOO_FEW.format(count=int(held.used().sum()), least=annealing.LEAST_POINTS)
    return posterior, posterior.final(), ""


def _lost(history: History) -> bool:
    """Whether the last training or validation loss is none that a model can go on from."""
    trained = [step.loss for step in history.steps if step.loss is not None]
    evaluated = [evaluation.val for evaluation in history.evaluations if evaluation.val is not None]
    return any(not series.number(losses[-1]) for losses in (trained, evaluated) if losses)


def _lawless(case: RunAnalysis, judged: Iterable[Finding]) -> str:
    """Why no law of learning holds for the run, or nothing."""
    if any(finding.id == "divergence" and finding.status == "confirmed" for finding in judged):
        return "it has diverged, and no law is for a loss that rises"
    if recipe.stuck(case).result:
        return "it has learned no more than how frequent each token is"
    return ""


def _missing(judged: Iterable[Finding], no_arrival: str, no_forecast: str) -> tuple[str, ...]:
    """What would have to be measured or given, each thing once."""
    open_ones = [finding for finding in judged if finding.status == "unknown"]
    asked = [c.missing for finding in open_ones for c in finding.conditions if c.result is None]
    parts = [part for text in asked for part in text.split("; ")]
    return tuple(dict.fromkeys(text for text in (no_arrival, no_forecast, *parts) if text))
