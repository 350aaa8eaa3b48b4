"""The diagnosis of a run: its end, its forecast, its findings and what to do about them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from jaxgpt.budget.recommend import required_for_loss
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.backtest import Backtest
from jaxgpt.diagnose.checks import (
    faults,
    instabilities,
    invalid_losses,
    recommendations,
    repetition,
    run_checks,
    stagnation,
)
from jaxgpt.diagnose.completion import CompletionEstimate, estimate_completion, missing_for_completion
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.diagnose.forecast.annealing import Posterior
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.forecast.run_forecast import RunForecast, forecast_run, scaling_law_prior
from jaxgpt.diagnose.forecast.scenarios import ScenarioForecast, forecast_scenarios
from jaxgpt.logs.history import Evaluation, History
from jaxgpt.utils.formatting import format_loss, pluralize

NO_EVALUATION = "it is over, and the log has no validation loss of its end"


class TargetComparison(NamedTuple):
    """A target for the final loss (`--target-loss`) compared with the expected loss, in nats per token."""

    loss: float
    expected: Forecast | None  # None: the run is over
    possible: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is known about a run. A value is None where the reason beside it says why."""

    analysis: RunAnalysis
    posterior: Posterior | None
    forecast: Forecast | None  # of a run that is not over
    no_forecast: str  # why there is no forecast
    no_completion: str  # what the completion estimate lacks
    scenarios: tuple[ScenarioForecast, ...]
    findings: tuple[Finding, ...]  # of all checks; the confirmed ones first
    recommendations: tuple[Recommendation, ...]  # by expected gain
    target: TargetComparison | None
    missing: tuple[str, ...]  # what to log or to pass for a better answer
    backtests: tuple[Backtest, ...] = ()  # earlier forecasts of a jaxgpt run, compared with what followed

    @property
    def history(self) -> History:
        return self.analysis.history

    @property
    def context(self) -> RunContext:
        return self.analysis.context

    @property
    def final_evaluation(self) -> Evaluation | None:
        """The last evaluation of a run that is over: nothing is forecast there."""
        return self.analysis.final_evaluation

    @property
    def completion(self) -> CompletionEstimate | None:
        return self.analysis.completion


def diagnose(history: History, context: RunContext, now: float | None = None) -> Diagnosis:
    """Diagnoses the run of a log as of `now` (seconds since 1970; None: the current time).

    The result says what the log lacks; no content of a log raises.
    """
    fitted = forecast_run(history, context)
    run = analyze_run(history, context, fitted.posterior, fitted.final_loss, estimate_completion(history, context, now))
    findings = run_checks(run)
    posterior, forecast, no_forecast = _applicable_forecast(run, fitted)
    no_completion = missing_for_completion(history, context)
    return Diagnosis(
        analysis=run,
        posterior=posterior,
        forecast=forecast,
        no_forecast=no_forecast,
        no_completion=no_completion,
        scenarios=_scenarios(run, posterior) if posterior else (),
        findings=findings,
        recommendations=recommendations.ordered(findings),
        target=_compare_with_target(run, forecast),
        missing=_missing(findings, no_completion, no_forecast),
    )


def forecast_loss(history: History, context: RunContext) -> Forecast | None:
    """The forecast of `diagnose` alone, without its findings; None for a run that is over or broken."""
    fitted = forecast_run(history, context)
    return _applicable_forecast(analyze_run(history, context, fitted.posterior, fitted.final_loss), fitted).final_loss


def analyze_run(
    history: History,
    context: RunContext,
    posterior: Posterior | None = None,
    forecast: Forecast | None = None,
    completion: CompletionEstimate | None = None,
) -> RunAnalysis:
    """The analysis of a run and of the baseline run in its context."""
    other = context.baseline
    baseline = None if other is None else RunAnalysis(other.history, other.context)
    return RunAnalysis(history, context, posterior, forecast, completion, baseline)


def _applicable_forecast(run: RunAnalysis, fitted: RunForecast) -> RunForecast:
    """The forecast as far as it applies: none for a broken run, and none of a loss that has been measured."""
    reason = _law_inapplicable_reason(run)
    if reason:
        return RunForecast(None, None, reason)
    if run.is_finished:
        return RunForecast(fitted.posterior, None, "" if run.final_evaluation else fitted.unavailable or NO_EVALUATION)
    if fitted.posterior is not None and faults.is_above_law(run).result:
        return _forecast_without_law(run)
    return fitted


def _forecast_without_law(run: RunAnalysis) -> RunForecast:
    """The forecast from the losses alone, of a run that is far above what the scaling law predicts."""
    own = forecast_run(run.history, run.context, with_law=False)
    if own.posterior is None:
        return RunForecast(None, None, "it is far above what its size and tokens allow, and has too few losses yet")
    return own


def _law_inapplicable_reason(run: RunAnalysis) -> str:
    """Why no loss model applies to the run; empty where one does."""
    if instabilities.first_nonfinite(run) is not None:
        return "its loss is not finite"
    if instabilities.divergence(run).status == "confirmed":
        return "it has diverged, and the loss models do not cover a rising loss"
    rise = instabilities.find_rise(run)
    if faults.has_sudden_jump(run).result and rise is not None:
        return f"its loss jumped by {rise.height:.2f} nats at step {rise.step:,} and stayed high"
    stuck = stagnation.learns_nothing(run)
    if stuck.result:
        return f"{stagnation.describe(run)}: {stuck.evidence}"
    invalid = invalid_losses.is_invalid(run)
    if invalid.result:
        return invalid.evidence
    if run.forecast is not None and run.forecast.mean <= 0:
        return "the loss models do not cover it: they yield a negative loss"
    if memorized := repetition.costs_unknown(run):
        return f"{memorized}, and what repetition will cost is unknown without {run.context.missing('unique_tokens')}"
    if run.law.outside_repetition:
        return run.law.outside_repetition
    rows = run.context.vocab_size
    if rows and run.forecast is not None and run.forecast.mean > math.log(rows):
        return f"the loss models do not cover it: they yield more than the {math.log(rows):.2f} nats of a uniform guess"
    return "it was stopped early" if run.early_stop else ""


def _scenarios(run: RunAnalysis, posterior: Posterior) -> tuple[ScenarioForecast, ...]:
    """The scenarios of a run. Those of one that is over start from its last evaluation, not from the fitted loss."""
    scenarios = forecast_scenarios(run.history, run.context, posterior)
    if run.final_evaluation is None or run.final_evaluation.val is None:
        return scenarios
    offset = run.final_evaluation.val - posterior.final_loss().mean
    return tuple(scenario._replace(forecast=scenario.forecast.shifted(offset)) for scenario in scenarios)


def _compare_with_target(run: RunAnalysis, forecast: Forecast | None) -> TargetComparison | None:
    """Compares `--target-loss` with the forecast, or without one, with the scaling law."""
    loss = run.context.target_loss
    if loss is not None and run.final_evaluation is not None and run.final_evaluation.val is not None:
        end = run.final_evaluation.val
        return TargetComparison(loss, None, end <= loss, f"the run ended at {format_loss(end)}")
    if forecast is None:
        forecast = scaling_law_prior(run.context, run.total_steps)
    if loss is None or forecast is None:
        return None
    is_possible = forecast.low95 <= loss
    reason = (
        f"a run of {pluralize(run.total_steps, 'step')} ends at {forecast.mean:.3f} "
        f"(95 %: {forecast.low95:.2f} to {forecast.high95:.2f})"
    )
    if not is_possible:
        reason += f", {forecast.mean - loss:.2f} above; that {_needs(run, loss)}"
    return TargetComparison(loss, forecast, is_possible, reason)


def _needs(run: RunAnalysis, loss: float) -> str:
    size = run.context.parameters
    if not size:
        return "takes a larger model, or another corpus"
    return required_for_loss(size, run.context.corpus, loss, run.context.token_scale.value)


def _missing(findings: Iterable[Finding], no_completion: str, no_forecast: str) -> tuple[str, ...]:
    """What to measure or to pass for a better answer, without duplicates."""
    unknown = [finding for finding in findings if finding.status == "unknown"]
    needs = [need for finding in unknown for need in missing_inputs(finding)]
    return tuple(dict.fromkeys(need for need in (no_completion, no_forecast, *needs) if need))


def missing_inputs(finding: Finding) -> list[str]:
    """What to measure or to pass so that an unknown finding can be decided, without duplicates."""
    texts = [condition.missing for condition in finding.conditions if condition.result is None]
    return list(dict.fromkeys(need for text in texts for need in text.split("; ") if need))
