"""The table of the forecast's accuracy: recorded curves, priors of other families, and what it is compared with."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT
from helpers.runs import Floats, cosine, drawn, step_drop, trapezoid

from jaxgpt.diagnose.forecast.annealing import LAW_VARIANTS
from jaxgpt.diagnose.forecast.schedule_integrals import ScheduleIntegral


@pytest.fixture(scope="session")
def bench() -> Iterator[ModuleType]:
    """`bench/forecast.py` as a module."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        spec = importlib.util.spec_from_file_location("bench_forecast", ROOT / "bench" / "forecast.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bench_forecast"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "bench"))


@pytest.mark.parametrize("method", ["power", "Tissue", "multi-power"])
def test_baselines_fit_runs_of_their_own_form(bench: ModuleType, method: str) -> None:
    """The baselines are fair: each fits the curves that its own form describes."""
    course = ScheduleIntegral.from_lr_fractions(cosine(20_000, 500), 500)
    at = np.append(np.arange(2_000.0, 14_001.0, 250.0), 20_000.0)
    travel = course.cumulative_lr(1.0, at)
    if method == "power":
        losses = 3 + 40 * at**-0.6
    elif method == "Tissue":
        momentum = sys.modules["baselines"]._momentum(course)
        losses = 3 + 40 * travel**-0.6 - 2e-4 * np.interp(at, course.edges, momentum)
    else:
        fall, gain = sys.modules["baselines"]._Kernel(at, course).columns(0.6, 0.2, 0.5, 0.5)
        losses = 3 + 40 * fall + 0.13 * gain
    found = bench.METHODS[method](at[:-1], losses[:-1], course)
    assert found == pytest.approx(losses[-1], abs=0.002)


def test_baselines_use_the_schedule(bench: ModuleType) -> None:
    rates = cosine(3000, 100)
    course, at = ScheduleIntegral.from_lr_fractions(rates, 100), np.array([500.0, 1500.0, 3000.0])
    done = sys.modules["baselines"]._Kernel(at, course).columns(0.5, 0.11, 0.58, 0.64)[1]
    np.testing.assert_allclose(-done, course.annealing_progress(1.0, True, at), atol=0.01)
    held, total = 0.0, [0.0]
    for k in range(3000):
        held = 0.999 * held + (rates[k - 1] - rates[k] if k > 101 else 0.0)
        total.append(total[-1] + held)
    momentum = sys.modules["baselines"]._momentum(course)
    np.testing.assert_allclose(momentum[[500, 1500, 3000]], [total[500], total[1500], total[3000]], rtol=0.01)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trapezoid (linear warmdown 300)", trapezoid(1000, 300)),
        ("stable 30% then linear to 0 (70%)", trapezoid(1000, 700)),
        ("WSD linear decay from 800", trapezoid(1000, 200)),
        ("WSD exp decay from 800", 0.1 ** (np.maximum(np.arange(1000) - 800, 0) / 200)),
        ("step drop to 3e-5 at 600", step_drop(1000, 601, 0.1)),
        ("cosine to 10%", cosine(1000)),
        ("constant", np.ones(1000)),
    ],
)
def test_schedule_is_parsed_from_its_description(bench: ModuleType, words: str, expected: Floats) -> None:
    end = 0.1 if "exp" in words or "step" in words or "10%" in words else 0.0
    np.testing.assert_allclose(sys.modules["curves"]._described(words, 1000, 0, end), expected, atol=1e-9)


def test_recorded_curves_are_forecast_within_limits(bench: ModuleType, shared: Path) -> None:
    curves = [curve for curve in bench.read(shared / "forecast" / "curves") if curve.core]
    assert len(curves) == 27
    results = bench.evaluate_forecasts(curves, (0.3, 0.5, 0.7), baselines=False)
    limits = {"cosine": (0.0125, 0.007, 0.005), "wsd": (0.021, 0.014, 0.014)}
    for kind, bounds in limits.items():
        for share, bound in zip((0.3, 0.5, 0.7), bounds):
            assert bench.mean_absolute_error(bench.pick(results, share, kind=kind)) <= bound
    for share in (0.3, 0.5, 0.7):
        assert 0.75 <= bench.coverage(bench.pick(results, share), 80) <= 0.90


def test_prior_leaves_its_family_out(bench: ModuleType) -> None:
    random, curves = np.random.default_rng(6), []
    for i in range(18):
        usual = replace(LAW_VARIANTS[2], annealing_gain=(0.04 if i < 9 else 0.20, 0.01), rho=0.0)
        whole, family = drawn(random, cosine(3000, 100), 100, usual), "low" if i < 9 else "high"
        given = {"steps": whole.steps, "losses": whole.losses, "lr_fractions": whole.lr_fractions, "warmup": 100}
        curves.append(bench.Recorded(name=f"{i}", family=family, kind="cosine", repetition=None, **given))
    prior_of = bench._priors(curves)
    assert prior_of("high")[2].annealing_gain[0] == pytest.approx(0.04, abs=0.02)
    assert prior_of("low")[2].annealing_gain[0] == pytest.approx(0.20, abs=0.02)
    assert bench._priors(curves[:12])("low") == LAW_VARIANTS  # three curves are too few to learn from


def test_shipped_priors_match_the_curves(bench: ModuleType, shared: Path) -> None:
    for shipped, learned in zip(
        LAW_VARIANTS, bench.learn([c for c in bench.read(shared / "forecast" / "curves") if c.core])
    ):
        assert (*shipped.alpha, *shipped.annealing_gain) == pytest.approx(
            (*learned.alpha, *learned.annealing_gain), abs=0.002
        )
        assert shipped.rho == pytest.approx(learned.rho, abs=0.02)


def test_report_is_written_from_any_folder(bench: ModuleType, tmp_path: Path) -> None:
    head = "id,family,type,warmup,peak_lr,end_lr,total_steps,total_tokens,batch_tokens,epochs,n_total,quality\n"
    rows, random = [], np.random.default_rng(0)
    for i, (kind, rates) in enumerate((("cosine to 10%", cosine(3000, 100)), ("WSD linear decay from 2000", None))):
        rates = trapezoid(3000, 1000, 0.1) if rates is None else rates
        whole = drawn(random, rates, 100 if i == 0 else 0, LAW_VARIANTS[2])
        points = "".join(f"{step},,,,{loss}\n" for step, loss in zip(whole.steps, whole.losses))
        (tmp_path / f"run{i}.csv").write_text("step,tokens,lr_or_blank,train_loss_or_blank,val_loss\n" + points)
        rows.append(f"run{i},fam{i},{kind},{100 if i == 0 else 0},3e-4,3e-5,3000,,524288,<1,1e8,\n")
    (tmp_path / "index.csv").write_text(head + "".join(rows))
    read = bench.read(tmp_path)
    np.testing.assert_allclose(read[0].lr_fractions, cosine(3000, 100), atol=1e-6)
    np.testing.assert_allclose(read[1].lr_fractions, trapezoid(3000, 1000, 0.1), atol=2e-3)
    text = bench.build_report([tmp_path])
    assert "| cosine (1) | **annealing law** |" in text
    assert "| WSD, trapezoid, linear (1) | **annealing law** |" in text
