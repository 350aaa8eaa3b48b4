"""The table of the forecast's accuracy: recorded curves, priors of other families, and what it is compared with."""

import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT
from helpers.runs import Floats, cosine, drawn, trapezoid

from jaxgpt.diagnose.forecast.annealing import LossCurve
from jaxgpt.diagnose.forecast.law_variants import LAW_VARIANTS, Regression, run_traits
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


HEAD = "id,family,type,warmup,peak_lr,end_lr,total_steps,total_tokens,batch_tokens,epochs,n_total,quality\n"


def write(folder: Path, rows: list[tuple[str, str, LossCurve]]) -> None:
    """A folder of curves with their family and schedule in words."""
    index = HEAD
    for number, (family, words, curve) in enumerate(rows):
        points = "".join(f"{step},{loss}\n" for step, loss in zip(curve.steps, curve.losses))
        (folder / f"run{number}.csv").write_text("step,val_loss\n" + points)
        index += f"run{number},{family},{words},{curve.warmup},3e-4,3e-5,{len(curve.lr_fractions)},,524288,<1,1e8,\n"
    (folder / "index.csv").write_text(index)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trapezoid (linear warmdown 300)", trapezoid(1000, 300, 0.1)),
        ("stable 30% then linear to 0 (70%)", trapezoid(1000, 700, 0.1)),
        ("WSD linear decay from 800", trapezoid(1000, 200, 0.1)),
        ("cosine to 10%", cosine(1000)),
        ("constant", np.ones(1000)),
    ],
)
def test_schedule_is_parsed_from_its_description(
    bench: ModuleType, tmp_path: Path, words: str, expected: Floats
) -> None:
    curve = drawn(np.random.default_rng(0), expected, 0, LAW_VARIANTS[2])
    write(tmp_path, [("family", words, curve)])
    np.testing.assert_allclose(bench.read(tmp_path)[0].complete.lr_fractions, expected, atol=2e-3)


def test_curve_is_cut_where_its_share_ends(bench: ModuleType, tmp_path: Path) -> None:
    curve = drawn(np.random.default_rng(0), cosine(1000), 0, LAW_VARIANTS[2])
    write(tmp_path, [("family", "cosine to 10%", curve)])
    read = bench.read(tmp_path)[0]
    assert read.seen(0.5).steps.tolist() == [step for step in curve.steps if step <= 500]
    assert len(read.seen(0.5).lr_fractions) == 1000
    assert read.read(0.5, params=None)[1].parameters is None


def test_smoothed_end_averages_noise(bench: ModuleType, tmp_path: Path) -> None:
    curve = drawn(np.random.default_rng(0), cosine(1000), 0, LAW_VARIANTS[2])
    steps = np.arange(10, 1001, 2)
    losses = np.interp(steps, curve.steps, curve.losses) + np.random.default_rng(1).normal(0, 0.05, len(steps))
    write(tmp_path, [("family", "cosine to 10%", replace(curve, steps=steps, losses=losses))])
    assert bench.read(tmp_path)[0].smoothed_last == pytest.approx(curve.losses[-1], abs=0.03)


def test_recorded_curves_are_forecast_within_limits(bench: ModuleType, shared: Path) -> None:
    folder = shared / "forecast"
    if not (folder / "modded").is_dir():
        pytest.skip("the curves with weight decay are not here")
    curves = [curve for name in ("curves", "modded") for curve in bench.read(folder / name) if curve.core]
    assert len(curves) == 51
    results = bench.evaluate_forecasts(curves, (0.5,), {bench.LAW: {}}, baselines=False)
    for kind, bound in {"cosine": 0.005, "wsd": 0.009, "decayed": 0.014}.items():
        group = bench.pick(results, 0.5, kind=kind)
        assert bench.mean_absolute_error(group) <= bound
        assert bench.coverage(group, 80) >= 0.5
        assert bench.coverage(group, 95) >= 0.85
    assert 0.70 <= bench.coverage(results, 80) <= 0.92
    for shipped, learned in zip(LAW_VARIANTS, bench.learn(curves)):
        expected = (*learned.alpha, *learned.annealing_gain)
        assert (*shipped.alpha, *shipped.annealing_gain) == pytest.approx(expected, abs=0.002)
        assert shipped.rho == pytest.approx(learned.rho, abs=0.02)


def test_prior_leaves_its_family_out(bench: ModuleType, tmp_path: Path) -> None:
    random, rows = np.random.default_rng(6), []
    for i in range(18):
        gain = Regression(0.04 if i < 9 else 0.20, 0.0, 0.0, 0.05)
        usual = LAW_VARIANTS[2]._replace(annealing_gain=gain, rho=0.0)
        rows.append(("low" if i < 9 else "high", "cosine to 10%", drawn(random, cosine(3000, 100), 100, usual)))
    write(tmp_path, rows)
    curves = bench.read(tmp_path)
    prior_of = bench._priors(curves)
    for family, expected in (("high", 0.04), ("low", 0.20)):
        gain, _ = prior_of(family)[2].annealing_gain.predict(curves[0].complete.traits)
        assert gain == pytest.approx(expected, abs=0.02)
    assert bench._priors(curves[:12])("low") == LAW_VARIANTS  # three curves are too few to learn from


def test_spread_is_that_of_unseen_families(bench: ModuleType, tmp_path: Path) -> None:
    """Each family's own regression would be exact; from the other one, B is wrong by -33 or +50 %."""
    random, rows = np.random.default_rng(7), []
    for i in range(12):
        gain = Regression(0.10 if i < 6 else 0.15, 0.0, 0.0, 1e-3)
        shape = LAW_VARIANTS[2]._replace(annealing_gain=gain, rho=0.0)
        rows.append(("low" if i < 6 else "high", "cosine to 10%", drawn(random, cosine(3000, 100), 100, shape)))
    write(tmp_path, rows)
    curves = bench.read(tmp_path)
    assert bench.learn(curves)[2].annealing_gain.spread == pytest.approx(math.hypot(0.33, 0.5) / math.sqrt(2), abs=0.06)
    assert bench.learn(curves[:6])[2].annealing_gain.spread < 0.1  # one family alone: around its own regression


def test_regressions_are_learned_from_curves(bench: ModuleType, tmp_path: Path) -> None:
    random, rows, decays = np.random.default_rng(3), [], np.linspace(0, 3, 16)
    truth = Regression(0.05, 0.15, 0.0, 0.02)
    for number, decay in enumerate(decays):
        gain, _ = truth.predict(run_traits(3e-4 * decay, 3000, 524_288, 1e8))
        shape = LAW_VARIANTS[2]._replace(annealing_gain=Regression(gain, 0.0, 0.0, 0.02), rho=0.0)
        curve = drawn(random, trapezoid(3000, 1000, 0.1), 0, shape)
        rows.append((f"f{number % 4}", "WSD linear decay from 2000", curve))
    write(tmp_path, rows)
    curves = [
        replace(curve, options=replace(curve.options, weight_decay=decay))
        for curve, decay in zip(bench.read(tmp_path), decays)
    ]
    learned = bench.learn(curves)[2].annealing_gain
    assert learned.update_size == pytest.approx(0.15, abs=0.03)
    assert learned.spread < 0.1


def test_report_is_written_from_any_folder(bench: ModuleType, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        ("fam0", "cosine to 10%", drawn(random, cosine(3000, 100), 100, LAW_VARIANTS[2])),
        ("fam1", "WSD linear decay from 2000", drawn(random, trapezoid(3000, 1000, 0.1), 0, LAW_VARIANTS[2])),
    ]
    write(tmp_path, rows)
    text = bench.build_report([tmp_path], shares=(0.3, 0.5))
    assert "| cosine (1) | **annealing law** |" in text
    assert "| WSD, trapezoid, linear (1) | **annealing law** |" in text
