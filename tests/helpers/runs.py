"""Schedules, and whole runs drawn from the annealing law."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jaxgpt.diagnose.forecast.annealing import LossCurve
from jaxgpt.diagnose.forecast.law_variants import LawVariant, RunTraits
from jaxgpt.diagnose.forecast.schedule_integrals import ScheduleIntegral

Floats = NDArray[np.float64]


def cosine(total: int, warmup: int = 0, end: float = 0.1) -> Floats:
    through = np.clip((np.arange(total) - warmup) / (total - warmup), 0, 1)
    fall = end + (1 - end) * (1 + np.cos(np.pi * through)) / 2
    return np.where(np.arange(total) < warmup, (np.arange(total) + 1) / (warmup + 1), fall)


def trapezoid(total: int, fall: int, end: float = 0.0) -> Floats:
    return end + (1 - end) * np.minimum((total - np.arange(total)) / fall, 1.0)


def step_drop(total: int, at: int, end: float) -> Floats:
    return np.where(np.arange(total) < at, 1.0, end)


def drawn(random: np.random.Generator, rates: Floats, warmup: int, shape: LawVariant, misfit: float = 0.0) -> LossCurve:
    """A run drawn from the prior of the loss model, evaluated forty times."""
    traits = RunTraits(decay_rate=0.1, steps=1e-3 * len(rates), log_ratio=0.0)
    (mean, spread), (gain, gain_spread) = shape.alpha.predict(traits), shape.annealing_gain.predict(traits)
    alpha = min(max(random.normal(mean, spread), 0.12), 1.18)
    away = (alpha - mean) / spread
    drop = random.normal(gain + shape.rho * gain_spread * away, gain_spread * math.sqrt(1 - shape.rho**2))
    level, scale = random.uniform(2, 3.5), random.uniform(0.15, 0.5)
    course = ScheduleIntegral.from_lr_fractions(rates, warmup)
    steps = np.linspace(0, len(rates), 41).astype(np.int64)[1:]
    at = steps.astype(np.float64)
    share = course.cumulative_lr(shape.p, at) / course.cumulative_lr(shape.p, at[-1:])
    losses = level + scale * share**-alpha - drop * course.annealing_progress(shape.q, shape.kernel, at)
    return LossCurve(
        steps=steps,
        losses=losses + random.normal(0, misfit, len(steps)),
        lr_fractions=rates,
        warmup=warmup,
        traits=traits,
    )


def upto(curve: LossCurve, share: float) -> LossCurve:
    kept = curve.steps <= share * len(curve.lr_fractions)
    return replace(curve, steps=curve.steps[kept], losses=curve.losses[kept])
