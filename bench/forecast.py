"""How true the annealing law's forecasts are: writes docs/forecast-accuracy.md from recorded loss curves.

    python bench/forecast.py FORECAST_DATA [MORE …] [--out docs/forecast-accuracy.md]

Each folder holds, at any depth, an `index.csv` and a CSV for each curve (`bench/curves.py`). Every curve is cut at 20 to
90 % of its run and its last loss forecast from that part. What the law knows beforehand (the mean and spread of alpha
and B, and how they go together) is learned from the whole curves of the other families only: leave-family-out. Nothing
but numpy is needed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from baselines import METHODS
from curves import Recorded, read

from jaxgpt.diagnose.annealing import ALPHAS, SHAPES, Curve, Shape, fit
from jaxgpt.diagnose.mixture import Forecast

SHARES = (0.2, 0.3, 0.5, 0.7, 0.9)
WIDE = ((0.5, 0.3), (0.12, 0.08))  # alpha and B before any curve is seen
FEWEST = 8  # curves of other families that a prior can be learned from
LAW = "annealing law"
KINDS = {"cosine": "cosine", "wsd": "WSD, trapezoid, linear"}


@dataclass(frozen=True)
class Result:
    """One forecast: of which curve, seen how far, by which method, and how far the end was from it."""

    curve: Recorded
    share: float
    method: str
    error: float  # forecast minus observed
    forecast: Forecast | None = None

    def inside(self, level: int) -> bool:
        assert self.forecast is not None
        found = self.forecast
        low, high = (found.low80, found.high80) if level == 80 else (found.low95, found.high95)
        return low <= self.curve.last <= high


def learn(curves: Sequence[Recorded], shapes: Sequence[Shape] = SHAPES) -> tuple[Shape, ...]:
    """The shapes with priors from whole curves: mean, spread and correlation of what each curve says of alpha and B."""
    return tuple(_learned(shape, curves) for shape in shapes)


def _learned(shape: Shape, curves: Sequence[Recorded]) -> Shape:
    wide = replace(shape, alpha=WIDE[0], drop=WIDE[1], rho=0.0)
    found = np.array([_estimate(curve.seen(1.0), wide) for curve in curves])
    mean, sd = found.mean(axis=0), found.std(axis=0)
    rho = float(np.clip(np.mean(np.prod((found - mean) / sd, axis=1)), -0.9, 0.9))
    return replace(shape, alpha=(float(mean[0]), float(sd[0])), drop=(float(mean[1]), float(sd[1])), rho=rho)


def _estimate(curve: Curve, shape: Shape) -> tuple[float, float]:
    """The posterior means of alpha and B."""
    posterior = fit(curve, shapes=(shape,))
    return float(posterior.weights @ ALPHAS), posterior.drop[0]


def judge(curves: Sequence[Recorded], shares: Sequence[float] = SHARES, baselines: bool = True) -> list[Result]:
    """Every forecast of every curve: the law's with priors of the other families, and the other methods'."""
    prior = _priors(curves)
    results = []
    for curve in curves:
        for share in shares:
            seen = curve.seen(share)
            used = seen.used()
            if np.count_nonzero(used) < 3:
                continue
            found = fit(seen, shapes=prior(curve.family)).final()
            results.append(Result(curve, share, LAW, found.mean - curve.last, found))
            if baselines:
                steps, losses = seen.steps[used].astype(np.float64), seen.losses[used]
                for name, method in METHODS.items():
                    results.append(Result(curve, share, name, method(steps, losses, curve.course) - curve.last))
    return results


def _priors(curves: Sequence[Recorded]):
    """family -> shapes learned from the other families; the shipped ones where those have too few curves."""

    @cache
    def of(family: str) -> tuple[Shape, ...]:
        others = [curve for curve in curves if curve.core and curve.family != family]
        return learn(others) if len(others) >= FEWEST else SHAPES

    return of


def mae(results: Sequence[Result]) -> float:
    return float(np.mean([abs(result.error) for result in results])) if results else float("nan")


def coverage(results: Sequence[Result], level: int) -> float:
    return float(np.mean([result.inside(level) for result in results])) if results else float("nan")


def pick(results: Sequence[Result], share: float, method: str = LAW, kind: str | None = None) -> list[Result]:
    """Results of core curves (of one kind of schedule)."""
    return [
        result
        for result in results
        if result.share == share
        and result.method == method
        and (result.curve.core if kind is None else result.curve.kind == kind)
    ]
