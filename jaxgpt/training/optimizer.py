"""The optimizer of a run and its learning-rate schedule, as optax chains and functions of the step."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgpt.config import Config, Model, Optim
from jaxgpt.config.schedule import learning_rate
from jaxgpt.optimizers import OPTIMIZERS
from jaxgpt.training.loss_scale import with_loss_scale


def schedule(optim: Optim, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for optax; see `jaxgpt.config.schedule`."""
    return partial(learning_rate, optim, total_steps, xp=jnp)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Clipping by global norm, the update rules, weight decay and the schedule; in float16, loss scaling as well."""
    optim = config.optim
    rate = schedule(optim, config.run.steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip else optax.identity(),
        _update_rules(config),
        optax.add_decayed_weights(optim.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(rate),
    )
    return with_loss_scale(optimizer) if config.model.dtype == "float16" else optimizer


def _update_rules(config: Config) -> optax.GradientTransformation:
    """The chosen optimizer for the matrices of the blocks, AdamW for the others: embeddings, LM head, norms, biases."""
    optim, model = config.optim, config.model
    adamw = OPTIMIZERS["adamw"].make_update(optim, jnp.float32)
    if optim.optimizer == "adamw":
        return adamw
    dtype = jnp.bfloat16 if model.dtype == "bfloat16" else jnp.float32
    chosen = OPTIMIZERS[optim.optimizer].make_update(optim, dtype)
    others = optax.chain(adamw, optax.scale(adamw_rate_fraction(optim)))
    return optax.partition({"matrices": _separate_qkv(chosen, model), "others": others}, _labels)


def adamw_rate_fraction(optim: Optim) -> float:
    """The learning rate of the parameters that always have AdamW, over that of the matrices."""
    if optim.adamw_lr is None or not optim.learning_rate:
        return 1.0
    return optim.adamw_lr / optim.learning_rate


def _labels(params: Any) -> Any:
    """Which rule updates each parameter."""

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        return "matrices" if path[0].key == "blocks" and leaf.ndim == 2 else "others"

    return jax.tree_util.tree_map_with_path(label, params)


class QKV(NamedTuple):
    """The three matrices that the model stores side by side as one."""

    q: Any
    k: Any
    v: Any


def _separate_qkv(rule: optax.GradientTransformation, model: Model) -> optax.GradientTransformation:
    """`rule`, which sees the matrices of queries, keys and values of each block as three."""
    ends = [model.n_head * model.head_size, (model.n_head + model.kv_heads) * model.head_size]

    def separate(path: tuple[Any, ...], leaf: Any) -> Any:
        is_qkv = "qkv" in [key.key for key in path]
        return QKV(*jnp.split(leaf, ends, axis=1)) if is_qkv else leaf

    def join(node: Any) -> Any:
        return jnp.concatenate(node, axis=1) if isinstance(node, QKV) else node

    def init(params: Any) -> Any:
        return rule.init(jax.tree_util.tree_map_with_path(separate, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        separated = jax.tree_util.tree_map_with_path(separate, updates)
        updates, state = rule.update(separated, state, params)
        return jax.tree.map(join, updates, is_leaf=lambda node: isinstance(node, QKV)), state

    return optax.GradientTransformation(init, update)


def matrices(params: Any) -> Any:
    """True where weight decay applies: matrices and embeddings, neither biases nor norms (nanoGPT's rule)."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
