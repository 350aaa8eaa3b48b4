"""Compiled and lowered train steps, and their comparison with the float64 oracle."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pytest

from helpers import oracle
from jaxgpt.config import Config, Data, Mesh, Model, Run
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.mesh import make_mesh

# No product of these sizes equals another one, so the element count of an array identifies it.
MODEL = Model(
    n_layer=2, n_head=2, n_embd=24, block_size=52, vocab_size=510, dtype="float32", attention="xla", loss_chunk=25
)
MODERN: dict[str, Any] = {"architecture": "modern", "n_head": 4, "n_kv_head": 2, "tie_embeddings": False, "head_dim": 8}
BIASED: dict[str, Any] = {"bias": True, "activation": "gelu_tanh"}


def make_config(*, accum: int = 2, micro_batch: int = 3, **changes: Any) -> Config:
    data = Data(accum=accum, micro_batch=micro_batch)
    return Config(model=dataclasses.replace(MODEL, **changes), data=data, mesh=Mesh(data_parallel=1))


def small_config(model: Model, micro_batch: int = 2) -> Config:
    """A run of `model` on one device with attention by XLA."""
    base = Config(model=model, data=Data(micro_batch=micro_batch, accum=2), run=Run(steps=5000))
    return base.replace({"model": {"attention": "xla"}, "mesh": {"data_parallel": 1}})


def random_tokens(config: Config) -> np.ndarray:
    shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
    return np.random.default_rng(0).integers(0, config.model.vocab_size, shape).astype(np.uint16)


def compile_step(config: Config) -> Any:
    """The compiled train step on the devices of the config."""
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    optimizer = optim.make_optimizer(config)
    state = step.abstract_state(config, optimizer, mesh)
    tokens = jax.ShapeDtypeStruct((config.data.accum, config.data.micro_batch, config.model.block_size + 1), np.uint16)
    train_step = step.compile_train_step(config, step.model_graphdef(config.model), optimizer, mesh)
    return train_step.lower(state, tokens).compile()


def abstract_step(config: Config) -> tuple[Any, step.TrainState]:
    """`train_step` as a function of (state, tokens), and the shapes of its state."""
    optimizer = optim.make_optimizer(config)
    graphdef = step.model_graphdef(config.model)
    function = partial(step.train_step, config=config, graphdef=graphdef, optimizer=optimizer)
    return function, jax.eval_shape(partial(step.init_state, config, optimizer))


def gradient(config: Config) -> tuple[step.Metrics, step.Params, step.Params]:
    """The metrics of one step, its initial parameters and its gradient, measured with SGD of learning rate 1."""
    optimizer = optax.sgd(1.0)
    state = step.init_state(config, optimizer)
    graphdef = step.model_graphdef(config.model)
    train_step = jax.jit(partial(step.train_step, config=config, graphdef=graphdef, optimizer=optimizer))
    after, metrics = train_step(state, random_tokens(config))
    grads = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    return metrics, state.params, grads


def assert_matches_oracle(dtype: str, changes: dict[str, Any]) -> None:
    """Loss and gradient of one step agree with the float64 oracle within the rounding of `dtype`."""
    config = make_config(dtype=dtype, **changes)
    metrics, params, grads = gradient(config)
    windows = random_tokens(config).reshape(-1, config.model.block_size + 1)
    loss, expected = oracle.gradient(params, config.to_dict()["model"], windows)
    norm = float(optax.tree.norm(expected))
    loss_tolerance, tolerance = (1e-6, 1e-5) if dtype == "float32" else (2e-4, 0.015)
    assert float(metrics.loss) == pytest.approx(loss, rel=loss_tolerance)
    assert float(optax.tree.norm(optax.tree.sub(grads, expected))) < tolerance * norm
