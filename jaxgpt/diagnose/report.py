"""The report of a diagnosis: one document that is printed, written as HTML or dumped as JSON.

docs/diagnose.md describes every JSON field. `version` grows when a field changes its meaning or goes; fields may be
added without. Losses and gains are in nats per token, times in seconds; what is unknown or not finite is null.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from jaxgpt.diagnose import backtest, figures, messages
from jaxgpt.diagnose.completion import CompletionEstimate
from jaxgpt.diagnose.diagnosis import Diagnosis, missing_inputs
from jaxgpt.diagnose.finding import Condition, Finding, Recommendation
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.forecast.scenarios import ScenarioForecast
from jaxgpt.diagnose.run_overview import RunOverview
from jaxgpt.logs.history import History
from jaxgpt.utils.formatting import LAST_DATE, UNKNOWN, format_duration, format_loss, format_rough_duration, pluralize
from jaxgpt.utils.report import Block, Code, Command, Items, Paragraph, Report, Section, Table

VERSION = 3
INTERVALS = tuple(name for name in Forecast._fields if name != "mean")
BRIEF_STEPS = 2  # recommendations of a brief report


def build_report(diagnosis: Diagnosis, run: RunOverview | None = None) -> Report:
    """The report: the main answers first, then `run`, which the page of a jaxgpt run shows, then their evidence."""
    history = diagnosis.history
    title = _title(diagnosis)
    answers: tuple[str, ...] = messages.summary(diagnosis)
    speed: tuple[Block, ...] = ()
    losses: tuple[Block, ...] = ()
    if run is None:
        speed = tuple(figures.step_time_figure(diagnosis))
        losses = tuple(figures.loss_figures(diagnosis))
    else:  # the figures are among its sections
        title = run.title
        answers = (run.result, *_answers_beside_result(diagnosis))
    return Report(
        title=title,
        summary=answers,
        sections=(
            *(run.sections if run else ()),
            Section("When it ends", (*_completion_blocks(diagnosis), *speed)),
            Section(
                "Where it ends: validation loss in nats per token",
                (*_forecast_blocks(diagnosis), *losses, *figures.schedule_figures(diagnosis)),
            ),
            Section("Why: confirmed", tuple(_confirmed_blocks(diagnosis))),
            Section("What to do, by expected gain", tuple(_recommendation_blocks(diagnosis.recommendations))),
            Section("Undecided, and what would decide it", _items(_needs(diagnosis))),
            Section("Ruled out", _items(_ruled_out(diagnosis))),
            Section("Target loss", _items(_target(diagnosis))),
            Section("Backtests of earlier forecasts", _items(backtest.format_backtests(diagnosis.backtests))),
            Section("Assumed", _items(diagnosis.context.assumed)),
            Section("How the log was read", _items(history.notes)),
        ),
        data=_data(diagnosis),
    )


def _answers_beside_result(diagnosis: Diagnosis) -> tuple[str, ...]:
    """The answers that the result of a run does not contain: of a run that is over, there is nothing to forecast."""
    end, forecast, problem = messages.summary(diagnosis)
    if diagnosis.analysis.early_stop:
        return end, problem
    is_done = diagnosis.completion is not None and diagnosis.completion.done
    return (problem,) if is_done else (end, forecast, problem)


def build_brief_report(diagnosis: Diagnosis) -> Report:
    """The three main answers and the first recommendations, which fit on one screen."""
    answers = (messages.eta_sentence(diagnosis), messages.forecast_sentence(diagnosis))
    recommendations = messages.first_steps(diagnosis)[:BRIEF_STEPS]
    steps = (*_recommendation_blocks(recommendations), Paragraph(_more(diagnosis)))
    return Report(
        title=_title(diagnosis),
        summary=(*answers, messages.limits_sentence(diagnosis)),
        sections=(
            Section("Target loss", _items(_target(diagnosis))),
            Section("Backtests of earlier forecasts", _items(backtest.format_backtests(diagnosis.backtests))),
            Section("How the log was read", _items(diagnosis.history.warnings)),
            Section("What to do" if recommendations else "More", steps),
        ),
    )


def _title(diagnosis: Diagnosis) -> str:
    history = diagnosis.history
    total = diagnosis.context.total_steps
    steps = f"{diagnosis.analysis.steps_done:,} of {total:,} steps" if total else pluralize(history.steps_done, "step")
    return f"{history.source}: {history.format}, {steps} done"


def _more(diagnosis: Diagnosis) -> str:
    """What the complete report adds."""
    parts = ["the evidence"]
    if diagnosis.context.assumed:
        parts.append(pluralize(len(diagnosis.context.assumed), "assumption"))
    if diagnosis.missing:
        parts.append(f"{pluralize(len(diagnosis.missing), 'fact')} that would help")
    return f"--verbose shows {', '.join(parts)}."


def _items(texts: tuple[str, ...]) -> tuple[Block, ...]:
    return (Items(texts),) if texts else ()


def _completion_blocks(diagnosis: Diagnosis) -> Iterator[Block]:
    completion = diagnosis.completion
    if completion is None:
        return
    rows = []
    for part in completion.breakdown:
        if part.spent is not None or part.remaining:
            spent = "unknown" if part.spent is None else format_duration(part.spent)
            rows.append((part.name, spent, format_rough_duration(part.remaining) if part.remaining else "–"))
    if rows:
        yield Table(("", "so far", "remaining"), tuple(rows))
    step_time = f"step time: {messages.step_time_text(completion)}"
    yield Items((step_time, f"trend: {messages.trend_text(completion)}", *completion.notes))
    if completion.scenarios:
        scenarios = [
            (scenario.description, format_rough_duration(scenario.seconds)) for scenario in completion.scenarios
        ]
        yield Table(("or it ends", "in"), tuple(scenarios))


def _forecast_blocks(diagnosis: Diagnosis) -> Iterator[Block]:
    last = diagnosis.final_evaluation
    rows = [_scenario_row(diagnosis, scenario) for scenario in diagnosis.scenarios]
    if last is not None:
        measured = ("as it ran, measured", f"{last.step:,}", UNKNOWN, format_loss(last.val or 0.0), UNKNOWN, UNKNOWN)
        rows.insert(0, measured)
    elif diagnosis.forecast is not None:
        as_planned = ScenarioForecast("as it runs", len(diagnosis.context.lr_fractions), diagnosis.forecast)
        rows.insert(0, _scenario_row(diagnosis, as_planned))
    else:
        yield Paragraph(f"no forecast: {diagnosis.no_forecast}")
    if rows:
        yield Table(("", "steps", "from now", "loss", "80 %", "95 %"), tuple(rows))


def _scenario_row(diagnosis: Diagnosis, scenario: ScenarioForecast) -> tuple[str, ...]:
    forecast = scenario.forecast
    return (
        scenario.description,
        f"{scenario.steps:,}",
        messages.time_until(diagnosis, scenario.steps),
        f"{forecast.mean:.3f}",
        f"{forecast.low80:.3f}–{forecast.high80:.3f}",
        f"{forecast.low95:.3f}–{forecast.high95:.3f}",
    )


def _with_status(diagnosis: Diagnosis, status: str) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.status == status]


def _confirmed_blocks(diagnosis: Diagnosis) -> Iterator[Block]:
    confirmed = _with_status(diagnosis, "confirmed")
    if not confirmed:
        yield Paragraph("no finding is confirmed")
    for finding in confirmed:
        yield Paragraph(f"{finding.id}: {messages.meaning(finding)}", strong=True)
        yield Items(tuple(f"{condition.question}: {condition.evidence}" for condition in finding.conditions))
        numbers = sorted({line for condition in finding.conditions for line in condition.lines})
        quotes = messages.quote_lines(diagnosis.history, numbers)
        if quotes:
            yield Code("\n".join(f"line {quote.number:,}: {quote.text}" for quote in quotes))


def _recommendation_blocks(recommendations: Sequence[Recommendation]) -> Iterator[Block]:
    for number, recommendation in enumerate(recommendations, start=1):
        yield Paragraph(f"{number}. {messages.recommendation_sentence(recommendation)}")
        if recommendation.command:
            yield Command(recommendation.command)


def _needs(diagnosis: Diagnosis) -> tuple[str, ...]:
    """What to measure or to pass, with the findings that need it; what most of them need comes first."""
    waiting: dict[str, list[str]] = {}
    for finding in _with_status(diagnosis, "unknown"):
        for need in missing_inputs(finding):
            waiting.setdefault(need, []).append(finding.id)
    by_count = sorted(waiting.items(), key=lambda item: -len(item[1]))
    return tuple(f"{need}: {', '.join(ids)}" for need, ids in by_count)


def _ruled_out(diagnosis: Diagnosis) -> tuple[str, ...]:
    ruled_out = _with_status(diagnosis, "ruled out")
    return tuple(f"{finding.id}: {messages.why_ruled_out(finding)}" for finding in ruled_out)


def _target(diagnosis: Diagnosis) -> tuple[str, ...]:
    target = diagnosis.target
    if target is None:
        return ()
    return (f"{target.loss:g}: {'possible' if target.possible else 'impossible'}; {target.reason}",)


def _data(diagnosis: Diagnosis) -> dict[str, Any]:
    history = diagnosis.history
    target = diagnosis.target
    stop = diagnosis.analysis.early_stop
    return {
        "version": VERSION,
        "source": history.source,
        "format": history.format,
        "steps_done": diagnosis.analysis.steps_done,
        "total_steps": diagnosis.context.total_steps or None,
        "eta": diagnosis.completion and _completion_data(diagnosis.completion),
        "stopped_early": stop.detail if stop else None,
        "forecast": _final_loss_data(diagnosis),
        "scenarios": [_scenario_data(scenario) for scenario in diagnosis.scenarios],
        "findings": [_finding_data(finding, history) for finding in diagnosis.findings],
        "recommendations": [dataclasses.asdict(item) for item in diagnosis.recommendations],
        "target": target and target._asdict() | {"expected": target.expected and _forecast_data(target.expected)},
        "backtests": [
            backtest.to_dict(test) | {"forecast": _forecast_data(test.forecast)} for test in diagnosis.backtests
        ],
        "assumed": diagnosis.context.assumed,
        "missing": diagnosis.missing,
        "notes": history.notes,
    }


def _completion_data(completion: CompletionEstimate) -> dict[str, Any]:
    trend = completion.trend
    unchanged = ("done", "steps_left", "seconds", "low", "high", "counted_from", "notes")
    return {name: getattr(completion, name) for name in unchanged} | {
        "ends_at": _iso_date(completion.end_time),
        "step_time": completion.step_time and completion.step_time._asdict(),
        "breakdown": [part._asdict() for part in completion.breakdown],
        "trend": trend and trend._asdict() | {"change": trend.change},
        "scenarios": [scenario._asdict() for scenario in completion.scenarios],
    }


def _iso_date(timestamp: float) -> str | None:
    """`2026-11-24T19:05:11+00:00`; None beyond the calendar."""
    if not 0 <= timestamp < LAST_DATE:
        return None
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")


def _final_loss_data(diagnosis: Diagnosis) -> dict[str, float | None] | None:
    """The final loss: measured for a run that is over, without intervals, else forecast; None without either."""
    if diagnosis.final_evaluation is not None:
        return {"final_loss": diagnosis.final_evaluation.val, **dict.fromkeys(INTERVALS)}
    return None if diagnosis.forecast is None else {**_forecast_data(diagnosis.forecast)}


def _forecast_data(forecast: Forecast) -> dict[str, float]:
    values = forecast._asdict()
    return {"final_loss": values.pop("mean"), **values}


def _scenario_data(scenario: ScenarioForecast) -> dict[str, Any]:
    data = scenario._asdict()
    return data | _forecast_data(data.pop("forecast"))


def _finding_data(finding: Finding, history: History) -> dict[str, Any]:
    return {
        "id": finding.id,
        "status": finding.status,
        "conditions": [_condition_data(condition, history) for condition in finding.conditions],
        "recommendations": [dataclasses.asdict(item) for item in finding.recommendations],
    }


def _condition_data(condition: Condition, history: History) -> dict[str, Any]:
    quotes = [quote._asdict() for quote in messages.quote_lines(history, condition.lines)]
    return condition._asdict() | {"lines": quotes}
