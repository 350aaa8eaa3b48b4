"""The diagnosis as JSON: what `--json` prints. docs/diagnose.md describes every field.

`version` grows when a field changes its meaning or goes; new fields may come without. Losses and gains are in nats per
token, times in seconds; what is not known, or not finite, is null.
"""

import dataclasses
from datetime import UTC, datetime
from typing import Any

from jaxgpt.budget.to_json import finite
from jaxgpt.diagnose import messages, proofs
from jaxgpt.diagnose.arrival import Arrival
from jaxgpt.diagnose.claims import Claim
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Condition, Finding, Recommendation
from jaxgpt.diagnose.mixture import Forecast
from jaxgpt.diagnose.whatif import WhatIf
from jaxgpt.logs.history import History
from jaxgpt.utils.formatting import LAST_DATE

VERSION = 2


def document(found: Diagnosis) -> dict[str, Any]:
    """The whole diagnosis as plain JSON values."""
    history, setting = found.history, found.setting
    whole = {
        "version": VERSION,
        "source": history.source,
        "format": history.format,
        "steps_done": history.done,
        "total_steps": setting.total_steps or None,
        "summary": list(messages.opening(found)),
        "eta": found.arrival and arrival(found.arrival),
        "forecast": found.forecast and forecast(found.forecast),
        "what_ifs": [what_if(one) for one in found.what_ifs],
        "findings": [finding(one, history) for one in found.findings],
        "recommendations": [advice(one) for one in found.recommendations],
        "claims": [claim(one) for one in found.claims],
        "proofs": [proofs.document(one) | {"forecast": forecast(one.forecast)} for one in found.proofs],
        "assumed": list(setting.assumed),
        "missing": list(found.missing),
        "notes": list(history.notes),
    }
    plain: dict[str, Any] = finite(whole)
    return plain


def arrival(held: Arrival) -> dict[str, Any]:
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


def what_if(held: WhatIf) -> dict[str, Any]:
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
