"""The best model for the same compute: one that fits on the device, the same for the plan and the diagnosis."""

from dataclasses import replace

import pytest

from jaxgpt.budget import command, memory, options, plan, recommend
from jaxgpt.budget.best_model import best_model
from jaxgpt.budget.devices import DEVICES
from jaxgpt.budget.scaling_law import CORPORA
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import parameters

CONFIG = load_config("fineweb40m")
FINEWEB = CORPORA["fineweb"]
pytestmark = pytest.mark.usefixtures("planner_workspace")


def test_best_model_fits_on_the_device() -> None:
    """With the FLOPs of 300,000 steps, 536M parameters are best, for which 12 GB are too few."""
    product = 300_000.0 * CONFIG.tokens_per_step * parameters(CONFIG.model)
    anywhere = best_model(CONFIG, product, FINEWEB, None, None)
    card = DEVICES["RTX 4070"]
    fitting = best_model(CONFIG, product, FINEWEB, None, card)
    assert anywhere
    assert fitting
    assert anywhere.parameters > 5e8 > fitting.parameters
    assert memory.estimate(fitting.config).total <= card.usable * memory.GIB


def test_recommended_model_can_be_trained_as_named() -> None:
    """The plan of the recommended config has the loss and the size of the recommendation."""
    inputs = command.calibrated_inputs(options.read(["fineweb40m", "--gpu", "RTX 4070"]))
    best = recommend.best_model(plan.make_plan(inputs))
    assert best
    assert best.parameters == parameters(best.config.model)
    again = plan.predict_loss(replace(inputs, config=best.config), best.config.run.steps)
    assert again.loss == best.prediction.loss
    assert best.steps_in_words == "5,100 steps"
