"""What is known before a run, and a reference run's log with and without it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from jaxgpt.budget import scaling_law
from jaxgpt.budget.scaling_law import CORPORA
from jaxgpt.config import Optim, schedule
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.forecast import run_forecast
from jaxgpt.diagnose.forecast.annealing import fit
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.logs.history import Evaluation, History

REFERENCE_LOG = (
    (0, 10.87),
    (2000, 4.03),
    (5000, 3.76),
    (8000, 3.65),
    (11000, 3.61),
    (13500, 3.57),
    (14500, 3.569),
)


def context(warmup: int = 2000, **changed: object) -> RunContext:
    """The reference run: 20,000 steps of half a million tokens of FineWeb."""
    optim = Optim(learning_rate=1e-3, min_lr=1e-4, warmup_steps=warmup)
    values: dict[str, object] = {
        "total_steps": 20_000,
        "optim": optim,
        "lr_fractions": np.array([schedule.learning_rate(optim, 20_000, i) for i in range(20_000)]) / 1e-3,
        "corpus": CORPORA["fineweb"],
        "tokens_per_step": 524_288.0,
        "eval_tokens": 200.0 * 16 * 1024,
        "unique_tokens": 3.68e9,
        "parameters": 40.56e6,
        "vocab_size": 50_304,
        "optimizer": "adamw",
        "weight_decay": 0.1,
    }
    return RunContext(**(values | changed))  # type: ignore[arg-type]


def history(points: tuple[tuple[int, float], ...] = REFERENCE_LOG) -> History:
    return History(
        source="log", format="nanogpt", evaluations=tuple(Evaluation(step=step, val=val) for step, val in points)
    )


@pytest.mark.parametrize("warmup", [200, 1000, 2000])
@pytest.mark.parametrize("digits", [2, 3])
def test_reference_run_forecast(warmup: int, digits: int) -> None:
    points = tuple((step, round(val, digits)) for step, val in REFERENCE_LOG)
    known = context(warmup)
    curve = run_forecast.loss_curve(history(points), known)
    for forecast in (fit(curve).final_loss(), fit(curve, run_forecast.scaling_law_prior(known)).final_loss()):
        assert 3.50 <= forecast.mean <= 3.56
        assert 0.008 <= forecast.sd <= 0.02


@pytest.mark.parametrize("last", [8_000, 11_000])
def test_reference_run_early_forecast(last: int) -> None:
    posterior = forecast_run(history(tuple(p for p in REFERENCE_LOG if p[0] <= last)), context()).posterior
    assert posterior is not None
    assert 3.50 <= posterior.final_loss().mean <= 3.56
    assert posterior.final_loss().low80 <= 3.53 <= posterior.final_loss().high80


def test_prior_is_the_scaling_law() -> None:
    forecast = run_forecast.scaling_law_prior(context())
    assert forecast is not None
    assert forecast.mean == pytest.approx(3.539, abs=0.002)
    of_rate = 0.5 * 0.0086  # half of what its low learning rate costs
    assert forecast.sd == pytest.approx(math.hypot(scaling_law.SAME_RECIPE, 0.01, 0.7 * 0.0025, of_rate), abs=1e-4)
    shorter = run_forecast.scaling_law_prior(context(total_steps=10_000))
    assert shorter is not None
    assert shorter.mean > forecast.mean
    assert run_forecast.scaling_law_prior(context(parameters=None)) is None
    assert run_forecast.scaling_law_prior(context(tokens_per_step=None)) is None


def test_repetition_costs_match_the_planner() -> None:
    cost = run_forecast.repetition_costs(context())
    assert cost is not None
    assert len(cost) == 20_001
    assert cost[7_000] == 0
    for step in (7_100, 13_500, 20_000):
        assert cost[step] == pytest.approx(scaling_law.repetition_cost(40.56e6, step * 524_288.0, 3.68e9))
    assert run_forecast.repetition_costs(context(unique_tokens=None)) is None
    assert run_forecast.repetition_costs(context(unique_tokens=1e12)) is None


def noise_of(log: History, **facts: object) -> float:
    return run_forecast.loss_curve(log, context(**facts)).noise  # type: ignore[arg-type]


def test_evaluation_noise_scales_with_tokens() -> None:
    assert noise_of(history()) == pytest.approx(0.0176, abs=1e-4)
    assert noise_of(history(), eval_tokens=4 * 200 * 16 * 1024.0) == pytest.approx(0.0088, abs=1e-4)
    assert noise_of(history(), eval_tokens=None) == pytest.approx(0.0249, abs=1e-4)  # six evaluations show no scatter
    assert noise_of(history(), vocab_size=1024) == pytest.approx(0.0113, abs=1e-4)  # ln 1,024 / ln 50,257 of it
    assert noise_of(history(), fixed_eval_set=True) == 0.0


@pytest.mark.parametrize("sd", [0.0005, 0.005, 0.05])
def test_evaluation_noise_is_the_scatter_of_the_curve(sd: float) -> None:
    steps = np.unique(np.geomspace(500, 14_000, 120).astype(int))
    losses = 3.2 + 40 * steps**-0.5 + np.random.default_rng(0).normal(0, sd, len(steps))
    losses[50] += 1.0  # one outlier
    log = history(tuple(zip(steps.tolist(), losses.tolist())))
    assert noise_of(log, eval_tokens=None) == pytest.approx(sd, rel=0.25)
    assert noise_of(log) == pytest.approx(0.0176, abs=1e-4)  # stated tokens count more


def test_logged_standard_error_is_the_noise() -> None:
    log = history()
    rows = tuple(evaluation._replace(standard_error=0.007) for evaluation in log.evaluations)
    assert noise_of(replace(log, evaluations=rows), eval_tokens=None) == pytest.approx(0.007)


def prior_of(**facts: object) -> tuple[float, float]:
    forecast = run_forecast.scaling_law_prior(context(**facts))  # type: ignore[arg-type]
    assert forecast is not None
    return forecast.mean, forecast.sd


def test_scaling_law_knows_optimizers() -> None:
    mean, sd = prior_of()
    assert prior_of(optimizer=None) == pytest.approx((mean, math.hypot(sd, 0.0574)), abs=1e-3)
    tuned = scaling_law.tuned_learning_rate(40.56e6)
    mean, sd = prior_of(optim=Optim(learning_rate=tuned, min_lr=tuned / 10))
    for optimizer in ("muon", "soap", "shampoo"):
        assert prior_of(optimizer=optimizer) == pytest.approx((mean - 0.045, math.hypot(sd, 0.02)), abs=1e-3)
    assert prior_of(optimizer="other")[0] == pytest.approx(mean, abs=1e-3)
    assert prior_of(optimizer="other")[1] > 0.07
    high = Optim(learning_rate=0.02, min_lr=0.002)
    assert prior_of(optimizer="muon", optim=high) == pytest.approx(prior_of(optimizer="muon"), abs=1e-6)


def test_forecast_without_losses_or_prior() -> None:
    alone = forecast_run(history(((0, 10.9),)), context()).posterior
    assert alone is not None
    assert alone.final_loss().mean == pytest.approx(3.539, abs=0.003)
    assert forecast_run(history(((0, 10.9),)), context(parameters=None)).posterior is None


def test_duplicate_evaluation_counts_once() -> None:
    curve = run_forecast.loss_curve(history(((0, 10.9), (500, 5.0), (500, 4.9), (1000, math.nan))), context())
    assert curve.steps.tolist() == [0, 500]
    assert curve.losses.tolist() == [10.9, 4.9]
