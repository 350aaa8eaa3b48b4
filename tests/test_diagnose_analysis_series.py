"""Robust statistics of series, each compared with a slow or exact computation."""

import numpy as np
import pytest

from jaxgpt.diagnose.analysis import series
from jaxgpt.diagnose.analysis.series import Series

CHANCE = np.random.default_rng(3)


def of(values: np.ndarray) -> Series:
    places = np.arange(len(values))
    return Series(places.astype(float), values, places)


@pytest.mark.parametrize("width", [1, 4, 25])
def test_running_median_equals_the_median_of_each_window(width: int) -> None:
    values = CHANCE.standard_normal(60)
    slow = [np.median(values[max(0, place - width + 1) : place + 1]) for place in range(60)]
    np.testing.assert_allclose(series.running_median(values, width), slow)
    assert not len(series.running_median(np.zeros(0), width))


def test_trailing_level_is_the_end_of_the_fitted_line() -> None:
    values = 5 - 0.01 * np.arange(300) + 0.1 * CHANCE.standard_normal(300)
    found = series.trailing_level(of(values), 250, 100)
    assert found is not None
    slow = np.polyval(np.polyfit(np.arange(150, 250), values[150:250], 1), 250)
    assert found.value == pytest.approx(slow)
    assert found.lines == (150, 249)
    assert series.trailing_level(of(values), 7, 100) is None


def test_trailing_stderr_matches_the_spread_of_levels() -> None:
    strays, errors = [], []
    for seed in range(300):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(100)
        found = series.trailing_level(of(5 - 0.01 * np.arange(100) + noise), 100, 100)
        assert found is not None
        strays.append(found.value - 4.0)
        errors.append(found.stderr)
    assert np.std(strays) == pytest.approx(np.mean(errors), rel=0.15)
    assert abs(np.mean(strays)) < 3 * np.std(strays) / np.sqrt(300)


def test_scatter_measures_noise_and_not_the_decrease() -> None:
    curve = 3 + 2 * np.linspace(0.1, 1, 2000) ** -0.5
    found = series.scatter(curve + 0.02 * CHANCE.standard_normal(2000))
    assert found == pytest.approx(0.02, rel=0.1)
    assert series.scatter(curve[:7]) is None


def test_invalid_values_are_omitted() -> None:
    found = series.series(
        [(0, 1.0, 1), (1, None, 2), (2, float("nan"), 3), (3, float("inf"), 4), (4, 1e300, 5), (5, 2.0, 6)]
    )
    assert found.steps.tolist() == [0, 5]
    assert found.lines.tolist() == [1, 6]
    assert len(found.between(0, 5)) == 1
