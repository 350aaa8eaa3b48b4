"""The optimizer and the learning-rate schedules, as optax chains and functions of the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgpt import config


def schedule(settings: config.Optim, steps: int) -> Callable[[Any], Any]:
    """The learning rate of update 0, 1, …: linear warmup, then the decay that `settings.schedule` names.

    Warmup and cosine are nanoGPT's: update i of the warmup has (i + 1) / (warmup + 1) of the peak, and the cosine
    reaches `min_lr` at `decay_steps`. A Python step gives a Python number without JAX: on a GPU, JAX's would wait in
    the queue for the training step before it.
    """
    begin, end = _decay(settings, steps)
    peak, warmup = settings.learning_rate, settings.warmup_steps
    low = peak if settings.schedule == "constant" else settings.min_lr

    def rate(step: Any) -> Any:
        xp: Any = jnp if isinstance(step, jax.Array) else np
        part = xp.clip((step - begin) / max(end - begin, 1), 0.0, 1.0)
        fall = (1 - xp.cos(np.pi * part)) / 2 if settings.schedule == "cosine" else part
        value = xp.where(step < warmup, peak * (step + 1) / (warmup + 1), peak + fall * (low - peak))
        return value if xp is jnp else float(value)

    return rate


def _decay(settings: config.Optim, steps: int) -> tuple[int, int]:
    """The steps between which the rate falls."""
    warmup = settings.warmup_steps
    if settings.schedule == "wsd":
        return max(steps - (settings.decay_steps or max(steps // 5, 1)), warmup), steps
    return warmup, settings.decay_steps or steps


def make(settings: config.Optim, steps: int) -> optax.GradientTransformation:
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
