"""The optimizer and the learning-rate schedules, as optax chains and functions of the step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgpt import config
from jaxgpt.config.schedule import learning_rate


def schedule(optim: config.Optim, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for optax; see `jaxgpt.config.schedule`."""
    return partial(learning_rate, optim, total_steps, xp=jnp)


def make_optimizer(settings: config.Optim, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, AdamW, and the schedule; `scale_by_learning_rate` makes it a descent."""
    clip = optax.clip_by_global_norm(settings.grad_clip) if settings.grad_clip else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2, eps=settings.eps),
        optax.add_decayed_weights(settings.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(schedule(settings, steps)),
    )


def matrices(params: Any) -> Any:
    """True where weight decay applies: matrices and embeddings, neither biases nor norms (nanoGPT's rule)."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
