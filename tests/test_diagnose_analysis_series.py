"""Robust statistics of series, each compared with a slow or exact computation."""

import numpy as np
import pytest

from jaxgpt.diagnose.analysis import series
from jaxgpt.diagnose.analysis.series import Series

CHANCE = np.random.default_rng(3)


def of(values: np.ndarray) -> Series:
    steps = np.arange(len(values))
    return Series(steps.astype(float), values, steps)


@pytest.mark.parametrize("width", [1, 4, 25])
def test_running_median_equals_the_median_of_each_window(width: int) -> None:
    values = CHANCE.standard_normal(60)
    slow = [np.median(values[max(0, index - width + 1) : index + 1]) for index in range(60)]
    np.testing.assert_allclose(series.running_median(values, width), slow)
    assert not len(series.running_median(np.zeros(0), width))


def test_trailing_level_is_the_end_of_the_fitted_line() -> None:
    values = 5 - 0.01 * np.arange(300) + 0.1 * CHANCE.standard_normal(300)
    level = series.trailing_level(of(values), 250, 100)
    assert level is not None
    slow = np.polyval(np.polyfit(np.arange(150, 250), values[150:250], 1), 250)
    assert level.value == pytest.approx(slow)
    assert level.lines == (150, 249)
    assert series.trailing_level(of(values), 7, 100) is None


def test_trailing_stderr_matches_the_spread_of_levels() -> None:
    strays, errors = [], []
    for seed in range(300):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(100)
        level = series.trailing_level(of(5 - 0.01 * np.arange(100) + noise), 100, 100)
        assert level is not None
        strays.append(level.value - 4.0)
        errors.append(level.stderr)
    assert np.std(strays) == pytest.approx(np.mean(errors), rel=0.15)
    assert abs(np.mean(strays)) < 3 * np.std(strays) / np.sqrt(300)


def test_scatter_measures_noise_and_not_the_decrease() -> None:
    curve = 3 + 2 * np.linspace(0.1, 1, 2000) ** -0.5
    noise = series.scatter(curve + 0.02 * CHANCE.standard_normal(2000))
    assert noise == pytest.approx(0.02, rel=0.1)
    assert series.scatter(curve[:7]) is None


def test_invalid_values_are_omitted() -> None:
    valid = series.series(
        [(0, 1.0, 1), (1, None, 2), (2, float("nan"), 3), (3, float("inf"), 4), (4, 1e300, 5), (5, 2.0, 6)]
    )
    assert valid.steps.tolist() == [0, 5]
    assert valid.lines.tolist() == [1, 6]
    assert len(valid.between(0, 5)) == 1
