"""The variants of the loss model, with priors of alpha and the annealing gain B given what is known of the run.

A larger update relative to the weights leaves more noise in them, and annealing gains more. With weight decay that size
tends to sqrt(2 × learning rate × weight decay); without, the norm of the weights grows with the square root of the
steps t, and the size tends to 1 / sqrt(t), from below, as the weights begin with a norm of their own. B and alpha are
predicted from sqrt(learning rate × weight decay + 1 / (4 steps)), per step of half a million tokens, and from the
tokens per parameter, by ridge regressions over complete runs (`bench/priors.py`).
"""

import math
from typing import NamedTuple

REFERENCE_BATCH = 524_288.0  # tokens per step that decay rates and steps are converted to
UNIT = 1e-3  # of decay rates
TYPICAL_RATIO = 20.0  # tokens per parameter, whose log ratio is 0
UNDECAYED = 0.25  # decay rate × steps that stands for the growth of the weights in a run without weight decay
FITTED_UPDATE_SIZES, FITTED_LOG_RATIOS = (0.14, 1.0), (-1.2, 3.0)  # beyond them the regressions are not extrapolated
LOG_RATIO_SD = 1.0  # of the fitted runs
# Decay rates of runs whose peak learning rate or weight decay is unknown, with their probabilities.
UNKNOWN_DECAY_RATES = ((0.0, 0.30), (0.06, 0.30), (0.25, 0.20), (0.6, 0.12), (1.0, 0.08))


class RunTraits(NamedTuple):
    """What determines the annealing gain of a run; None where it is unknown.

    `decay_rate` is peak learning rate × weight decay per `REFERENCE_BATCH` tokens in units of 1e-3, `steps` the length
    of the run in thousands of steps of that size, `log_ratio` the logarithm of tokens per parameter over 20.
    """

    decay_rate: float | None = None
    steps: float | None = None
    log_ratio: float | None = None

    @property
    def update_size(self) -> float:
        """The size of an update relative to the weights, but for a factor, in units of sqrt(1e-3)."""
        return math.sqrt((self.decay_rate or 0.0) + (UNDECAYED / self.steps if self.steps else 0.0))


UNKNOWN_TRAITS = RunTraits()


def run_traits(
    decay_rate: float | None, steps: int | None, tokens_per_step: float | None, parameters: float | None
) -> RunTraits:
    """The traits of a run whose peak learning rate × weight decay is `decay_rate`."""
    if not steps:
        return UNKNOWN_TRAITS
    batch = (tokens_per_step or REFERENCE_BATCH) / REFERENCE_BATCH
    log_ratio = None
    if parameters and tokens_per_step:
        log_ratio = math.log(tokens_per_step * steps / parameters / TYPICAL_RATIO)
    return RunTraits(None if decay_rate is None else decay_rate / batch / UNIT, steps * batch * UNIT, log_ratio)


def possible_traits(traits: RunTraits) -> list[tuple[float, RunTraits]]:
    """The traits with their probability; every plausible decay rate where it is unknown."""
    if traits.decay_rate is not None:
        return [(1.0, traits)]
    return [(probability, traits._replace(decay_rate=rate)) for rate, probability in UNKNOWN_DECAY_RATES]


class Regression(NamedTuple):
    """A coefficient as a linear function of update size and log ratio.

    `spread` is its sd over its mean, for runs of families that the regression was not fitted to.
    """

    intercept: float
    update_size: float
    log_ratio: float
    spread: float

    def predict(self, traits: RunTraits) -> tuple[float, float]:
        """Mean and standard deviation for a run with `traits`; an unknown log ratio is 0.

        Outside the fitted range the mean is that of its border, and the spread up to twice as large.
        """
        size, size_excess = _clip(traits.update_size, FITTED_UPDATE_SIZES)
        ratio, ratio_excess = _clip(traits.log_ratio or 0.0, FITTED_LOG_RATIOS)
        mean = self.intercept + self.update_size * size + self.log_ratio * ratio
        sd = self.spread * mean * (1 + min(size_excess + ratio_excess, 1.0))
        if traits.log_ratio is None:
            sd = math.hypot(sd, self.log_ratio * LOG_RATIO_SD)
        return mean, sd


def _clip(value: float, limits: tuple[float, float]) -> tuple[float, float]:
    """The nearest value within the limits, and the distance to it."""
    nearest = max(min(value, limits[1]), limits[0])
    return nearest, abs(value - nearest)


class LawVariant(NamedTuple):
    """A variant of the loss model: S of order `p`, D = 1 - fraction^q or with the kernel, and the priors."""

    p: float
    q: float
    kernel: bool
    alpha: Regression
    annealing_gain: Regression  # of B, in nats
    rho: float  # correlation of alpha and B around their regressions


# bench/forecast.py: 51 complete cosine and WSD curves of docs/forecast-accuracy.md. A higher p (low learning rates
# count less in S) goes with a lower q (they anneal more); each pair with and without the kernel.
LAW_VARIANTS = (
    LawVariant(0.0, 1.2, True, Regression(0.486, 0.229, 0.108, 0.288), Regression(0.073, 0.143, 0.003, 0.223), 0.77),
    LawVariant(0.0, 1.2, False, Regression(0.465, 0.349, 0.104, 0.279), Regression(0.064, 0.149, 0.004, 0.237), 0.85),
    LawVariant(0.25, 1.0, True, Regression(0.443, 0.265, 0.073, 0.276), Regression(0.083, 0.160, -0.001, 0.175), 0.77),
    LawVariant(0.25, 1.0, False, Regression(0.450, 0.251, 0.073, 0.284), Regression(0.079, 0.134, 0.002, 0.203), 0.87),
    LawVariant(0.5, 0.85, True, Regression(0.430, 0.150, 0.044, 0.255), Regression(0.099, 0.150, -0.003, 0.133), 0.74),
    LawVariant(0.5, 0.85, False, Regression(0.450, 0.057, 0.046, 0.275), Regression(0.095, 0.108, 0.000, 0.171), 0.82),
)
