"""Remat policies: the same numbers with less memory, as XLA counts it for the compiled step."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from helpers.programs import compile_step, small_config
from helpers.steps import DROPOUT, MODERN, Training, assert_close, gradient, make_config, token_block

from jaxgpt.budget import memory, preflight, step_time
from jaxgpt.budget.devices import DEVICES
from jaxgpt.config import Model
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError
from jaxgpt.runs import folder as runfolder
from jaxgpt.training import step

POLICIES = ("attention", "blocks")
LARGE = Model(
    n_layer=4, n_head=4, n_embd=64, block_size=128, vocab_size=256, dtype="float32", attention="xla", loss_chunk=256
)


@pytest.mark.parametrize("changes", [DROPOUT, MODERN | DROPOUT], ids=["gpt2", "modern"])
def test_remat_changes_neither_loss_nor_gradient(changes: dict[str, Any]) -> None:
    config = make_config(n_layer=2, **changes)
    metrics, grads = gradient(config, token_block(config))
    for policy in POLICIES:
        other = config.replace({"model": {"remat": policy}})
        actual, actual_grads = gradient(other, token_block(config))
        assert_close(actual, metrics, rtol=1e-6)
        assert_close(actual_grads, grads, atol=1e-6 * float(metrics.grad_norm))


def test_the_planner_predicts_the_memory_that_each_policy_saves() -> None:
    """The memory of a further sequence relative to that without remat, counted by XLA and by the planner."""
    measured, planned = [], []
    for policy in ("none", *POLICIES):
        model = dataclasses.replace(LARGE, remat=policy)
        compiled = [compile_step(small_config(model, rows)).memory_analysis().temp_size_in_bytes for rows in (4, 16)]
        estimated = [memory.estimate(small_config(model, rows), flash=False).total for rows in (4, 16)]
        measured.append(compiled[1] - compiled[0])
        planned.append(estimated[1] - estimated[0])
    assert measured[1] < 0.75 * measured[0]
    assert measured[2] < 0.6 * measured[1]
    np.testing.assert_allclose(np.array(planned) / planned[0], np.array(measured) / measured[0], atol=0.12)


def test_a_run_cannot_resume_with_another_policy() -> None:
    assert runfolder.changed_fields(
        load_config("books"), load_config("books").replace({"model": {"remat": "blocks"}})
    ) == ["model.remat none → blocks"]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="none, blocks, attention"):
        Model(remat="everything")  # type: ignore[arg-type]


def test_the_planner_charges_time_for_the_policy() -> None:
    plain = load_config("fineweb40m")
    activations, slower = [], []
    for policy in ("none", "attention", "blocks"):
        config = plain.replace({"model": {"remat": policy}})
        activations.append(memory.estimate(config).activations)
        slower.append(step_time.roofline(config, DEVICES["RTX 4070"], "jaxgpt").seconds)
        assert memory.estimate(plain, remat=policy) == memory.estimate(config)
    assert activations[0] > activations[1] > activations[2]
    assert slower[0] < slower[1] < slower[2] < 1.4 * slower[0]


def test_evaluation_recomputes_nothing() -> None:
    """Without a backward pass, the program does not depend on the policy."""
    config = make_config()
    products = []
    for policy in ("none", *POLICIES):
        training = Training(config.replace({"model": {"remat": policy}}))
        evaluate = step.compile_eval_step(training.config, training.graphdef, training.mesh)
        lowered = evaluate.lower(training.state.params, jax.numpy.asarray(token_block(config)))
        products.append(lowered.compile().as_text().count("dot("))
    assert len(set(products)) == 1


def test_out_of_memory_advice_names_remat() -> None:
    config = load_config("fineweb40m")
    limit = memory.estimate(config, remat="blocks").total + 1
    with pytest.raises(ConfigError, match="C022") as raised:
        preflight.check_memory(config, limit)
    assert "--model.remat blocks needs about" in raised.value.help
    with pytest.raises(ConfigError, match="C022") as raised:
        preflight.check_memory(config.replace({"model": {"remat": "blocks"}}), limit // 2)
    assert "--model.remat" not in raised.value.help
