"""Forecasts the validation loss with an annealing law, fitted to the losses so far under an informative prior.

    L(t) = L0 + a (S(t) / S(T))^-alpha - B D(t) + m R(t)                 nats per token

S is the sum of (learning rate over peak)^p until step t, D in [0, 1] the annealing progress (`schedule_integrals`), and
R the expected cost of repeated data. Given alpha and the scale of the misfit, the model is linear in (L0, a, B, m), so
that its posterior under a Gaussian prior is exact. It is computed for each alpha of a grid, each scale and each variant
of S and D, and averaged with the evidence of each as its weight. Before the learning rate decays, the losses tell
nothing of B: the prior decides (`law_variants`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast, mean_and_sd, mixture_forecast
from jaxgpt.diagnose.forecast.law_variants import LAW_VARIANTS, UNKNOWN_TRAITS, LawVariant, RunTraits, possible_traits
from jaxgpt.diagnose.forecast.schedule_integrals import ScheduleIntegral

Floats = NDArray[np.float64]

ALPHAS = np.linspace(0.1, 1.2, 56)
LEVEL, SCALE = (2.5, 5.0), (0.25, 1.0)  # prior mean and sd of L0 and of a, in nats
REPETITION = (1.0, 0.53)  # of m: the spread of the repetition law itself
MISFIT = 0.003  # nats by which the losses of well-behaved runs on a fixed text deviate from the model
MISFIT_SCALES = ((1.0, 0.6), (1.6, 0.25), (2.6, 0.1), (4.2, 0.05))  # multiples of it, with their prior probabilities
INDEPENDENT_MISFITS = 25  # evaluations whose misfits count as independent: those of neighbors are correlated
NEGLIGIBLE = 12.0  # below the largest log evidence: six millionths of its weight
SKIPPED_STEPS = 500  # in which the loss falls from that of a random guess, which is not a power law
MAX_POINTS = 128
MIN_EVALUATIONS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class LossCurve:
    """The validation losses so far and the schedule of the run.

    `steps` are the steps before each evaluation, in ascending order; `lr_fractions` the learning rate over its peak of
    every step of the whole run. `noise` is the standard error of one evaluation in nats, independent of the others'.
    `repetition` is the expected cost of repeated data after 0, 1, … steps (one longer than `lr_fractions`); None: 0.
    Losses of another tokenizer than GPT-2's are `token_scale` times as large, with the relative uncertainty
    `token_spread`. `endings` are the ways in which the run may end, with their probabilities; empty: as in
    `lr_fractions`. Raises ValueError for inconsistent lengths.
    """

    steps: NDArray[np.int64]
    losses: Floats
    lr_fractions: Floats
    warmup: int = 0
    noise: float = 0.0
    repetition: Floats | None = None
    traits: RunTraits = UNKNOWN_TRAITS
    token_scale: float = 1.0
    token_spread: float = 0.0
    endings: tuple[tuple[float, Floats], ...] = ()

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
    """The posterior under one variant: combinations of alpha, misfit and traits, each with its log evidence.

    `alphas` are indices of `ALPHAS`, `misfits` standard deviations in nats; `means` and `covariances` are those of
    (L0, a, B, m).
    """

    variant: LawVariant
    log_evidence: Floats
    alphas: NDArray[np.int64]
    misfits: Floats
    means: Floats
    covariances: Floats

    def without_negligible(self, limit: float) -> "Component":
        """The combinations whose log evidence exceeds `limit`."""
        kept = self.log_evidence > limit
        return Component(
            self.variant,
            self.log_evidence[kept],
            self.alphas[kept],
            self.misfits[kept],
            self.means[kept],
            self.covariances[kept],
        )


@dataclass(frozen=True, eq=False)
class Posterior:
    """The posterior of the loss model for a run. Every prediction is an average over its components."""

    curve: LossCurve
    schedule: ScheduleIntegral
    components: tuple[Component, ...]
    prior: Forecast | None = None
    weights: Floats = field(init=False)
    log_evidence: float = field(init=False)  # of the curve, but for a constant of its losses

    def __post_init__(self) -> None:
        log_evidence = np.concatenate([component.log_evidence for component in self.components])
        weights = np.exp(log_evidence - log_evidence.max())
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "log_evidence", float(log_evidence.max() + math.log(weights.sum())))

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
        """The forecast validation loss at the end of the run, or of a run with other `lr_fractions`.

        Where it is not known how the run ends, an average over its possible endings.
        """
        return mixture_forecast(*self.final_components(lr_fractions, repetition))

    def final_components(
        self, lr_fractions: Floats | None = None, repetition: Floats | None = None
    ) -> tuple[Floats, Floats, Floats]:
        """Weights, means and standard deviations of the Gaussians that `final_loss` averages."""
        endings = self.curve.endings if lr_fractions is None else ()
        parts = [
            (probability * self.weights, *self._final_predictions(rates, repetition))
            for probability, rates in endings or ((1.0, lr_fractions),)
        ]
        weights, means, sds = (np.concatenate(values) for values in zip(*parts))
        return weights, means, sds

    def _final_predictions(self, lr_fractions: Floats | None, repetition: Floats | None) -> tuple[Floats, Floats]:
        """[combination] mean and standard deviation of the final loss."""
        end = len(self.curve.lr_fractions if lr_fractions is None else lr_fractions)
        means, sds = self._predictions(np.array([float(end)]), lr_fractions, repetition)
        return means[:, 0], sds[:, 0]

    @property
    def alpha(self) -> tuple[float, float]:
        """Mean and standard deviation of alpha."""
        alphas = ALPHAS[np.concatenate([component.alphas for component in self.components])]
        return mean_and_sd(self.weights, alphas, np.zeros(len(alphas)))

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
        """[combination, step] mean and standard deviation."""
        schedule = self._schedule(lr_fractions)
        cost = repetition_cost_at(self.curve.repetition if repetition is None else repetition, steps)
        means, sds = [], []
        for component in self.components:
            rows = design_matrix(component.variant, schedule, self.schedule, steps, cost)[component.alphas]
            means.append((rows @ component.means[:, :, None])[:, :, 0])
            variance = np.sum((rows @ component.covariances) * rows, axis=2)
            sds.append(np.sqrt(np.maximum(variance, 0) + component.misfits[:, None] ** 2))
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
    observed = _observations(curve, prior)
    cost = repetition_cost_at(curve.repetition, observed.steps)
    components = []
    for variant in variants:
        rows = design_matrix(variant, schedule, schedule, observed.steps, cost)
        components += _fit_variant(variant, rows, observed, curve)
    limit = max(component.log_evidence.max() for component in components) - NEGLIGIBLE
    relevant = [component.without_negligible(limit) for component in components]
    return Posterior(curve, schedule, tuple(part for part in relevant if len(part.alphas)), prior)


class _Observations(NamedTuple):
    """Losses, their variance for each scale of the misfit, and the log evidence that depends on the scale alone."""

    steps: Floats
    losses: Floats
    variances: Floats  # [scale, loss]
    log_evidence: Floats  # [scale]


def _observations(curve: LossCurve, prior: Forecast | None) -> _Observations:
    """The usable losses, and the `prior` as one more observation, of the final loss."""
    usable = curve.usable()
    steps, losses = downsample(curve.steps[usable].astype(np.float64), curve.losses[usable])
    points = len(steps)
    scales, probabilities = np.array(MISFIT_SCALES).T
    correlated = (curve.token_scale * scales * MISFIT) ** 2 * max(points / INDEPENDENT_MISFITS, 1.0)
    independent = curve.noise**2 * points / max(int(usable.sum()), 1)
    variance = correlated + independent
    log_evidence = np.log(probabilities) - 0.5 * min(points, INDEPENDENT_MISFITS) * np.log(variance)
    variances = np.tile(variance[:, None], (1, points))
    if prior is not None:
        steps = np.append(steps, len(curve.lr_fractions))
        losses = np.append(losses, prior.mean)
        variances = np.hstack((variances, np.full((len(scales), 1), prior.sd**2)))
    return _Observations(steps, losses, variances, log_evidence)


def downsample(steps: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """At most `MAX_POINTS` points, each the mean of neighbors."""
    if len(steps) <= MAX_POINTS:
        return steps, losses
    starts = np.linspace(0, len(steps), MAX_POINTS + 1).astype(np.int64)
    counts = np.diff(starts)
    return np.add.reduceat(steps, starts[:-1]) / counts, np.add.reduceat(losses, starts[:-1]) / counts


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


def _fit_variant(variant: LawVariant, rows: Floats, observed: _Observations, curve: LossCurve) -> list[Component]:
    """Conjugate normal regression for every alpha and misfit at once; a component for each possible decay rate."""
    center = np.array([observed.losses.mean(), 0.0, 0.0, REPETITION[0]])  # of the coefficients, for accuracy
    residual = observed.losses - rows @ center
    gram = np.stack([(rows.transpose(0, 2, 1) / variance) @ rows for variance in observed.variances])
    moment = np.stack([np.sum(rows * (residual / variance)[:, :, None], axis=1) for variance in observed.variances])
    square = np.stack([np.sum(residual**2 / variance, axis=1) for variance in observed.variances])
    components = []
    for probability, traits in possible_traits(curve.traits):
        prior = _coefficient_prior(variant, traits, curve)
        scaled = gram * prior.sds[:, None] * prior.sds  # coefficients in units of their prior standard deviation
        start = (prior.means - center) / prior.sds
        precision = np.eye(len(center)) + scaled
        target = start + moment * prior.sds
        covariance = np.linalg.inv(precision)
        solution = (covariance @ target[:, :, :, None])[:, :, :, 0]
        misfit = square + np.sum(start**2, axis=1) - np.sum(target * solution, axis=2)
        log_evidence = prior.log_alpha - 0.5 * (misfit + np.linalg.slogdet(precision)[1])
        log_evidence = log_evidence + observed.log_evidence[:, None] + math.log(probability)
        covariances = covariance * prior.sds[:, None] * prior.sds
        means = center + solution * prior.sds
        components.append(_component(variant, log_evidence, means, covariances, curve.token_scale * MISFIT))
    return components


def _component(
    variant: LawVariant, log_evidence: Floats, means: Floats, covariances: Floats, misfit: float
) -> Component:
    """The component of arrays by scale of the misfit and alpha."""
    scales = misfit * np.array([scale for scale, _ in MISFIT_SCALES])
    alphas = np.tile(np.arange(len(ALPHAS)), len(scales))
    misfits = np.repeat(scales, len(ALPHAS))
    return Component(
        variant, log_evidence.ravel(), alphas, misfits, means.reshape(-1, 4), covariances.reshape(-1, 4, 4)
    )


class _CoefficientPrior(NamedTuple):
    """[alpha] log probability, and [alpha, coefficient] means and [coefficient] standard deviations given alpha."""

    log_alpha: Floats
    means: Floats
    sds: Floats


def _coefficient_prior(variant: LawVariant, traits: RunTraits, curve: LossCurve) -> _CoefficientPrior:
    scale = curve.token_scale
    alpha, alpha_sd = variant.alpha.predict(traits)
    gain, gain_sd = variant.annealing_gain.predict(traits)
    gain, gain_sd = scale * gain, scale * math.hypot(gain_sd, curve.token_spread * gain)
    deviation = (ALPHAS - alpha) / alpha_sd
    log_alpha = -0.5 * deviation**2
    log_alpha -= np.log(np.exp(log_alpha).sum())  # the probabilities sum to 1 over the grid
    means = np.tile([scale * LEVEL[0], scale * SCALE[0], 0.0, REPETITION[0]], (len(ALPHAS), 1))
    means[:, 2] = gain + variant.rho * gain_sd * deviation
    sds = np.array([LEVEL[1], SCALE[1], gain_sd * math.sqrt(1 - variant.rho**2), REPETITION[1]])
    return _CoefficientPrior(log_alpha, means, sds)
