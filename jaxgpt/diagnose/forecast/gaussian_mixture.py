"""A forecast as a mixture of Gaussians: its mean, standard deviation and intervals."""

import math
from typing import NamedTuple

import numpy as np

from jaxgpt.utils.stats import Floats, normal_cdf

GRID_POINTS = 201
GRID_SDS = 9.0  # standard deviations to either side that the grid of quantiles covers
NEGLIGIBLE_WEIGHT = 1e-7


class Forecast(NamedTuple):
    """A loss in nats: mean, standard deviation, and the ends of the 80 % and 95 % intervals."""

    mean: float
    sd: float
    low80: float
    high80: float
    low95: float
    high95: float

    def shifted(self, nats: float) -> "Forecast":
        """The forecast of a loss that is so many nats higher."""
        mean, sd, *ends = self
        return Forecast(mean + nats, sd, *(end + nats for end in ends))


def gaussian_forecast(mean: float, sd: float) -> Forecast:
    """The forecast of one Gaussian."""
    return mixture_forecast(np.ones(1), np.array([mean]), np.array([sd]))


def mixture_forecast(weights: Floats, means: Floats, sds: Floats) -> Forecast:
    """The forecast of Gaussians with `means` and `sds` (all above 0); their `weights` sum to 1."""
    mean, sd = mean_and_sd(weights, means, sds)
    relevant = weights > NEGLIGIBLE_WEIGHT
    weights, means, sds = weights[relevant], means[relevant], sds[relevant]
    low = max((means - GRID_SDS * sds).min(), mean - GRID_SDS * sd)
    high = min((means + GRID_SDS * sds).max(), mean + GRID_SDS * sd)
    losses = np.linspace(low, high, GRID_POINTS)
    cdf = normal_cdf((losses[:, None] - means) / sds) @ weights
    quantiles = np.interp((0.1, 0.9, 0.025, 0.975), cdf / weights.sum(), losses)
    return Forecast(mean, sd, *quantiles.tolist())


def mean_and_sd(weights: Floats, means: Floats, sds: Floats) -> tuple[float, float]:
    """Mean and standard deviation of the mixture."""
    mean = float(weights @ means)
    return mean, math.sqrt(float(weights @ (sds**2 + (means - mean) ** 2)))
