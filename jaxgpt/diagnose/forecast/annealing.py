"""Where the validation loss is heading: the prior-anchored annealing law, fitted exactly to what a run has shown.

    L(t) = L0 + a (S(t) / S(T))^-alpha - B D(t) + m R(t)                 nats per token

S is the sum of (learning rate over peak)^p until update t, D in [0, 1] how much of the fall of the rate has taken
effect (`course`), R the expected cost of repeated text. Given alpha the law is linear in (L0, a, B, m), so its
posterior under a Gaussian prior is exact: it is computed for each alpha of a grid and each of six shapes of S and D,
and averaged by what each explains. Before the rate falls the curve says nothing of B: there the prior speaks.
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
REPETITION = (1.0, 0.53)  # of m: the repetition law's own spread
MISFIT = 0.003  # nats that a real curve's losses on fixed text stray from the law
EFFECTIVE = 25  # evaluations whose misfits count as independent: neighbours stray together
FLOOR = 0.003  # nats, the least spread of a single loss
FIRST = 500  # updates in which the loss falls from guessing, as no power law does
MOST_POINTS = 128
MIN_EVALUATIONS = 2


@dataclass(frozen=True, kw_only=True)
class LawVariant:
    """One form of the law: S of order `p`, D = 1 - rate^q with or without the kernel; (mean, sd) of alpha and of B."""

    p: float
    q: float
    kernel: bool
    alpha: tuple[float, float]
    drop: tuple[float, float]
    rho: float  # correlation of alpha and B


# bench/forecast.py: mean and spread over the 27 whole cosine and WSD curves of docs/forecast-accuracy.md. A higher p (a
# lower rate travels less) is traded for a lower q (it anneals more); each pair with the anneal at once and delayed.
LAW_VARIANTS = (
    LawVariant(p=0.0, q=1.2, kernel=True, alpha=(0.573, 0.171), drop=(0.104, 0.026), rho=0.38),
    LawVariant(p=0.0, q=1.2, kernel=False, alpha=(0.576, 0.169), drop=(0.097, 0.026), rho=0.48),
    LawVariant(p=0.25, q=1.0, kernel=True, alpha=(0.517, 0.123), drop=(0.116, 0.025), rho=0.27),
    LawVariant(p=0.25, q=1.0, kernel=False, alpha=(0.521, 0.126), drop=(0.107, 0.022), rho=0.39),
    LawVariant(p=0.5, q=0.85, kernel=True, alpha=(0.465, 0.089), drop=(0.128, 0.022), rho=-0.03),
    LawVariant(p=0.5, q=0.85, kernel=False, alpha=(0.465, 0.097), drop=(0.117, 0.018), rho=0.11),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LossCurve:
    """Validation losses seen so far and the schedule that they were reached under.

    `steps` are the updates before each evaluation and ascend, `rates` the learning rate of every update of the whole
    run over its peak. `sigma` is one evaluation's standard error in nats; what goes beyond `MISFIT` counts as
    independent from one evaluation to the next. `repetition` is the expected cost of repeated text after 0, 1, …
    updates (one longer than `rates`); None is none. Raises ValueError for lengths that do not go together.
    """

    steps: NDArray[np.int64]
    losses: Floats
    rates: Floats
    warmup: int = 0
    sigma: float = MISFIT
    repetition: Floats | None = None

    def __post_init__(self) -> None:
        lengths = len(self.steps) == len(self.losses) and len(self.rates) > 0
        if not lengths or (self.repetition is not None and len(self.repetition) != len(self.rates) + 1):
            raise ValueError("a curve has a loss for each step, a rate for each update, and one cost more than rates")
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError("the steps of a curve ascend")

    def usable(self) -> NDArray[np.bool_]:
        """The evaluations that the law is for: finite ones after the first tenth and well after the warmup.

        Of a run that is less than a quarter done: after 3 %, but without the fall of the first 500 updates (or of the
        first half, if that is less), which is no power law yet.
        """
        total, finite = len(self.rates), np.isfinite(self.losses)
        seen = float(self.steps[finite].max(initial=0))
        start = 0.10 * total if seen >= 0.25 * total else max(0.03 * total, min(FIRST, seen / 2))
        start = max(start, 1.5 * self.warmup, 1)
        used: NDArray[np.bool_] = finite & (self.steps >= start) & (self.steps <= total)
        return used


@dataclass(frozen=True, eq=False)
class Component:
    """The posterior under one shape: for each alpha its log evidence, and mean and covariance of (L0, a, B, m)."""

    shape: LawVariant
    evidence: Floats
    means: Floats
    covariances: Floats


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the law knows of a run. Everything else (`at`, `final`, `drop`, …) is an average over its components."""

    curve: LossCurve
    course: ScheduleIntegral
    components: tuple[Component, ...]
    prior: Forecast | None = None
    weights: Floats = field(init=False)

    def __post_init__(self) -> None:
        evidence = np.concatenate([component.evidence for component in self.components])
        weights = np.exp(evidence - evidence.max())
        object.__setattr__(self, "weights", weights / weights.sum())

    def predict(
        self, steps: Sequence[int] | NDArray[np.int64], rates: Floats | None = None, repetition: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the validation loss after each of `steps` updates.

        Under other `rates` if given: of every update from the first on, those done included.
        """
        means, sds = self._spread(np.asarray(steps, np.float64), rates, repetition)
        mean = self.weights @ means
        return mean, np.sqrt(self.weights @ (sds**2 + (means - mean) ** 2))

    def final_loss(self, rates: Floats | None = None, repetition: Floats | None = None) -> Forecast:
        """The validation loss at the end of the run, or of a run with other `rates`."""
        end = len(self.curve.rates if rates is None else rates)
        means, sds = self._spread(np.array([float(end)]), rates, repetition)
        return mixture_forecast(self.weights, means[:, 0], sds[:, 0])

    @property
    def annealing_gain(self) -> tuple[float, float]:
        """Mean and standard deviation of B: the nats between training at the peak rate and at none."""
        means = np.concatenate([component.means[:, 2] for component in self.components])
        variances = np.concatenate([component.covariances[:, 2, 2] for component in self.components])
        return mean_and_sd(self.weights, means, np.sqrt(variances))

    def remaining_annealing_gain(self, step: int, rates: Floats | None = None) -> tuple[float, float]:
        """Mean and standard deviation in nats of what annealing alone still takes off between `step` and the end."""
        course = self._course(rates)
        means, sds = [], []
        for component in self.components:
            shape = component.shape
            done, end = course.annealing_progress(shape.q, shape.kernel, np.array([float(step), course.length]))
            means.append(component.means[:, 2] * (end - done))
            sds.append(np.sqrt(component.covariances[:, 2, 2]) * abs(end - done))
        return mean_and_sd(self.weights, np.concatenate(means), np.concatenate(sds))

    def _course(self, rates: Floats | None) -> ScheduleIntegral:
        return (
            self.course
            if rates is None
            else ScheduleIntegral.from_lr_fractions(np.asarray(rates, np.float64), self.curve.warmup)
        )

    def _spread(self, steps: Floats, rates: Floats | None, repetition: Floats | None) -> tuple[Floats, Floats]:
        """[component and alpha, step] mean and standard deviation."""
        course = self._course(rates)
        cost = repetition_cost_at(self.curve.repetition if repetition is None else repetition, steps)
        means, sds = [], []
        for component in self.components:
            rows = design_matrix(component.shape, course, self.course, steps, cost)
            means.append((rows @ component.means[:, :, None])[:, :, 0])
            variance = np.sum((rows @ component.covariances) * rows, axis=2)
            sds.append(np.sqrt(np.maximum(variance, 0) + FLOOR**2))
        return np.concatenate(means), np.concatenate(sds)


def fit(curve: LossCurve, prior: Forecast | None = None, shapes: Sequence[LawVariant] = LAW_VARIANTS) -> Posterior:
    """The posterior of the law given the curve and, if there is one, a forecast of its final loss made beforehand.

    Raises ValueError where fewer than three evaluations can be used and there is no `prior`; with one, any number will
    do, none included.
    """
    used = curve.usable()
    if prior is None and np.count_nonzero(used) < MIN_EVALUATIONS:
        raise ValueError(f"{np.count_nonzero(used)} usable evaluations; the law needs {MIN_EVALUATIONS}, or a prior")
    course = ScheduleIntegral.from_lr_fractions(curve.rates, curve.warmup)
    steps, losses = downsample(curve.steps[used].astype(np.float64), curve.losses[used])
    noise = np.full(len(steps), _noise(curve.sigma, int(used.sum()), len(steps)))
    if prior is not None:
        steps, losses = np.append(steps, course.length), np.append(losses, prior.mean)
        noise = np.append(noise, prior.sd)
    cost = repetition_cost_at(curve.repetition, steps)
    found = tuple(
        _component(shape, design_matrix(shape, course, course, steps, cost), losses, noise) for shape in shapes
    )
    return Posterior(curve, course, found, prior)


def downsample(steps: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """At most `MOST_POINTS` points: means of neighbours."""
    if len(steps) <= MOST_POINTS:
        return steps, losses
    starts = np.linspace(0, len(steps), MOST_POINTS + 1).astype(np.int64)
    counts = np.diff(starts)
    return np.add.reduceat(steps, starts[:-1]) / counts, np.add.reduceat(losses, starts[:-1]) / counts


def _noise(sigma: float, measured: int, points: int) -> float:
    """Standard deviation of one of `points` losses that stand for `measured` evaluations."""
    shared = MISFIT**2 * max(points / EFFECTIVE, 1.0)
    alone = max(sigma**2 - MISFIT**2, 0.0) * points / max(measured, 1)
    return math.sqrt(shared + alone)


def repetition_cost_at(repetition: Floats | None, steps: Floats) -> Floats:
    """The cost of repetition after each of `steps`; beyond the last that is known it grows as it did at the end."""
    if repetition is None:
        return np.zeros(len(steps))
    known = len(repetition) - 1
    tail = max(known // 10, 1)
    slope = float(repetition[-1] - repetition[-1 - tail]) / tail
    inside: Floats = np.interp(steps, np.arange(known + 1), repetition)
    beyond: Floats = slope * np.maximum(steps - known, 0.0)
    return inside + beyond


def design_matrix(
    shape: LawVariant, course: ScheduleIntegral, reference: ScheduleIntegral, steps: Floats, cost: Floats
) -> Floats:
    """[alpha, step, (L0, a, B, m)] what each coefficient is multiplied with; `reference` ends at S(T)."""
    whole = reference.cumulative_lr(shape.p, np.array([reference.length]))
    share = np.maximum(course.cumulative_lr(shape.p, steps) / whole, 1e-9)
    rows = np.ones((len(ALPHAS), len(steps), 4))
    rows[:, :, 1] = np.exp(-ALPHAS[:, None] * np.log(share))
    rows[:, :, 2] = -course.annealing_progress(shape.q, shape.kernel, steps)
    rows[:, :, 3] = cost
    return rows


def _prior(shape: LawVariant) -> tuple[Floats, Floats]:
    """[alpha, coefficient] mean and standard deviation of the coefficients given alpha."""
    means = np.tile([LEVEL[0], SCALE[0], 0.0, REPETITION[0]], (len(ALPHAS), 1))
    away = (ALPHAS - shape.alpha[0]) / shape.alpha[1]
    means[:, 2] = shape.drop[0] + shape.rho * shape.drop[1] * away
    return means, np.array([LEVEL[1], SCALE[1], shape.drop[1] * math.sqrt(1 - shape.rho**2), REPETITION[1]])


def _component(shape: LawVariant, rows: Floats, losses: Floats, noise: Floats) -> Component:
    """Conjugate normal regression for every alpha at once."""
    prior, spread = _prior(shape)
    scaled = rows * spread / noise[:, None]  # coefficients in units of their prior spread
    rest = (losses - (rows @ prior[:, :, None])[:, :, 0]) / noise
    across = scaled.transpose(0, 2, 1)
    precision = np.eye(len(spread)) + across @ scaled
    covariance = np.linalg.inv(precision)
    pull = (across @ rest[:, :, None])[:, :, 0]
    shift = (covariance @ pull[:, :, None])[:, :, 0]
    misfit = np.sum(rest**2, axis=1) - np.sum(pull * shift, axis=1)
    evidence = _log_prior(shape) - 0.5 * (misfit + np.linalg.slogdet(precision)[1])
    return Component(shape, evidence, prior + shift * spread, covariance * spread[:, None] * spread)


def _log_prior(shape: LawVariant) -> Floats:
    """Of each alpha, summing to one over the grid."""
    log = -0.5 * ((ALPHAS - shape.alpha[0]) / shape.alpha[1]) ** 2
    whole: Floats = log - np.log(np.exp(log).sum())
    return whole
