"""Losses that are not finite, on demand."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.training import tiny_config
from jaxgpt.data import dataset
from jaxgpt.training import step
from jaxgpt.training.batches import train_batches
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.session import TrainingSession


def poison(monkeypatch: pytest.MonkeyPatch, start: Any = None) -> None:
    """Makes the loss NaN of every window, or of the window that starts with the tokens `start`."""
    original = step.loss_fn

    def loss_fn(params: Any, tokens_BxW: jax.Array, rngs_B: Any, **options: Any) -> jax.Array:
        loss = original(params, tokens_BxW, rngs_B, **options)
        if start is None:
            return loss * jnp.nan
        is_bad = (tokens_BxW[:, : len(start)] == jnp.asarray(start)[None]).all(-1).any()
        return loss * jnp.where(is_bad, jnp.nan, 1.0)

    monkeypatch.setattr(step, "loss_fn", loss_fn)


def first_tokens_of_step(workspace: Path, number: int) -> np.ndarray[Any, Any]:
    config = tiny_config(workspace)
    data = dataset.open_folder(config.data.path)
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    with train_batches(config, data.train, mesh, number, data.vocab_size) as batches:
        return np.array(next(iter(batches)))[0, 0, :8]


def poison_gradient(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    """Makes the gradient NaN of the window that starts with the tokens `start`, and leaves its loss as it is."""
    original = step.loss_fn

    def loss_fn(params: Any, tokens_BxW: jax.Array, rngs_B: Any, **options: Any) -> jax.Array:
        is_bad = (tokens_BxW[:, : len(start)] == jnp.asarray(start)[None]).all(-1).any()
        weight = jax.tree.leaves(params)[0].ravel()[0]
        zero = jax.lax.cond(is_bad, lambda x: jnp.sqrt(x * 0), lambda x: x * 0, weight)  # of sqrt, the slope at 0
        return original(params, tokens_BxW, rngs_B, **options) + zero

    monkeypatch.setattr(step, "loss_fn", loss_fn)


def damage_state(monkeypatch: pytest.MonkeyPatch, number: int, field: str) -> None:
    """Makes one number of the state's `field` NaN after `number` steps, once, as a faulty memory would."""
    original = TrainingSession.train_step
    steps = [number]

    def train_step(self: TrainingSession, batch: Any) -> step.Metrics:
        metrics = original(self, batch)
        if steps == [self.step]:
            steps.clear()
            leaves, structure = jax.tree.flatten(getattr(self.state, field))
            index = max(range(len(leaves)), key=lambda index: leaves[index].size)
            array = np.array(leaves[index])
            array.flat[0] = np.nan
            leaves[index] = jax.device_put(array, leaves[index].sharding)
            self.state = self.state._replace(**{field: jax.tree.unflatten(structure, leaves)})
        return metrics

    monkeypatch.setattr(TrainingSession, "train_step", train_step)
