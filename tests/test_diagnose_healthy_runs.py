"""Healthy runs: no finding advises to change them, neither on made-up curves nor on published ones."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from helpers import recorded
from helpers.recorded import Known

from jaxgpt import logs
from jaxgpt.diagnose.analysis.series import Series, curve_scatter
from jaxgpt.diagnose.checks import run_checks
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import analyze_run, diagnose
from jaxgpt.diagnose.options import Options

# Findings that a healthy run that repeats little can have: properties, not problems.
PROPERTIES = {"not-annealed", "capacity-limited", "data-limited", "repetition-risk"}
SHARES = (0.3, 0.7)


def held(step: int) -> float:
    """The loss at a constant learning rate, which hardly falls any more: an anneal would lower it by 0.13."""
    return 3.42 + 1.2 * (1 + step / 60) ** -0.75


def table(last: int, rate: float) -> str:
    return "step,lr,val_loss\n" + "".join(f"{step},{rate},{held(step):.4f}\n" for step in range(0, last + 1, 125))


@pytest.mark.parametrize(
    ("rate", "facts"),
    [
        (1.8e-3, {"schedule": "wsd", "decay_steps": 2000}),
        (1.8e-2, {"schedule": "wsd", "decay_steps": 2000}),  # far above the tuned rate, but its decay is to come
        (1.8e-3, {"schedule": "constant"}),
        (1.8e-2, {}),  # it may be the constant part of such a schedule
        (2.5e-2, {"schedule": "constant", "optimizer": "muon"}),
    ],
)
def test_a_constant_rate_is_not_blamed(rate: float, facts: dict[str, object]) -> None:
    known = {"total_steps": 10_000, "params": 123.6e6, "batch_tokens": 524_288.0, "optimizer": "adamw"}
    history = logs.read_text(table(5000, rate), "out.csv")
    diagnosis = diagnose(history, resolve_context(history, Options(**(known | facts))), now=0.0)  # type: ignore[arg-type]
    findings = {finding.id: finding.status for finding in diagnosis.findings}
    assert findings["lr-too-high"] != "confirmed"
    assert findings["noise-not-plateau"] != "confirmed"


def test_noise_is_that_of_the_curve() -> None:
    """A falling curve without noise has almost none, where differences of neighbors show its bend."""
    steps = np.arange(250.0, 3001.0, 250.0)
    values = 1.4 + 2.77 * (1 + steps / 30) ** -0.45
    assert curve_scatter(Series(steps, values, steps.astype(np.int64))) == pytest.approx(0.0, abs=5e-4)
    random = np.random.default_rng(0)
    many = np.arange(250.0, 50_001.0, 250.0)
    noisy = Series(many, 3 + (many / 100) ** -0.5 + 0.02 * random.standard_normal(len(many)), many.astype(np.int64))
    assert curve_scatter(noisy) == pytest.approx(0.02, rel=0.25)


@pytest.fixture(scope="module")
def curves(shared: Path) -> list[Known]:
    """The published curves of at most four epochs, without those that spike."""
    known = recorded.read(shared / "forecast" / "curves")
    return [curve for curve in known if curve.epochs < 4.1 and not curve.spiky] + modded(shared / "forecast" / "modded")


def modded(folder: Path) -> list[Known]:
    """Public runs with decoupled weight decay, whose learning rates decay at the end."""
    if not folder.is_dir():
        return []
    with (folder / "index.csv").open(newline="") as file:
        return [_modded(folder, row) for row in csv.DictReader(file)]


def _modded(folder: Path, row: dict[str, str]) -> Known:
    history = logs.read(folder / f"{row['id']}.csv")
    known = Options(
        total_steps=int(row["total_steps"]),
        warmup=int(row["warmup"]),
        schedule="wsd",
        decay_steps=int(row["decay_steps"]),
        min_lr=0.0,
        peak_lr=float(row["peak_lr"]) if row["peak_lr"] else None,
        params=float(row["n_total"]),
        batch_tokens=524_288.0,
        corpus="fineweb",
    )
    return Known(row["id"], 0.5, math.nan, False, history, resolve_context(history, known))


@pytest.mark.parametrize("share", SHARES)
def test_published_curves_have_no_fault(curves: list[Known], share: float) -> None:
    assert len(curves) > 50
    called = []
    for curve in curves:
        seen = curve.until(share)
        run = analyze_run(seen.history, seen.context, recorded.posterior(seen.history, seen.context))
        faults = [one.id for one in run_checks(run) if one.status == "confirmed" and one.id not in PROPERTIES]
        called += [(curve.name, fault) for fault in faults]
    assert called == []
