"""The annealing law against slow oracles, simulated runs and its limits."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from helpers.runs import Floats, cosine, drawn, step_drop, trapezoid, upto
from numpy.typing import NDArray

from jaxgpt.diagnose.forecast.annealing import ALPHAS, MISFIT, MISFIT_SCALES, LossCurve, fit
from jaxgpt.diagnose.forecast.gaussian_mixture import gaussian_forecast, mixture_forecast
from jaxgpt.diagnose.forecast.law_variants import LAW_VARIANTS, LawVariant, RunTraits, possible_traits
from jaxgpt.diagnose.forecast.schedule_integrals import MIN_LR_FRACTION, ScheduleIntegral

SCHEDULES = {
    "cosine": (cosine(3000, 100), 100),
    "trapezoid": (trapezoid(2000, 500), 0),
    "step": (step_drop(1500, 900, 0.1), 0),
    "constant": (np.ones(500), 0),
    "up again": (np.concatenate((cosine(400), cosine(400))), 0),
}


def slow_anneal(shape: LawVariant, rates: Floats, warmup: int, updates: int) -> float:
    """D after `updates`, one update at a time."""
    before, done, travelled = 0.0, 0.0, float(rates[:updates].sum())
    for k in range(updates):
        fallen = 0.0 if k < warmup else 1 - rates[k] ** shape.q
        effect = 1.0
        if shape.kernel:
            distance = travelled - rates[:k].sum()
            effect = 1 - (1 + 0.11 * max(rates[k], MIN_LR_FRACTION) ** -0.64 * distance) ** -0.58
        done += (fallen - before) * effect
        before = fallen
    return done


def slow_rows(shape: LawVariant, curve: LossCurve, updates: list[int]) -> Callable[[float], Floats]:
    """alpha -> what (L0, a, B, m) are multiplied with after each of `updates`."""
    total = (curve.lr_fractions**shape.p).sum()
    share = np.array([(curve.lr_fractions[:t] ** shape.p).sum() / total for t in updates])
    done = np.array([slow_anneal(shape, curve.lr_fractions, curve.warmup, t) for t in updates])
    cost = np.array([0.0 if curve.repetition is None else curve.repetition[t] for t in updates])
    return lambda alpha: np.stack((np.ones(len(updates)), share**-alpha, -done, cost), axis=1)


def slow_final(curve: LossCurve) -> tuple[float, float, float, float]:
    """Mean, sd, and the 10 % and 90 % points: losses seen and to come as one Gaussian, conditioned on those seen."""
    used = curve.usable()
    steps, seen = [int(t) for t in curve.steps[used]], curve.losses[used]
    parts = []
    rows_of = {shape: slow_rows(shape, curve, [*steps, len(curve.lr_fractions)]) for shape in LAW_VARIANTS}
    combinations = product(LAW_VARIANTS, possible_traits(curve.traits), MISFIT_SCALES)
    for shape, (likely, traits), (scale, frequent) in combinations:
        (a, a_sd), (b, b_sd) = shape.alpha.predict(traits), shape.annealing_gain.predict(traits)
        noise = (scale * MISFIT) ** 2 * max(len(steps) / 25, 1) + curve.noise**2
        weight = np.exp(-0.5 * ((ALPHAS - a) / a_sd) ** 2)
        for alpha, own in zip(ALPHAS, likely * frequent * weight / weight.sum()):
            rows = rows_of[shape](float(alpha))
            mean = rows @ [2.5, 0.25, b + shape.rho * b_sd * (alpha - a) / a_sd, 1.0]
            spread = np.diag([25.0, 1.0, b_sd**2 * (1 - shape.rho**2), 0.53**2])
            joint = rows @ spread @ rows.T
            within = joint[:-1, :-1] + noise * np.eye(len(seen))
            gain = np.linalg.solve(within, joint[:-1, -1])
            rest = seen - mean[:-1]
            log = -0.5 * (rest @ np.linalg.solve(within, rest) + np.linalg.slogdet(within)[1])
            log += 0.5 * max(len(steps) - 25, 0) * math.log(noise)  # 25 independent deviations
            variance = joint[-1, -1] - gain @ joint[:-1, -1] + (scale * MISFIT) ** 2
            parts.append((math.log(own) + log, mean[-1] + gain @ rest, math.sqrt(variance)))
    logs, means, sds = (np.array(x) for x in zip(*parts))
    weights = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
    mean = float(weights @ means)
    sd = math.sqrt(weights @ (sds**2 + means**2) - mean**2)
    return mean, sd, slow_point(weights, means, sds, 0.1), slow_point(weights, means, sds, 0.9)


def slow_point(weights: Floats, means: Floats, sds: Floats, level: float) -> float:
    low, high = means.min() - 9 * sds.max(), means.max() + 9 * sds.max()
    for _ in range(60):
        middle = (low + high) / 2
        below = sum(w * (1 + math.erf((middle - m) / s / math.sqrt(2))) / 2 for w, m, s in zip(weights, means, sds))
        low, high = (middle, high) if below < level else (low, middle)
    return float(low)


@pytest.fixture
def run() -> LossCurve:
    """A usual cosine run of 20,000 updates without noise."""
    course, steps = ScheduleIntegral.from_lr_fractions(cosine(20_000, 500), 500), np.arange(500, 20_001, 500)
    at = steps.astype(np.float64)
    losses = 2.9 + 0.3 * (course.cumulative_lr(0.25, at) / course.cumulative_lr(0.25, at[-1:])) ** -0.5
    losses -= 0.12 * course.annealing_progress(1.0, True, at)
    return LossCurve(steps=steps, losses=losses, lr_fractions=cosine(20_000, 500), warmup=500)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("shape", LAW_VARIANTS[:2], ids=["delayed", "at once"])
def test_annealing_progress_matches_explicit_sum(name: str, shape: LawVariant) -> None:
    rates, warmup = SCHEDULES[name]
    course = ScheduleIntegral.from_lr_fractions(rates, warmup)
    at = [1, len(rates) // 3, int(0.62 * len(rates)), len(rates) - 1, len(rates)]
    fast = course.annealing_progress(shape.q, shape.kernel, np.array(at, np.float64))
    np.testing.assert_allclose(fast, [slow_anneal(shape, rates, warmup, t) for t in at], atol=2e-3)


def test_blocks_match_the_exact_schedule() -> None:
    rates = cosine(50_000, 2000)
    for kernel, q in ((True, 1.0), (False, 0.85)):
        coarse = ScheduleIntegral.from_lr_fractions(rates, 2000)
        exact = ScheduleIntegral(np.arange(50_001, dtype=np.float64), rates, 2000)
        at = np.linspace(3000, 50_000, 40).round()
        np.testing.assert_allclose(coarse.cumulative_lr(0.5, at), exact.cumulative_lr(0.5, at), rtol=1e-4)
        # a thousandth of the drop is a ten-thousandth of a nat
        np.testing.assert_allclose(
            coarse.annealing_progress(q, kernel, at), exact.annealing_progress(q, kernel, at), atol=1e-3
        )


def test_many_targets_are_interpolated() -> None:
    course = ScheduleIntegral.from_lr_fractions(cosine(20_000), 0)
    at = np.arange(20_000, dtype=np.float64)
    np.testing.assert_allclose(
        course.annealing_progress(1.0, True, at)[::97], course.annealing_progress(1.0, True, at[::97]), atol=1.5e-3
    )


@pytest.mark.parametrize(("repeated", "sigma", "decay_rate"), [(False, 0.0, 0.1), (True, 0.02, 0.1), (True, 0.0, None)])
def test_forecast_is_the_conditional_of_one_joint_gaussian(
    repeated: bool, sigma: float, decay_rate: float | None
) -> None:
    curve = upto(drawn(np.random.default_rng(1), cosine(300, 10), 10, LAW_VARIANTS[0], 0.004), 0.8)
    cost = np.maximum(np.arange(301) / 100 - 1, 0) ** 0.7 * 0.02 if repeated else None
    traits = curve.traits._replace(decay_rate=decay_rate)
    curve = replace(curve, noise=sigma, repetition=cost, traits=traits)
    forecast = fit(curve).final_loss()
    mean, sd, low, high = slow_final(curve)
    assert forecast.mean == pytest.approx(mean, abs=2e-4)
    assert forecast.sd == pytest.approx(sd, rel=0.02)
    assert (forecast.low80, forecast.high80) == pytest.approx((low, high), abs=3e-4)


def test_mixture_intervals_match_samples() -> None:
    random = np.random.default_rng(0)
    weights, means, sds = np.array([0.5, 0.3, 0.2]), np.array([3.0, 3.1, 3.5]), np.array([0.02, 0.05, 0.01])
    kind = random.choice(3, 200_000, p=weights)
    samples = random.normal(means[kind], sds[kind])
    forecast = mixture_forecast(weights, means, sds)
    assert (forecast.mean, forecast.sd) == pytest.approx((samples.mean(), samples.std()), abs=2e-3)
    assert forecast[2:] == pytest.approx(np.quantile(samples, (0.1, 0.9, 0.025, 0.975)), abs=2e-3)


@pytest.mark.parametrize(("share", "bound"), [(0.5, 0.012), (0.7, 0.007)])
def test_intervals_cover_simulated_runs(share: float, bound: float) -> None:
    random = np.random.default_rng(5)
    inside80, inside95, errors = [], [], []
    for i in range(120):
        complete = drawn(random, cosine(4000, 100), 100, LAW_VARIANTS[i % 6], 0.003)
        forecast = fit(upto(complete, share)).final_loss()
        end = complete.losses[-1]
        inside80.append(forecast.low80 <= end <= forecast.high80)
        inside95.append(forecast.low95 <= end <= forecast.high95)
        errors.append(abs(forecast.mean - end))
    assert 0.70 <= np.mean(inside80) <= 0.92
    assert np.mean(inside95) >= 0.90
    assert np.mean(errors) < bound


def test_annealing_gain_is_learned_after_the_decay() -> None:
    random, rates = np.random.default_rng(2), trapezoid(5000, 1500)
    course = ScheduleIntegral.from_lr_fractions(rates, 0)
    steps = np.arange(100, 5001, 100)
    at = steps.astype(np.float64)
    share = course.cumulative_lr(0.25, at) / 5000
    losses = 3 + 0.25 * share**-0.5 - 0.17 * course.annealing_progress(1.0, True, at) + random.normal(0, 5e-4, len(at))
    traits = RunTraits(decay_rate=0.1, steps=5.0, log_ratio=0.0)
    complete = LossCurve(steps=steps, losses=losses, lr_fractions=rates, traits=traits)
    before, after = fit(upto(complete, 0.6)).annealing_gain, fit(complete, variants=LAW_VARIANTS[2:3]).annealing_gain
    prior = LAW_VARIANTS[2].annealing_gain.predict(complete.traits)
    assert before == pytest.approx(prior, abs=0.02)
    assert after[0] == pytest.approx(0.17, abs=0.012)
    assert after[1] < 0.6 * before[1]


def test_step_count_does_not_matter_without_kernel() -> None:
    at_once = [shape for shape in LAW_VARIANTS if not shape.kernel]
    short = upto(drawn(np.random.default_rng(4), cosine(4000), 0, at_once[1], 0.003), 0.6)
    long = replace(short, steps=short.steps * 25, lr_fractions=np.repeat(short.lr_fractions, 25))
    assert fit(long, variants=at_once).final_loss() == pytest.approx(
        fit(short, variants=at_once).final_loss(), abs=5e-4
    )


def test_million_steps_forecast_like_blocks() -> None:
    complete = drawn(np.random.default_rng(8), cosine(1_000_000, 2000), 2000, LAW_VARIANTS[2])
    assert abs(fit(upto(complete, 0.7)).final_loss().mean - complete.losses[-1]) < 0.01


def test_forecast_shifts_with_the_losses(run: LossCurve) -> None:
    seen = upto(run, 0.5)
    higher = replace(seen, losses=seen.losses + 0.5)
    assert fit(higher).final_loss().mean - fit(seen).final_loss().mean == pytest.approx(0.5, abs=2e-3)


def test_order_of_variants_does_not_matter(run: LossCurve) -> None:
    seen = upto(run, 0.5)
    assert fit(seen, variants=LAW_VARIANTS[::-1]).final_loss() == pytest.approx(fit(seen).final_loss(), abs=1e-9)


def test_many_evaluations_are_averaged(run: LossCurve) -> None:
    steps = np.arange(10, 14_000, 10)
    dense = replace(run, steps=steps, losses=np.interp(steps, run.steps, run.losses))
    sparse = replace(dense, steps=steps[9::10], losses=dense.losses[9::10])
    assert fit(dense).final_loss().mean == pytest.approx(fit(sparse).final_loss().mean, abs=2e-3)


def test_more_noisy_evaluations_narrow_the_interval(run: LossCurve) -> None:
    spreads = []
    for every in (200, 20, 2):
        steps = np.arange(every, 10_000, every)
        dense = replace(run, steps=steps, losses=np.interp(steps, run.steps, run.losses), noise=0.2)
        spreads.append(fit(dense).final_loss().sd)
    assert spreads[1] < 0.8 * spreads[0]
    assert spreads[2] < 0.8 * spreads[1]


def test_forecast_without_losses_is_the_prior() -> None:
    nothing = LossCurve(steps=np.zeros(0, np.int64), losses=np.zeros(0), lr_fractions=cosine(1000))
    forecast = fit(nothing, gaussian_forecast(3.2, 0.05)).final_loss()
    assert (forecast.mean, forecast.sd) == pytest.approx((3.2, 0.05), abs=2e-3)
    assert (forecast.low80, forecast.high95) == pytest.approx((3.2 - 1.28 * 0.05, 3.2 + 1.96 * 0.05), abs=4e-3)


def test_prior_loses_weight_during_the_run(run: LossCurve) -> None:
    wrong = gaussian_forecast(run.losses[-1] + 0.2, 0.05)
    errors = [fit(upto(run, share), wrong).final_loss().mean - run.losses[-1] for share in (0.02, 0.2, 0.5, 1.0)]
    assert errors[0] > 0.15
    assert 0.15 > errors[1] > 0.001
    assert abs(errors[2]) < 0.02
    assert abs(errors[3]) < 0.003


def test_prior_weight_depends_on_its_sd(run: LossCurve) -> None:
    seen = upto(run, 0.4)
    assert fit(seen, gaussian_forecast(9.0, 1e4)).final_loss() == pytest.approx(fit(seen).final_loss(), abs=1e-4)
    assert fit(seen, gaussian_forecast(run.losses[-1] + 0.01, 1e-5)).final_loss().mean == pytest.approx(
        run.losses[-1] + 0.01, abs=1e-3
    )


def test_too_few_evaluations_raise(run: LossCurve) -> None:
    early = replace(run, steps=np.array([0, 1, 400]), losses=np.array([10.8, 10.7, 5.0]))
    with pytest.raises(ValueError, match="usable evaluations"):
        fit(early)
    with pytest.raises(ValueError, match="usable evaluations"):
        fit(replace(run, losses=np.full(len(run.steps), np.nan)))


def test_non_finite_losses_are_ignored(run: LossCurve) -> None:
    seen = upto(run, 0.6)
    broken = seen.losses.copy()
    broken[[5, 9]] = np.nan, np.inf
    kept = np.isfinite(broken)
    clean = replace(seen, steps=seen.steps[kept], losses=seen.losses[kept])
    assert fit(replace(seen, losses=broken)).final_loss() == fit(clean).final_loss()


@pytest.mark.parametrize(
    "wrong",
    [
        {"losses": np.ones(3)},
        {"lr_fractions": np.ones(0)},
        {"repetition": np.ones(7)},
        {"steps": np.arange(40)[::-1]},
    ],
)
def test_inconsistent_curve_is_refused(run: LossCurve, wrong: dict[str, NDArray[np.generic]]) -> None:
    with pytest.raises(ValueError, match="curve"):
        replace(run, **wrong)


def test_prediction_at_the_end_is_the_forecast(run: LossCurve) -> None:
    posterior = fit(upto(run, 0.5), gaussian_forecast(3.0, 0.1))
    mean, sd = posterior.predict([5_000, 20_000])
    assert (mean[1], sd[1]) == pytest.approx(posterior.final_loss()[:2], rel=1e-9)
    assert sd[0] < sd[1]
    assert mean[0] == pytest.approx(np.interp(5_000, run.steps, run.losses), abs=0.005)


def test_longer_runs_and_lower_rates_end_lower(run: LossCurve) -> None:
    posterior = fit(upto(run, 0.5))
    lengths = [posterior.final_loss(cosine(total, 500)).mean for total in (12_000, 20_000, 30_000, 60_000)]
    assert np.all(np.diff(lengths) < 0)
    ends = [posterior.final_loss(cosine(20_000, 500, end)).mean for end in (0.5, 0.3, 0.1, 0.03)]
    assert np.all(np.diff(ends) < 0)


def test_past_does_not_depend_on_future_rates(run: LossCurve) -> None:
    posterior = fit(upto(run, 0.5))
    longer = np.concatenate((run.lr_fractions[:10_000], np.linspace(run.lr_fractions[9_999], 0, 25_000)))
    for planned, other in zip(posterior.predict([4_000, 9_000]), posterior.predict([4_000, 9_000], longer)):
        assert planned == pytest.approx(other, abs=2e-4)


def test_cooldown_now_ends_between_now_and_the_end(run: LossCurve) -> None:
    posterior = fit(upto(run, 0.5))
    fall = np.linspace(1, 0.1, 1000) * run.lr_fractions[9_999] / 1.0
    branch = posterior.final_loss(np.concatenate((run.lr_fractions[:10_000], fall)))
    now = posterior.predict([10_000])[0][0]
    assert posterior.final_loss().mean < branch.mean < now
    left = posterior.remaining_annealing_gain(10_000, np.concatenate((run.lr_fractions[:10_000], fall)))
    assert 0 < left[0] < posterior.annealing_gain[0]


def test_remaining_annealing_gain_ends_at_zero(run: LossCurve) -> None:
    posterior = fit(upto(run, 0.5))
    left = [posterior.remaining_annealing_gain(step)[0] for step in (600, 5_000, 10_000, 20_000)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert left[0] == pytest.approx(0.9 * posterior.annealing_gain[0], rel=0.15)


def test_repetition_cost_is_learned_and_continues(run: LossCurve) -> None:
    cost = 0.05 * np.maximum(np.arange(20_001) / 5_000 - 1, 0) ** 0.683
    for times in (0.6, 1.0, 1.4):
        complete = replace(run, losses=run.losses + times * cost[run.steps], repetition=cost)
        with_cost = fit(upto(complete, 0.7)).final_loss()
        without = fit(replace(upto(complete, 0.7), repetition=None)).final_loss()
        assert abs(with_cost.mean - complete.losses[-1]) < 0.012
        assert abs(with_cost.mean - complete.losses[-1]) < abs(without.mean - complete.losses[-1])
        assert with_cost.low80 <= complete.losses[-1] <= with_cost.high80


def test_unknown_repetition_cost_widens_interval(run: LossCurve) -> None:
    cost = 0.1 * np.maximum(np.arange(20_001) / 12_000 - 1, 0)  # none yet at half of the run
    known, unknown = fit(upto(run, 0.5)).final_loss(), fit(replace(upto(run, 0.5), repetition=cost)).final_loss()
    assert unknown.mean - known.mean == pytest.approx(cost[-1], abs=2e-3)
    assert unknown.sd == pytest.approx(math.hypot(known.sd, 0.53 * cost[-1]), rel=0.03)


def test_repetition_continues_beyond_the_end(run: LossCurve) -> None:
    cost = 1e-5 * np.arange(20_001)
    posterior = fit(replace(run, repetition=cost), gaussian_forecast(3.0, 1.0))
    longer = cosine(30_000, 500)
    assert posterior.final_loss(longer).mean == pytest.approx(
        posterior.final_loss(longer, 1e-5 * np.arange(30_001)).mean, abs=1e-6
    )
