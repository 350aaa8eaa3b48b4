"""Everything that is said of a run, before it is put into text, JSON or a page."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxgpt.diagnose import checks
from jaxgpt.diagnose.backtest import Backtest
from jaxgpt.diagnose.checks import recipe, recommendations
from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.claims import Claim, claims
from jaxgpt.diagnose.completion import CompletionEstimate, estimate_completion, missing_for_completion
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.diagnose.forecast.annealing import Posterior
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.diagnose.forecast.scenarios import ScenarioForecast, forecast_scenarios
from jaxgpt.logs.history import History


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The answers.

    `completion` is None where `no_completion` says what it lacks, `forecast` where `no_forecast` says why.
    """

    history: History
    context: RunContext
    completion: CompletionEstimate | None
    no_completion: str
    posterior: Posterior | None
    forecast: Forecast | None
    no_forecast: str
    scenarios: tuple[ScenarioForecast, ...]
    findings: tuple[Finding, ...]  # all ids; supported ones first, by weight
    recommendations: tuple[Recommendation, ...]  # by expected gain
    claims: tuple[Claim, ...]  # what is claimed of the run, and whether it can be
    missing: tuple[str, ...]  # what to log or to give for a better answer
    backtests: tuple[Backtest, ...] = ()  # of a run of ours: forecasts that were put to the test


def diagnose(history: History, context: RunContext, now: float | None = None) -> Diagnosis:
    """The diagnosis of the run behind `history`, seen at `now` (seconds since 1970; None: the clock's).

    Whatever the log lacks is said in the answer; nothing that a log may hold raises.
    """
    arrived = estimate_completion(history, context, now)
    no_completion = missing_for_completion(history, context)
    posterior, forecast, no_forecast = forecast_run(history, context)
    judged = checks.run_checks(history, context, posterior, forecast, arrived)
    lawless = _lawless(RunAnalysis(history, context, posterior, forecast), judged)
    if posterior and lawless:
        posterior, forecast, no_forecast = None, None, lawless
    return Diagnosis(
        history=history,
        context=context,
        completion=arrived,
        no_completion=no_completion,
        posterior=posterior,
        forecast=forecast,
        no_forecast=no_forecast,
        scenarios=forecast_scenarios(history, context, posterior) if posterior else (),
        findings=judged,
        recommendations=recommendations.ordered(judged),
        claims=claims(RunAnalysis(history, context, posterior, forecast)),
        missing=_missing(judged, no_completion, no_forecast),
    )


def _lawless(case: RunAnalysis, judged: Iterable[Finding]) -> str:
    """Why no law of learning holds for the run, or nothing."""
    if any(finding.id == "divergence" and finding.status == "confirmed" for finding in judged):
        return "it has diverged, and no law is for a loss that rises"
    if recipe.stuck(case).result:
        return "it has learned no more than how frequent each token is"
    return ""


def _missing(judged: Iterable[Finding], no_completion: str, no_forecast: str) -> tuple[str, ...]:
    """What would have to be measured or given, each thing once."""
    open_ones = [finding for finding in judged if finding.status == "unknown"]
    asked = [c.missing for finding in open_ones for c in finding.conditions if c.result is None]
    parts = [part for text in asked for part in text.split("; ")]
    return tuple(dict.fromkeys(text for text in (no_completion, no_forecast, *parts) if text))
