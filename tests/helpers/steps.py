"""Small train steps on a text: configs, state, gradients and comparisons of trees."""

import dataclasses
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxgpt.config import Config, Data, Model, Optim, Run
from jaxgpt.config import Mesh as MeshConfig
from jaxgpt.training import mesh, step
from jaxgpt.training import optimizer as optim

TEXT = np.frombuffer(Path(textwrap.__file__).read_bytes(), np.uint8)
MODEL = Model(
    n_layer=4, n_head=2, n_embd=32, block_size=32, vocab_size=256, dtype="float32", attention="xla", loss_chunk=100
)
SMALL = dataclasses.replace(MODEL, n_layer=1, n_head=2, n_embd=16, block_size=16)
MODERN: dict[str, Any] = {"architecture": "modern", "n_head": 4, "n_kv_head": 2, "tie_embeddings": False}
DROPOUT: dict[str, Any] = {"dropout": 0.2, "attention_dropout": 0.2}


def make_config(base: Model = SMALL, *, accum: int = 2, micro_batch: int = 4, **changes: Any) -> Config:
    return Config(
        model=dataclasses.replace(base, **changes),
        data=Data(accum=accum, micro_batch=micro_batch),
        optim=Optim(learning_rate=3e-3, min_lr=3e-4, warmup_steps=4),
        run=Run(steps=20),
    )


def token_block(config: Config, number: int = 0) -> np.ndarray:
    """The windows [A, B, W] of step `number`: consecutive pieces of a text that repeats."""
    shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
    return np.resize(np.roll(TEXT, -number * np.prod(shape)), shape).astype(np.uint16)


def cpu_mesh(count: int, config: Config) -> Mesh:
    return mesh.make_mesh(MeshConfig(data_parallel=count), config.data.micro_batch)


class Training:
    """The state of a config and its compiled steps."""

    def __init__(self, config: Config, devices: int = 1, optimizer: Any = None) -> None:
        self.config = config
        self.mesh = cpu_mesh(devices, config)
        self.graphdef = step.model_graphdef(config.model)
        self.optimizer = optimizer or optim.make_optimizer(config)
        self.state = step.compile_init(config, self.optimizer, self.mesh)()
        self.train_step = step.compile_train_step(config, self.graphdef, self.optimizer, self.mesh)

    def __call__(self, tokens_AxBxW: np.ndarray) -> step.Metrics:
        tokens_AxBxW = jax.device_put(tokens_AxBxW, mesh.batch_sharding(self.mesh))
        self.state, metrics = self.train_step(self.state, tokens_AxBxW)
        return metrics

    def eval_losses(self, tokens_AxBxW: np.ndarray) -> jax.Array:
        return step.compile_eval_step(self.config, self.graphdef, self.mesh)(self.state.params, tokens_AxBxW)


def gradient(config: Config, tokens_AxBxW: np.ndarray) -> tuple[step.Metrics, step.Params]:
    """The metrics of one step and its gradient, measured as the change by SGD with learning rate 1."""
    training = Training(config, optimizer=optax.sgd(1.0))
    start = jax.tree.map(np.array, training.state.params)
    metrics = training(tokens_AxBxW)
    return metrics, jax.tree.map(lambda before, after: before - np.asarray(after), start, training.state.params)


def relative_distance(tree: Any, other: Any) -> float:
    return float(optax.tree.norm(optax.tree.sub(tree, other)) / optax.tree.norm(other))


def assert_close(tree: Any, other: Any, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol, rtol=rtol), tree, other)
