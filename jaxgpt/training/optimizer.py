"""The optimizer and the learning-rate schedules, as optax chains and functions of the step."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxgpt.config import Optim
from jaxgpt.config.schedule import learning_rate

MUON_UPDATE_RMS = 0.2  # AdamW's typical one, so that both share a learning rate


def schedule(optim: Optim, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for optax; see `jaxgpt.config.schedule`."""
    return partial(learning_rate, optim, total_steps, xp=jnp)


def make_optimizer(optim: Optim, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, AdamW or Muon, and the schedule; `scale_by_learning_rate` makes it a descent."""
    clip = optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip else optax.identity()
    adam = optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2, eps=optim.eps)
    with_muon = optax.partition({"muon": _scale_by_muon(), "adam": adam}, _muon_labels)
    return optax.chain(
        clip,
        with_muon if optim.optimizer == "muon" else adam,
        optax.add_decayed_weights(optim.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(schedule(optim, total_steps)),
    )


def _scale_by_muon() -> optax.GradientTransformation:
    """Muon's update of matrices (Jordan 2024), with the size of an AdamW update (Liu et al. 2025)."""

    def axes(updates: Any) -> Any:
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), updates)

    def resize(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda leaf: MUON_UPDATE_RMS * math.sqrt(max(leaf.shape)) * leaf, updates)

    return optax.chain(optax.contrib.scale_by_muon(weight_dimension_numbers=axes), optax.stateless(resize))


def _muon_labels(params: Any) -> Any:
    """Muon for the matrices of the blocks, Adam for the embeddings, the LM head, norms and biases."""

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        return "muon" if path[0].key == "blocks" and leaf.ndim == 2 else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def matrices(params: Any) -> Any:
    """True where weight decay applies: matrices and embeddings, neither biases nor norms (nanoGPT's rule)."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
