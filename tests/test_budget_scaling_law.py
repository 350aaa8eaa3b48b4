"""The scaling law: its terms, its intervals, and the fit that it comes from."""

import math
from pathlib import Path
from types import ModuleType

import pytest
from helpers.bench_script import load_script

from jaxgpt.budget import query, scaling_law
from jaxgpt.budget.scaling_law import CORPORA, LAW, Recipe, ScalingQuery, predict_loss, tuned_learning_rate
from jaxgpt.config.files import load_config
from jaxgpt.utils.stats import Z80

REFERENCE_RUN = ScalingQuery(
    parameters=40.56e6,
    tokens=20_000 * 524_288,
    recipe=Recipe(learning_rate=1e-3),
    corpus=CORPORA["fineweb"],
    unique=3.68e9,
)


@pytest.fixture(scope="module")
def refit() -> ModuleType:
    return load_script("refit")


def test_reference_run_is_predicted_at_3_52() -> None:
    expected = predict_loss(REFERENCE_RUN)
    assert expected.loss == pytest.approx(3.52, abs=0.05)
    assert expected.low < 3.53 < expected.high
    assert expected.loss == pytest.approx(sum(expected.terms.values()))
    assert expected.high - expected.low == pytest.approx(2 * Z80 * expected.sigma)


def test_repetition_cost_starts_with_the_second_epoch() -> None:
    assert scaling_law.repetition_cost(1e8, 1e9, 1e9) == scaling_law.repetition_cost(1e8, 1e9, None) == 0.0
    epochs, ratio = 14.0, 0.7
    expected = 0.0224 * (epochs - 1) ** 0.683 * ratio**0.578
    assert scaling_law.repetition_cost(0.7e9, 14e9, 1e9) == pytest.approx(expected)
    assert predict_loss(REFERENCE_RUN).terms["repetition"] == pytest.approx(0.0025, abs=0.0005)


def test_undertuned_learning_rate_costs_what_llm_c_loses() -> None:
    """A third of the tuned rate: 0.02 of the rate itself, 0.03 of the recipe at that size alone."""
    stock = ScalingQuery(parameters=123.6e6, tokens=1e10, recipe=Recipe(learning_rate=6e-4), corpus=CORPORA["fineweb"])
    costs = scaling_law.recipe_costs(stock)
    assert costs["undertuned_lr"] == pytest.approx(LAW.undertuned_lr, rel=0.02)
    assert sum(costs.values()) == pytest.approx(0.05, abs=0.003)
    assert scaling_law.recipe_costs(REFERENCE_RUN)["undertuned_lr"] == 0.0


def test_undecayed_learning_rate_costs_a_tenth() -> None:
    config = load_config("fineweb40m")
    constant = config.replace({"optim": {"schedule": "constant"}})
    losses = [predict_loss(query.build_query(c, 20_000, CORPORA["fineweb"], None)).loss for c in (config, constant)]
    assert losses[1] - losses[0] == pytest.approx(0.11 * 0.9, abs=1e-3)


def test_interval_widens_with_recipe_corpus_and_distance() -> None:
    def width(parameters: float = 1e8, corpus: str = "fineweb", differences: tuple[str, ...] = ()) -> float:
        recipe = Recipe(learning_rate=1e-3, differences=differences)
        asked = ScalingQuery(parameters=parameters, tokens=1e10, recipe=recipe, corpus=CORPORA[corpus])
        return predict_loss(asked).sigma

    assert width() == pytest.approx(0.04, abs=0.005)
    assert width(differences=("other",)) == pytest.approx(0.07, abs=0.005)
    assert width(corpus="unknown") == pytest.approx(0.155, abs=0.01)
    assert width(parameters=1e6) > 0.5
    assert predict_loss(REFERENCE_RUN).outside == ()


def test_constants_are_those_that_refit_finds(refit: ModuleType, shared: Path) -> None:
    folder = shared / "forecast"
    others = [
        refit.porian(folder, "porian_openwebtext2.csv", "openwebtext2"),
        refit.porian(folder, "porian_refinedweb.csv", "refinedweb"),
    ]
    assert sum(map(len, others)) == 78
    law, offsets = refit.fit([refit.fineweb_runs(), *others])
    for name in ("capacity", "alpha", "data", "beta", "undertuned_lr"):
        assert getattr(law, name) == pytest.approx(getattr(LAW, name), abs=0.003), name
    assert offsets[0] == pytest.approx(CORPORA["fineweb"].offset, abs=0.003)


def test_leave_one_out_errors_on_fineweb_are_small(refit: ModuleType, shared: Path) -> None:
    folder = shared / "forecast"
    runs = refit.fineweb_runs()
    others = [
        refit.porian(folder, "porian_openwebtext2.csv", "openwebtext2"),
        refit.porian(folder, "porian_refinedweb.csv", "refinedweb"),
    ]
    errors = refit.fineweb_errors(runs, others)
    assert sum(map(abs, errors)) / len(errors) <= 0.015
    stock = [n for n, run in enumerate(runs) if run.lr_shortfall > 0.5]
    together = refit.left_out(runs, others, stock)
    grouped = [abs(error) for n, error in enumerate(errors) if n not in stock] + [abs(sum(together) / len(together))]
    assert sum(grouped) / len(grouped) <= 0.012


def test_published_runs_are_predicted_as_stated(refit: ModuleType, shared: Path) -> None:
    """Other optimizers on FineWeb within 0.02 on average; of other corpora's runs, 70 to 90 % are inside."""
    points = refit.published(shared / "forecast")
    inside, errors = [], []
    for point in points:
        expected = predict_loss(point.query())
        if point.corpus != "fineweb":
            inside.append(expected.low <= point.loss <= expected.high)
        elif point.optimizer != "adamw":
            errors.append(abs(point.loss - expected.loss))
    assert (len(inside), len(errors)) == (91, 9)
    assert 0.7 <= sum(inside) / len(inside) <= 0.9
    assert sum(errors) / len(errors) <= 0.02


def test_fit_finds_planted_constants(refit: ModuleType) -> None:
    """The slow oracle of the fit: points computed from known constants."""
    points = [
        refit.Point("fineweb", n, d, 1.5 + 1.2 * (n / 1e8) ** -0.3 + 0.3 * (d / 1e10) ** -0.2, tuned_learning_rate(n))
        for n in (2e7, 1e8, 1e9)
        for d in (1e9, 1e10, 3e10)
    ]
    law, offsets = refit.fit([points], recipe=False)
    assert (law.alpha, law.beta) == pytest.approx((0.3, 0.2), abs=2e-3)
    assert (law.capacity, law.data, offsets[0]) == pytest.approx((1.2, 0.3, 1.5), abs=0.02)


def test_wilson_interval(refit: ModuleType) -> None:
    low, high = refit.binomial(8, 10)
    assert (low, high) == pytest.approx((0.490, 0.943), abs=0.002)
    assert not math.isnan(refit.binomial(0, 5)[0])
