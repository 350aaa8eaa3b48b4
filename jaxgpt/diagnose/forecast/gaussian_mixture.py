"""A forecast as a mixture of Gaussians: its mean, spread and intervals."""

import math
from typing import NamedTuple

import numpy as np

from jaxgpt.utils.stats import Floats, normal_cdf

GRID = 801
REACH = 9.0  # standard deviations to either side that the grid of quantiles covers


class Forecast(NamedTuple):
    """A loss in nats: mean, standard deviation, and the ends of the 80 % and 95 % intervals."""

    mean: float
    sd: float
    low80: float
    high80: float
    low95: float
    high95: float


def gaussian_forecast(mean: float, sd: float) -> Forecast:
    return mixture_forecast(np.ones(1), np.array([mean]), np.array([sd]))


def mixture_forecast(weights: Floats, means: Floats, sds: Floats) -> Forecast:
    """The forecast of Gaussians `means`, `sds` (all above 0) weighted by `weights`, which sum to 1."""
    mean, sd = mean_and_sd(weights, means, sds)
    kept = weights > 1e-7
    low, high = (means[kept] - REACH * sds[kept]).min(), (means[kept] + REACH * sds[kept]).max()
    places = np.linspace(max(low, mean - REACH * sd), min(high, mean + REACH * sd), GRID)
    below = normal_cdf((places[:, None] - means[kept]) / sds[kept]) @ weights[kept]
    ends = np.interp((0.1, 0.9, 0.025, 0.975), below / weights[kept].sum(), places)
    return Forecast(mean, sd, *(float(end) for end in ends))


def mean_and_sd(weights: Floats, means: Floats, sds: Floats) -> tuple[float, float]:
    """Mean and standard deviation of the mixture."""
    mean = float(weights @ means)
    return mean, math.sqrt(float(weights @ (sds**2 + (means - mean) ** 2)))
