"""Costs of learning rate, batch, few steps and optimizer, and how far a prediction is uncertain because of them."""

import itertools
from pathlib import Path

import pytest
from helpers.bench_script import load_script

from jaxgpt import budget, errors
from jaxgpt.budget import query, recipes, scaling_law
from jaxgpt.budget.recipes import Recipe
from jaxgpt.budget.scaling_law import CORPORA, LossPrediction, ScalingQuery, predict_loss
from jaxgpt.config.files import load_config
from jaxgpt.sweep.transfer import BATCH_POWER

STEPLAW = "forecast/steplaw_dense.csv"


def predict(parameters: float, tokens: float, corpus: str = "fineweb", **recipe: float | str) -> LossPrediction:
    made = Recipe(**({"learning_rate": recipes.tuned_learning_rate(parameters)} | recipe))  # type: ignore[arg-type]
    return predict_loss(ScalingQuery(parameters=parameters, tokens=tokens, recipe=made, corpus=CORPORA[corpus]))


def test_the_best_rate_falls_with_width_as_docs_say(shared: Path) -> None:
    powers, errors = load_script("recipes").fit_best_rates(shared / STEPLAW)
    assert powers == pytest.approx((-0.91, -0.42, BATCH_POWER, 0.03), abs=0.006)
    assert errors == pytest.approx((0.30, 0.24, 0.03, 0.03), abs=0.006)


def test_costs_are_those_that_steplaw_gives(shared: Path) -> None:
    bench = load_script("recipes")
    costs = bench.rate_costs(shared / STEPLAW)
    low, low_power, steps_power = bench.fit_low_rates(costs)
    assert (low, low_power, steps_power) == pytest.approx(
        (recipes.LOW, recipes.LOW_POWER, recipes.STEPS_POWER), abs=0.006
    )
    assert bench.fit_high_rates(costs) == pytest.approx(recipes.HIGH, abs=0.001)
    *fitted, error = bench.fit_batches(*bench.batch_costs(shared / STEPLAW))
    assert fitted == pytest.approx((recipes.BATCH, recipes.BATCH_POWER, recipes.TOKENS_POWER), abs=0.001)
    assert error < 0.008


def test_low_rate_costs_as_much_as_public_runs_lose() -> None:
    """A third of the tuned rate costs 0.01 to 0.04 nats, more in a short run; the tuned rate costs nothing."""
    third = recipes.tuned_learning_rate(3e8) / 3
    long, short = (recipes.learning_rate_cost(Recipe(learning_rate=third), 3e8, tokens) for tokens in (4e10, 4e9))
    assert 0.01 < long < short < 0.04
    assert recipes.learning_rate_cost(Recipe(learning_rate=3 * third), 3e8, 1e10) == pytest.approx(0, abs=1e-9)


def test_large_batch_costs_as_much_as_public_runs_lose() -> None:
    """2.1M tokens per step cost 0.11 nats in 4B and 0.03 in 20B tokens; 524,288 cost nothing."""
    assert predict(2.15e8, 4e9, tokens_per_step=2**21).terms["recipe"] == pytest.approx(0.111, abs=0.02)
    assert predict(2.15e8, 2e10, tokens_per_step=2**21).terms["recipe"] == pytest.approx(0.035, abs=0.01)
    assert predict(2.15e8, 4e9, tokens_per_step=2**19).terms["recipe"] == pytest.approx(0, abs=1e-9)


def test_interval_grows_with_the_distance_from_tuned_recipes() -> None:
    usual = predict(1.24e8, 1e10)
    assert usual.few_steps == ""
    short = predict(1.24e8, 1e10, tokens_per_step=2**23)
    slow = predict(1.24e8, 1e10, learning_rate=1e-4)
    assert usual.sigma < 0.6 * min(short.sigma, slow.sigma)
    assert "1,192 steps are fewer" in short.few_steps


def test_short_run_at_a_low_rate_is_inside_the_95_percent() -> None:
    """Muennighoff et al.: 83M parameters on 1.5B tokens of C4, 2e-4, 1M tokens per step, end at 4.36."""
    expected = predict(82.7e6, 1.5e9, "c4", learning_rate=2e-4, tokens_per_step=2**20)
    assert abs(4.36 - expected.loss) < 1.96 * expected.sigma
    assert expected.few_steps


def test_optimizer_of_the_config_changes_the_loss() -> None:
    config = load_config("gpt2_124m")
    muon = config.replace({"optim": {"optimizer": "muon"}})
    losses = [predict_loss(query.build_query(one, 19_073, CORPORA["fineweb"], None)) for one in (config, muon)]
    assert losses[1].terms["recipe"] == pytest.approx(-recipes.LOSS_GAINS["muon"][0])
    assert losses[1].loss < losses[0].loss - 0.04
    assert losses[1].sigmas["learning rate, steps and optimizer"] >= recipes.LOSS_GAINS["muon"][1]


@pytest.mark.parametrize("corpus", ["openwebtext2", "refinedweb"])
def test_constant_rate_is_not_penalized_twice(corpus: str) -> None:
    """The offsets of these corpora come from runs at a constant rate, whose cost they include."""
    decayed, constant = (predict(1e8, 1e10, corpus, final_lr_fraction=fraction).loss for fraction in (0.1, 1.0))
    assert constant == decayed
    assert predict(1e8, 1e10, final_lr_fraction=1.0).loss > predict(1e8, 1e10).loss + 0.09


def test_offsets_follow_the_published_runs() -> None:
    """FineWeb-Edu from two runs; OpenWebText between its long runs and its small ones."""
    assert (CORPORA["fineweb-edu"].offset, CORPORA["fineweb-edu"].sd) == (1.63, 0.06)
    small = predict(6e7, 1e9, "openwebtext", learning_rate=1e-3)
    assert small.low < small.loss + 0.19 < small.high
    assert scaling_law.CORPORA["openwebtext"].offset > 1.65


def test_cost_of_a_long_warmup_falls_with_the_steps() -> None:
    """It is that of a constant rate up to the end of the warmup, and falls steadily after it."""
    config = load_config("fineweb40m")
    lengths = [500, 1000, 2000, *range(2001, 2600, 20), 4000]
    recipe_of = [query.build_query(config, steps, CORPORA["fineweb"], None) for steps in lengths]
    costs = [scaling_law.recipe_costs(asked)["undecayed_lr"] for asked in recipe_of]
    assert costs[:3] == pytest.approx([0.099] * 3)
    assert costs == sorted(costs, reverse=True)
    assert max(one - two for one, two in itertools.pairwise(costs)) < 0.03
    assert costs[-1] < 0.001


def test_warmup_and_learning_rate_are_named_in_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fineweb40m", "--gpu", "RTX 4070", "--lengths", "1500", "--optim.learning-rate", "0.1"]
    assert errors.run(budget.main, arguments) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "this one has a peak learning rate of 0.1" in text
    assert "a warmup of 2,000 steps, longer than the run" in text
