"""float16 with dynamic loss scaling against float32: gradients, overflows, and runs that are resumed."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.training import STEPS, arguments, records, run_folder, saved_state, tiny_config

from jaxgpt import errors, train
from jaxgpt.config.attention import default_dtype
from jaxgpt.model import backend
from jaxgpt.model.loss import mean_loss
from jaxgpt.training import loss_scale, step
from jaxgpt.training import optimizer as optim
from jaxgpt.training.loaded_model import resolve_auto
from jaxgpt.training.loss_scale import GROWTH_INTERVAL, LossScaleState, with_loss_scale
from jaxgpt.training.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("fast_compilation")
HALF: dict[str, Any] = {"model.dtype": "float16"}
MODERN: dict[str, Any] = {"model.architecture": "modern", "model.n_kv_head": 1, "optim.optimizer": "muon"}


def gradient(workspace: Path, dtype: str, changes: dict[str, Any], scale: float | None) -> tuple[Any, float]:
    """The gradient, as one vector, and the loss of the run's first batch."""
    config = tiny_config(workspace, {"model.dtype": dtype, "mesh.data_parallel": 1, **changes})
    config = resolve_auto(config, make_mesh(config.mesh, config.data.micro_batch))
    params = step.init_state(config, optim.make_optimizer(config)).params
    shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.model.vocab_size, shape))
    array = None if scale is None else jnp.float32(scale)
    graphdef = step.model_graphdef(config.model)
    grads, loss = step.mean_gradient(params, jnp.int32(0), array, tokens, config=config, graphdef=graphdef)
    return jax.flatten_util.ravel_pytree(grads)[0], float(loss)


@pytest.mark.parametrize("changes", [{}, MODERN, {"model.block_size": 17, "data.micro_batch": 1}])
def test_gradient_is_float32s(workspace: Path, changes: dict[str, Any]) -> None:
    expected, expected_loss = gradient(workspace, "float32", changes, None)
    actual, loss = gradient(workspace, "float16", changes, 2.0**12)
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    assert float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected)) < 5e-3


def test_scaled_gradient_keeps_what_float16_loses() -> None:
    """Each of many tokens has a gradient below float16's smallest number."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2000, 8)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(5000, 8)) / 50, jnp.float32)
    targets = jnp.zeros(2000, jnp.int32)

    def of_head(dtype: Any, scale: Any) -> Any:
        loss = functools.partial(mean_loss, targets_N=targets, chunk=2000, scale=scale)
        return jax.grad(lambda x, head: loss(x, head_VxD=head), argnums=1)(x.astype(dtype), head.astype(dtype))

    expected = of_head(jnp.float32, None)[1:]  # without the target's row, whose gradient is large
    lost = of_head(jnp.float16, None)[1:] - expected
    kept = of_head(jnp.float16, jnp.float32(2.0**16))[1:].astype(jnp.float32) / 2.0**16 - expected
    size = float(jnp.linalg.norm(expected))
    assert float(jnp.linalg.norm(kept)) < 5e-3 * size
    assert float(jnp.linalg.norm(lost)) > 0.05 * size


def test_overflow_halves_the_scale_and_changes_no_parameter() -> None:
    optimizer = with_loss_scale(optax.adam(0.1))
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    updates, overflown = optimizer.update({"w": jnp.array([1.0, jnp.inf, 1.0])}, state, params)
    assert not updates["w"].any()
    assert float(overflown.scale) == loss_scale.INITIAL_SCALE / 2
    assert not overflown.inner[0].mu["w"].any()
    assert int(overflown.inner[0].count) == 1  # the learning rate is a function of the step
    updates, after = optimizer.update({"w": jnp.ones(3)}, overflown, params)
    assert updates["w"].all()
    assert float(after.scale) == float(overflown.scale)


def test_scale_doubles_after_steps_without_an_overflow() -> None:
    optimizer = with_loss_scale(optax.sgd(0.1))
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)._replace(steps=jnp.int32(GROWTH_INTERVAL - 2))
    scales = []
    for _ in range(3):
        _, state = optimizer.update({"w": jnp.ones(3)}, state, params)
        scales.append(float(state.scale) / loss_scale.INITIAL_SCALE)
    assert scales == [1.0, 2.0, 2.0]
    assert int(state.steps) == 1


def test_run_in_float16_resumes_bitwise_with_its_scale(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first steps overflow: they are skipped and logged, without a warning."""
    monkeypatch.setattr(loss_scale, "INITIAL_SCALE", 2.0**24)
    assert errors.run(train.main, arguments(workspace, HALF)) == 0
    assert capsys.readouterr().err == ""
    log = [json.loads(line) for line in run_folder(workspace).log_file.read_text().splitlines()]
    skipped = [record["step"] for record in log if record["kind"] == "skip"]
    assert skipped[:3] == [0, 1, 2]
    assert len(skipped) < 10
    state = saved_state(tiny_config(workspace, HALF))
    assert isinstance(state.opt_state, LossScaleState)
    assert float(state.opt_state.scale) == 2.0 ** (24 - len(skipped))

    stopping = {"run.name": "b", **HALF}
    config = tiny_config(workspace, stopping)
    monkeypatch.setattr(errors, "REPEAT_SECONDS", 1e9)
    _stop_after(monkeypatch, STEPS // 2)
    assert errors.run(train.main, arguments(workspace, stopping)) == 75
    monkeypatch.undo()
    assert errors.run(train.main, arguments(workspace, stopping)) == 0
    again = saved_state(config)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), state, again))
    assert config.model.dtype == "float16"
    assert [r["loss"] for r in records(run_folder(workspace))][-1] < 4.3


def _stop_after(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """A SIGTERM in step `last`."""
    import os
    import signal

    from jaxgpt.training.recorder import Recorder

    record = Recorder.step

    def step_and_stop(recorder: Any, number: int, metrics: Any) -> None:
        record(recorder, number, metrics)
        if number == last:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "step", step_and_stop)


def test_a_gradient_that_overflows_at_any_scale_ends_the_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss_scale, "INITIAL_SCALE", 2.0**60)
    assert errors.run(train.main, arguments(workspace, HALF)) == 5
    assert "error[N001]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ("", "bfloat16"),
        ("8.9", "bfloat16"),
        ("8.0", "bfloat16"),
        ("7.5", "float16"),
        ("7.0", "float16"),
        ("6.1", "float32"),
    ],
)
def test_auto_suits_the_card(capability: str, dtype: str) -> None:
    assert default_dtype(capability) == dtype
    model = tiny_config(Path("."), {"model.attention": "auto"}).model
    resolved = backend.resolve_auto(dataclasses.replace(model, dtype="auto"), "gpu", capability)
    assert resolved.dtype == dtype
    if dtype != "bfloat16":
        assert resolved.attention == "xla"
