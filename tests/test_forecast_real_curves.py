"""Findings on real curves whose number of epochs is known. `docs/diagnose.md` has the figures and the misses.

The thresholds are those of the study that recovered these curves; none was changed after looking at a single one.
"""

from pathlib import Path

import pytest
from helpers import recorded
from helpers.recorded import Known

from jaxgpt.diagnose.checks import run_checks
from jaxgpt.diagnose.diagnosis import analyze_run

HALF, END = 0.5, 1.0
STATUSES: dict[tuple[str, float], dict[str, str]] = {}  # of the curves after a share of their steps, worked out once


@pytest.fixture(scope="module")
def known(shared: Path) -> list[Known]:
    return recorded.read(shared / "forecast" / "curves")


def status(curve: Known, share: float, finding: str = "overfitting") -> str:
    if (curve.name, share) not in STATUSES:
        seen = curve.until(share)
        findings = run_checks(analyze_run(seen.history, seen.context, recorded.posterior(seen.history, seen.context)))
        STATUSES[curve.name, share] = {finding_.id: finding_.status for finding_ in findings}
    return STATUSES[curve.name, share][finding]


@pytest.mark.parametrize("share", [HALF, END])
def test_few_epochs_are_not_overfitting(known: list[Known], share: float) -> None:
    few = [curve for curve in known if curve.epochs < 4.1]
    assert len(few) >= 20
    called = [
        (curve.name, v)
        for curve in few
        for v in ("overfitting", "severe-overfitting")
        if status(curve, share, v) == "confirmed"
    ]
    assert called == []


def test_many_epochs_are_detected_by_half_time(known: list[Known]) -> None:
    many = [curve for curve in known if curve.epochs > 13 and curve.ratio >= 0.3 and not curve.spiky]
    assert len(many) >= 3
    assert [curve.name for curve in many if status(curve, HALF) != "confirmed"] == []
    assert [curve.name for curve in many if status(curve, END, "severe-overfitting") != "confirmed"] == []


def test_seven_epochs_are_detected_by_the_end(known: list[Known]) -> None:
    seven = [curve for curve in known if 6 < curve.epochs < 8 and curve.ratio >= 0.3 and not curve.spiky]
    assert seven
    assert [curve.name for curve in seven if status(curve, END) != "confirmed"] == []


def test_missed_curves_have_a_reason(known: list[Known]) -> None:
    """The 8.7B runs fell from divergences all through their first epoch, so that their gap began wide and closed."""
    many = [curve for curve in known if curve.epochs > 6 and curve.ratio >= 0.3]
    missed = [curve.name for curve in many if status(curve, END) != "confirmed"]
    assert missed == ["db_8b7_14ep", "db_8b7_7ep"]
