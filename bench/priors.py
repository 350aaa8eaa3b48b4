"""Fits the priors of the loss model: regressions of alpha and B over complete curves, for `bench/forecast.py`."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from curves import Recorded
from numpy.typing import NDArray

from jaxgpt.diagnose.forecast.annealing import fit
from jaxgpt.diagnose.forecast.law_variants import LAW_VARIANTS, LawVariant, Regression, RunTraits

Floats = NDArray[np.float64]

WIDE = {"alpha": Regression(0.5, 0, 0, 0.6), "annealing_gain": Regression(0.15, 0, 0, 0.8)}  # before any curve is seen
RIDGE = 1.0  # curves' worth of evidence that a slope is 0
ESTIMATED = ("alpha", "annealing_gain")


def learn(curves: Sequence[Recorded], variants: Sequence[LawVariant] = LAW_VARIANTS) -> tuple[LawVariant, ...]:
    """The variants with priors from complete curves, for a run of a family that is not among them.

    A family of n curves counts as much as sqrt(n) independent ones. Spread and correlation are those of the errors of
    regressions without the curve's family.
    """
    sizes = Counter(curve.family for curve in curves)
    weights = np.array([sizes[curve.family] ** -0.5 for curve in curves])
    features = np.array([features_of(curve.complete.traits) for curve in curves])
    return tuple(_learn_variant(variant, curves, features, weights) for variant in variants)


def features_of(traits: RunTraits) -> tuple[float, float]:
    return traits.update_size, traits.log_ratio or 0.0


def _learn_variant(variant: LawVariant, curves: Sequence[Recorded], features: Floats, weights: Floats) -> LawVariant:
    shape = variant._replace(rho=0.0, **WIDE)
    estimates = np.array([estimate(curve, shape) for curve in curves])
    families = np.array([curve.family for curve in curves])
    regressions, errors = {}, []
    for name, values in zip(ESTIMATED, estimates.T):
        intercept, slopes = _ridge(features, values, weights)
        error = _unseen_errors(features, values, weights, families)
        spread = float(np.sqrt(np.average(error**2, weights=weights)))
        regressions[name] = Regression(intercept, *(float(slope) for slope in slopes), spread)
        errors.append(error / spread)
    rho = float(np.clip(np.average(errors[0] * errors[1], weights=weights), -0.9, 0.9))
    return variant._replace(rho=rho, **regressions)


def _unseen_errors(features: Floats, values: Floats, weights: Floats, families: NDArray[np.str_]) -> Floats:
    """The relative error of each value by the regression without its family; with it, where there is no other."""
    errors = np.empty(len(values))
    for family in set(families):
        own = families == family
        fitted = own if own.all() else ~own
        intercept, slopes = _ridge(features[fitted], values[fitted], weights[fitted])
        errors[own] = values[own] / (intercept + features[own] @ slopes) - 1
    return errors


def _ridge(features: Floats, values: Floats, weights: Floats) -> tuple[float, Floats]:
    """Intercept and slopes; `RIDGE` is in units of the features' variances, and of the mean weight."""
    weights = weights / weights.mean()
    center = np.average(features, axis=0, weights=weights)
    centered = features - center
    penalty = RIDGE * np.average(centered**2, axis=0, weights=weights)
    level = float(np.average(values, weights=weights))
    moment = (centered * weights[:, None]).T
    slopes = np.linalg.solve(moment @ centered + np.diag(penalty + 1e-12), moment @ (values - level))
    return level - float(center @ slopes), slopes


@cache
def estimate(curve: Recorded, shape: LawVariant) -> tuple[float, float]:
    """The posterior means of alpha and B of a complete curve under the priors of `shape`."""
    posterior = fit(curve.complete, variants=(shape,))
    return posterior.alpha[0], posterior.annealing_gain[0]
