"""Forecasts the validation loss with an annealing law, fitted to the losses so far under an informative prior.

    L(t) = L0 + a (S(t) / S(T))^-alpha - B D(t) + m R(t)                 nats per token

S is the sum of (learning rate over peak)^p until step t, D in [0, 1] the annealing progress (`schedule_integrals`), and
R the expected cost of repeated data. Given alpha the model is linear in (L0, a, B, m), so that its posterior under a
Gaussian prior is exact. It is computed for each alpha of a grid and each of six variants of S and D, and averaged with
the evidence of each as its weight. Before the learning rate decays, the losses tell nothing of B: the prior decides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast, mean_and_sd, mixture_forecast
from jaxgpt.diagnose.forecast.schedule_integrals import ScheduleIntegral

Floats = NDArray[np.float64]

ALPHAS = np.linspace(0.1, 1.2, 56)
LEVEL, SCALE = (2.5, 5.0), (0.25, 1.0)  # prior mean and sd of L0 and of a, in nats
REPETITION = (1.0, 0.53)  # of m: the spread of the repetition law itself
MISFIT = 0.003  # nats by which the losses of real runs on a fixed text deviate from the model
INDEPENDENT_MISFITS = 25  # evaluations whose misfits count as independent: those of neighbors are correlated
MIN_SD = 0.003  # nats, of a single predicted loss
SKIPPED_STEPS = 500  # in which the loss falls from that of a random guess, which is not a power law
MAX_POINTS = 128
MIN_EVALUATIONS = 2


@dataclass(frozen=True, kw_only=True)
class LawVariant:
    """A variant of the loss model: S of order `p`, D = 1 - fraction^q or with the kernel, and (mean, sd) priors."""

    p: float
    q: float
    kernel: bool
    alpha: tuple[float, float]
    annealing_gain: tuple[float, float]  # of B, in nats
    rho: float  # correlation of alpha and B


# bench/forecast.py: mean and spread over the 27 complete cosine and WSD curves of docs/forecast-accuracy.md. A higher p
# (low learning rates count less in S) goes with a lower q (they anneal more); each pair with and without the kernel.
LAW_VARIANTS = (
    LawVariant(p=0.0, q=1.2, kernel=True, alpha=(0.573, 0.171), annealing_gain=(0.104, 0.026), rho=0.38),
    LawVariant(p=0.0, q=1.2, kernel=False, alpha=(0.576, 0.169), annealing_gain=(0.097, 0.026), rho=0.48),
    LawVariant(p=0.25, q=1.0, kernel=True, alpha=(0.517, 0.123), annealing_gain=(0.116, 0.025), rho=0.27),
    LawVariant(p=0.25, q=1.0, kernel=False, alpha=(0.521, 0.126), annealing_gain=(0.107, 0.022), rho=0.39),
    LawVariant(p=0.5, q=0.85, kernel=True, alpha=(0.465, 0.089), annealing_gain=(0.128, 0.022), rho=-0.03),
    LawVariant(p=0.5, q=0.85, kernel=False, alpha=(0.465, 0.097), annealing_gain=(0.117, 0.018), rho=0.11),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LossCurve:
    """The validation losses so far and the schedule of the run.

    `steps` are the steps before each evaluation, in ascending order; `lr_fractions` the learning rate over its peak of
    every step of the whole run. `standard_error` is that of one evaluation in nats; the part of it beyond `MISFIT` is
    independent between evaluations. `repetition` is the expected cost of repeated data after 0, 1, … steps (one longer
    than `lr_fractions`); None: 0. Raises ValueError for inconsistent lengths.
    """

    steps: NDArray[np.int64]
    losses: Floats
    lr_fractions: Floats
    warmup: int = 0
    standard_error: float = MISFIT
    repetition: Floats | None = None

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.losses) or not len(self.lr_fractions):
            raise ValueError("a loss curve has one loss per evaluated step, and a learning rate for every step")
        if self.repetition is not None and len(self.repetition) != len(self.lr_fractions) + 1:
            raise ValueError("a loss curve has one more repetition cost than learning rates")
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError("the steps of a loss curve ascend")

    def usable(self) -> NDArray[np.bool_]:
        """The evaluations that the loss model covers: finite ones after the first tenth and well after the warmup.

        For a run that is less than a quarter done: after 3 %, but without the first 500 steps (or the first half, if
        that is less), in which the loss does not follow a power law yet.
        """
        total = len(self.lr_fractions)
        finite = np.isfinite(self.losses)
        last = float(self.steps[finite].max(initial=0))
        start = 0.10 * total
        if last < 0.25 * total:
            start = max(0.03 * total, min(SKIPPED_STEPS, last / 2))
        start = max(start, 1.5 * self.warmup, 1)
        usable: NDArray[np.bool_] = finite & (self.steps >= start) & (self.steps <= total)
        return usable


@dataclass(frozen=True, eq=False)
class Component:
    """The posterior under one variant: for each alpha, log evidence, and mean and covariance of (L0, a, B, m)."""

    variant: LawVariant
    log_evidence: Floats
    means: Floats
    covariances: Floats


@dataclass(frozen=True, eq=False)
class Posterior:
    """The posterior of the loss model for a run. Every prediction is an average over its components."""

    curve: LossCurve
    schedule: ScheduleIntegral
    components: tuple[Component, ...]
    prior: Forecast | None = None
    weights: Floats = field(init=False)

    def __post_init__(self) -> None:
        log_evidence = np.concatenate([component.log_evidence for component in self.components])
        weights = np.exp(log_evidence - log_evidence.max())
        object.__setattr__(self, "weights", weights / weights.sum())

    def predict(
        self,
        steps: Sequence[int] | NDArray[np.int64],
        lr_fractions: Floats | None = None,
        repetition: Floats | None = None,
    ) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the validation loss after each of `steps` steps.

        `lr_fractions` of every step from the first on, those done included, replace those of the run.
        """
        means, sds = self._predictions(np.asarray(steps, np.float64), lr_fractions, repetition)
        mean = self.weights @ means
        return mean, np.sqrt(self.weights @ (sds**2 + (means - mean) ** 2))

    def final_loss(self, lr_fractions: Floats | None = None, repetition: Floats | None = None) -> Forecast:
        """The forecast validation loss at the end of the run, or of a run with other `lr_fractions`."""
        end = len(self.curve.lr_fractions if lr_fractions is None else lr_fractions)
        means, sds = self._predictions(np.array([float(end)]), lr_fractions, repetition)
        return mixture_forecast(self.weights, means[:, 0], sds[:, 0])

    @property
    def annealing_gain(self) -> tuple[float, float]:
        """Mean and standard deviation of B: the nats between training at the peak learning rate and at 0."""
        means = np.concatenate([component.means[:, 2] for component in self.components])
        variances = np.concatenate([component.covariances[:, 2, 2] for component in self.components])
        return mean_and_sd(self.weights, means, np.sqrt(variances))

    def remaining_annealing_gain(self, step: int, lr_fractions: Floats | None = None) -> tuple[float, float]:
        """Mean and standard deviation in nats of the drop that annealing causes between `step` and the end."""
        schedule = self._schedule(lr_fractions)
        means, sds = [], []
        for component in self.components:
            ends = np.array([float(step), schedule.length])
            progress = schedule.annealing_progress(component.variant.q, component.variant.kernel, ends)
            remaining = progress[1] - progress[0]
            means.append(component.means[:, 2] * remaining)
            sds.append(np.sqrt(component.covariances[:, 2, 2]) * abs(remaining))
        return mean_and_sd(self.weights, np.concatenate(means), np.concatenate(sds))

    def _schedule(self, lr_fractions: Floats | None) -> ScheduleIntegral:
        if lr_fractions is None:
            return self.schedule
        return ScheduleIntegral.from_lr_fractions(np.asarray(lr_fractions, np.float64), self.curve.warmup)

    def _predictions(
        self, steps: Floats, lr_fractions: Floats | None, repetition: Floats | None
    ) -> tuple[Floats, Floats]:
        """[component and alpha, step] mean and standard deviation."""
        schedule = self._schedule(lr_fractions)
        cost = repetition_cost_at(self.curve.repetition if repetition is None else repetition, steps)
        means, sds = [], []
        for component in self.components:
            rows = design_matrix(component.variant, schedule, self.schedule, steps, cost)
            means.append((rows @ component.means[:, :, None])[:, :, 0])
            variance = np.sum((rows @ component.covariances) * rows, axis=2)
            sds.append(np.sqrt(np.maximum(variance, 0) + MIN_SD**2))
        return np.concatenate(means), np.concatenate(sds)


def fit(curve: LossCurve, prior: Forecast | None = None, variants: Sequence[LawVariant] = LAW_VARIANTS) -> Posterior:
    """The posterior of the loss model given the curve and, if there is one, a `prior` forecast of its final loss.

    Raises ValueError if fewer than two evaluations are usable and there is no `prior`; with one, none is needed.
    """
    usable = curve.usable()
    count = np.count_nonzero(usable)
    if prior is None and count < MIN_EVALUATIONS:
        raise ValueError(f"{count} usable evaluations; the loss model needs {MIN_EVALUATIONS}, or a prior")
    schedule = ScheduleIntegral.from_lr_fractions(curve.lr_fractions, curve.warmup)
    steps, losses = downsample(curve.steps[usable].astype(np.float64), curve.losses[usable])
    sds = np.full(len(steps), _point_sd(curve.standard_error, int(count), len(steps)))
    if prior is not None:  # one more observation, of the final loss
        steps = np.append(steps, schedule.length)
        losses = np.append(losses, prior.mean)
        sds = np.append(sds, prior.sd)
    cost = repetition_cost_at(curve.repetition, steps)
    components = []
    for variant in variants:
        rows = design_matrix(variant, schedule, schedule, steps, cost)
        components.append(_fit_component(variant, rows, losses, sds))
    return Posterior(curve, schedule, tuple(components), prior)


def downsample(steps: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """At most `MAX_POINTS` points, each the mean of neighbors."""
    if len(steps) <= MAX_POINTS:
        return steps, losses
    starts = np.linspace(0, len(steps), MAX_POINTS + 1).astype(np.int64)
    counts = np.diff(starts)
    return np.add.reduceat(steps, starts[:-1]) / counts, np.add.reduceat(losses, starts[:-1]) / counts


def _point_sd(standard_error: float, evaluations: int, points: int) -> float:
    """The standard deviation of one of `points` losses that represent `evaluations`."""
    correlated = MISFIT**2 * max(points / INDEPENDENT_MISFITS, 1.0)
    independent = max(standard_error**2 - MISFIT**2, 0.0) * points / max(evaluations, 1)
    return math.sqrt(correlated + independent)


def repetition_cost_at(repetition: Floats | None, steps: Floats) -> Floats:
    """The cost of repeated data after each of `steps`; beyond the known ones it grows as at their end."""
    if repetition is None:
        return np.zeros(len(steps))
    last = len(repetition) - 1
    tail = max(last // 10, 1)
    slope = float(repetition[-1] - repetition[-1 - tail]) / tail
    inside: Floats = np.interp(steps, np.arange(last + 1), repetition)
    beyond: Floats = slope * np.maximum(steps - last, 0.0)
    return inside + beyond


def design_matrix(
    variant: LawVariant, schedule: ScheduleIntegral, reference: ScheduleIntegral, steps: Floats, cost: Floats
) -> Floats:
    """[alpha, step, (L0, a, B, m)] factors of the coefficients; S(T) is that of the end of `reference`."""
    total = reference.cumulative_lr(variant.p, np.array([reference.length]))
    progress = np.maximum(schedule.cumulative_lr(variant.p, steps) / total, 1e-9)
    rows = np.ones((len(ALPHAS), len(steps), 4))
    rows[:, :, 1] = np.exp(-ALPHAS[:, None] * np.log(progress))
    rows[:, :, 2] = -schedule.annealing_progress(variant.q, variant.kernel, steps)
    rows[:, :, 3] = cost
    return rows


def _coefficient_prior(variant: LawVariant) -> tuple[Floats, Floats]:
    """[alpha, coefficient] mean of the coefficients given alpha, and [coefficient] their standard deviations."""
    means = np.tile([LEVEL[0], SCALE[0], 0.0, REPETITION[0]], (len(ALPHAS), 1))
    gain_mean, gain_sd = variant.annealing_gain
    means[:, 2] = gain_mean + variant.rho * gain_sd * (ALPHAS - variant.alpha[0]) / variant.alpha[1]
    return means, np.array([LEVEL[1], SCALE[1], gain_sd * math.sqrt(1 - variant.rho**2), REPETITION[1]])


def _fit_component(variant: LawVariant, rows: Floats, losses: Floats, sds: Floats) -> Component:
    """Conjugate normal regression for every alpha at once."""
    prior_means, prior_sds = _coefficient_prior(variant)
    scaled = rows * prior_sds / sds[:, None]  # coefficients in units of their prior standard deviation
    residual = (losses - (rows @ prior_means[:, :, None])[:, :, 0]) / sds
    transposed = scaled.transpose(0, 2, 1)
    precision = np.eye(len(prior_sds)) + transposed @ scaled
    covariance = np.linalg.inv(precision)
    gradient = (transposed @ residual[:, :, None])[:, :, 0]
    shift = (covariance @ gradient[:, :, None])[:, :, 0]
    misfit = np.sum(residual**2, axis=1) - np.sum(gradient * shift, axis=1)
    log_evidence = _log_alpha_prior(variant) - 0.5 * (misfit + np.linalg.slogdet(precision)[1])
    covariances = covariance * prior_sds[:, None] * prior_sds
    return Component(variant, log_evidence, prior_means + shift * prior_sds, covariances)


def _log_alpha_prior(variant: LawVariant) -> Floats:
    """The log prior of each alpha; the probabilities sum to 1 over the grid."""
    log = -0.5 * ((ALPHAS - variant.alpha[0]) / variant.alpha[1]) ** 2
    normalized: Floats = log - np.log(np.exp(log).sum())
    return normalized
