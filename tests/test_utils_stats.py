"""Statistics helpers against the standard library and planted values."""

from statistics import NormalDist

import numpy as np
import pytest

from jaxgpt.utils import stats

NORMAL = NormalDist()


def test_normal_cdf_agrees_with_the_standard_library() -> None:
    z = np.linspace(-6, 6, 241)
    assert stats.normal_cdf(z) == pytest.approx([NORMAL.cdf(x) for x in z], abs=1e-7)
    assert pytest.approx(NORMAL.inv_cdf(0.9), abs=1e-15) == stats.Z80
    assert pytest.approx(NORMAL.inv_cdf(0.975), abs=1e-15) == stats.Z95


def test_robust_sd_ignores_outliers() -> None:
    values = 3 + 0.5 * np.random.default_rng(0).standard_normal(10_001)
    values[::50] = 1e6
    assert stats.robust_sd(values) == pytest.approx(0.5, rel=0.05)
    assert stats.robust_sd([7.0]) == stats.robust_sd([]) == 0


def test_theil_sen_finds_a_line_despite_outliers() -> None:
    x = np.arange(30.0) + 100
    y = 2 + 0.25 * x
    y[[3, 17, 25]] = (1e3, -1e3, 1e3)
    slope, fitted = stats.theil_sen(x, y)
    assert slope == pytest.approx(0.25)
    assert fitted == pytest.approx(2 + 0.25 * x)


@pytest.mark.parametrize("limit", [1, 2, 7, 4096])
def test_largest_integer_is_exact_for_every_threshold(limit: int) -> None:
    for threshold in {0, 1, limit // 2, limit - 1, limit, limit + 5}:
        assert stats.largest_integer(lambda n, most=threshold: n <= most, limit) == min(threshold, limit)
