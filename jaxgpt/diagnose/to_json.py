"""The diagnosis as JSON: what `--json` prints. docs/diagnose.md describes every field.

`version` grows when a field changes its meaning or goes; new fields may come without. Losses and gains are in nats per
token, times in seconds; what is not known, or not finite, is null.
"""

import dataclasses
from datetime import UTC, datetime
from typing import Any

from jaxgpt.diagnose import backtest, messages
from jaxgpt.diagnose.claims import Claim
from jaxgpt.diagnose.completion import CompletionEstimate
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Condition, Finding, Recommendation
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.forecast.scenarios import ScenarioForecast
from jaxgpt.logs.history import History
from jaxgpt.utils.formatting import LAST_DATE
from jaxgpt.utils.report.json_renderer import finite

VERSION = 2


def document(found: Diagnosis) -> dict[str, Any]:
    """The whole diagnosis as plain JSON values."""
    history, context = found.history, found.context
    whole = {
        "version": VERSION,
        "source": history.source,
        "format": history.format,
        "steps_done": history.steps_done,
        "total_steps": context.total_steps or None,
        "summary": list(messages.opening(found)),
        "eta": found.completion and arrival(found.completion),
        "forecast": found.forecast and forecast(found.forecast),
        "scenarios": [what_if(one) for one in found.scenarios],
        "findings": [finding(one, history) for one in found.findings],
        "recommendations": [advice(one) for one in found.recommendations],
        "claims": [claim(one) for one in found.claims],
        "backtests": [backtest.to_dict(one) | {"forecast": forecast(one.forecast)} for one in found.backtests],
        "assumed": list(context.assumed),
        "missing": list(found.missing),
        "notes": list(history.notes),
    }
    plain: dict[str, Any] = finite(whole)
    return plain


def arrival(held: CompletionEstimate) -> dict[str, Any]:
    return {
        "done": held.done,
        "steps_left": held.steps_left,
        "seconds": held.seconds,
        "low": held.low,
        "high": held.high,
        "arrives": instant(held.clock),
        "counted_from": held.counted_from,
        "pace": held.pace and held.pace._asdict(),
        "parts": [part._asdict() for part in held.parts],
        "trend": held.trend and held.trend._asdict() | {"change": held.trend.change},
        "scenarios": [scenario._asdict() for scenario in held.scenarios],
        "notes": list(held.notes),
    }


def instant(when: float) -> str | None:
    """`2026-11-24T19:05:11+00:00`; None beyond the calendar."""
    if not 0 <= when < LAST_DATE:
        return None
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")


def forecast(held: Forecast) -> dict[str, float]:
    return {
        "final_loss": held.mean,
        "low80": held.low80,
        "high80": held.high80,
        "low95": held.low95,
        "high95": held.high95,
        "sd": held.sd,
    }


def what_if(held: ScenarioForecast) -> dict[str, Any]:
    return {"what": held.what, "steps": held.steps, "command": held.command} | forecast(held.forecast)


def finding(held: Finding, history: History) -> dict[str, Any]:
    return {
        "id": held.id,
        "status": held.status,
        "conditions": [condition(one, history) for one in held.conditions],
        "recommendations": [advice(one) for one in held.recommendations],
    }


def condition(held: Condition, history: History) -> dict[str, Any]:
    quotes = [quote._asdict() for quote in messages.quotes(history, held.lines)]
    return {
        "question": held.question,
        "evidence": held.evidence,
        "result": held.result,
        "missing": held.missing,
        "lines": quotes,
    }


def claim(held: Claim) -> dict[str, Any]:
    return held._asdict() | {"expected": forecast(held.expected)}


def advice(held: Recommendation) -> dict[str, Any]:
    return dataclasses.asdict(held)
