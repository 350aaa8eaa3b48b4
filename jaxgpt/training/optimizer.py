"""The optimizer and the learning-rate schedules, as optax chains and functions of the step."""

from typing import Any

import jax
import optax

from jaxgpt import config


def schedule(settings: config.Optim, steps: int) -> optax.Schedule:
    """The learning rate of update 0, 1, …: linear warmup, then the decay that `settings.schedule` names.

    Warmup and cosine are nanoGPT's: update i of the warmup has (i + 1) / (warmup + 1) of the peak, and the cosine
    reaches `min_lr` at `decay_steps`.
    """
    warmup, after = settings.warmup_steps, _decay(settings, steps)
    if warmup == 0:
        return after
    rise = optax.linear_schedule(settings.learning_rate / (warmup + 1), settings.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def _decay(settings: config.Optim, steps: int) -> optax.Schedule:
    """The schedule after the warmup, counted from its end."""
    peak, low, warmup = settings.learning_rate, settings.min_lr, settings.warmup_steps
    length = max((settings.decay_steps or steps) - warmup, 1)
    if settings.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, length, alpha=low / peak if peak else 0.0)
    if settings.schedule == "linear":
        return optax.linear_schedule(peak, low, length)
    if settings.schedule == "wsd":
        hold = max(steps - (settings.decay_steps or max(steps // 5, 1)) - warmup, 0)
        return optax.linear_schedule(peak, low, max(steps - warmup - hold, 1), transition_begin=hold)
    return optax.constant_schedule(peak)


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
