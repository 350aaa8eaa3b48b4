"""One update of the model, and its evaluation: pure functions of state and tokens, each compiled once.

A micro-batches   B sequences of one   W window = T + 1 tokens   T block
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxgpt import config, cross_entropy
from jaxgpt.config import Config
from jaxgpt.mesh import over_batch, replicated
from jaxgpt.model import GPT, compute_dtype

Params = dict[str, Any]


class TrainState(NamedTuple):
    """What training changes: updates done (int32), float32 parameters (nested dicts) and the optimizer's state."""

    step: jax.Array
    params: Params
    opt_state: Any


class Metrics(NamedTuple):
    """Float32 scalars of one update: the loss is the mean over the whole batch, the norm is that before clipping."""

    loss: jax.Array
    grad_norm: jax.Array


def graph(settings: config.Model) -> Any:
    """The model's structure without its parameters, for `nnx.merge`."""
    return nnx.split(nnx.eval_shape(lambda: GPT(settings, rngs=nnx.Rngs(0))))[0]


def init_state(cfg: Config, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update: a function of the config and `run.seed` alone."""
    gpt = GPT(cfg.model, rngs=nnx.Rngs(params=cfg.run.seed))
    params = nnx.to_pure_dict(nnx.split(gpt)[1])
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def compile_init(cfg: Config, optimizer: optax.GradientTransformation, mesh: Mesh) -> Callable[[], TrainState]:
    """`init_state`, with every array born in its place."""
    return jax.jit(partial(init_state, cfg, optimizer), out_shardings=replicated(mesh))


def abstract_state(cfg: Config, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, as `jax.ShapeDtypeStruct`s."""
    shapes = jax.eval_shape(partial(init_state, cfg, optimizer))
    place = replicated(mesh)
    state: TrainState = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)
    return state


def train_step(
    state: TrainState, tokens_AxBxW: jax.Array, *, cfg: Config, graphdef: Any, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """One update from A micro-batches: their mean gradient, accumulated in float32."""
    # Cast once here, not in the scan: the loop would otherwise convert every weight for each micro-batch.
    weights = cast_matrices(state.params, compute_dtype(cfg.model))
    key = jax.random.fold_in(jax.random.key(cfg.run.seed), state.step)

    def micro(carry: Params, xs: tuple[jax.Array, jax.Array]) -> tuple[Params, jax.Array]:
        tokens_BxW, index = xs
        loss, grads = jax.value_and_grad(loss_fn)(
            weights, tokens_BxW, graphdef=graphdef, settings=cfg.model, key=jax.random.fold_in(key, index)
        )
        return jax.tree.map(lambda total, grad: total + grad.astype(jnp.float32), carry, grads), loss

    count = len(tokens_AxBxW)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    total, losses_A = jax.lax.scan(micro, zeros, (tokens_AxBxW, jnp.arange(count)))
    grads = jax.tree.map(lambda leaf: leaf / count, total)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), Metrics(jnp.mean(losses_A), optax.tree.norm(grads))


def loss_fn(
    params: Params, tokens_BxW: jax.Array, *, graphdef: Any, settings: config.Model, key: jax.Array | None
) -> jax.Array:
    """Mean loss in nats per token of predicting each window's next tokens; `key` drives dropout."""
    inputs_BxT, targets_BxT = shift(tokens_BxW)
    gpt = nnx.merge(graphdef, params)
    x_BxTxD, _ = gpt.hidden(inputs_BxT, key=key if settings.dropout or settings.attention_dropout else None)
    head_VxD = gpt.head().astype(x_BxTxD.dtype)
    x_NxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
    return cross_entropy.mean_loss(x_NxD, head_VxD, targets_BxT.reshape(-1), settings.loss_chunk)


def eval_step(params: Params, tokens_AxBxW: jax.Array, *, cfg: Config, graphdef: Any) -> jax.Array:
    """Mean loss of each window, float32 [A, B], in evaluation mode."""
    weights = cast_matrices(params, compute_dtype(cfg.model))

    def micro(_: None, tokens_BxW: jax.Array) -> tuple[None, jax.Array]:
        inputs_BxT, targets_BxT = shift(tokens_BxW)
        gpt = nnx.merge(graphdef, weights)
        x_BxTxD, _ = gpt.hidden(inputs_BxT)
        x_NxD, head_VxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1]), gpt.head().astype(x_BxTxD.dtype)
        losses_N = cross_entropy.losses(x_NxD, head_VxD, targets_BxT.reshape(-1), cfg.model.loss_chunk)
        return None, jnp.mean(losses_N.reshape(targets_BxT.shape), axis=-1)

    return jax.lax.scan(micro, None, tokens_AxBxW)[1]


def compile_train_step(
    cfg: Config, graphdef: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """`train_step` jitted for `mesh`; the state given to it is used up (donated)."""
    here = replicated(mesh)
    function = partial(train_step, cfg=cfg, graphdef=graphdef, optimizer=optimizer)
    return jax.jit(function, donate_argnums=0, in_shardings=(here, over_batch(mesh)), out_shardings=here)


def compile_eval_step(cfg: Config, graphdef: Any, mesh: Mesh) -> Callable[[Params, jax.Array], jax.Array]:
    """`eval_step` jitted for `mesh`."""
    here = replicated(mesh)
    function = partial(eval_step, cfg=cfg, graphdef=graphdef)
    return jax.jit(function, in_shardings=(here, over_batch(mesh)), out_shardings=here)


def shift(tokens_BxW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Windows as inputs and targets, each the other's neighbour, in int32."""
    tokens_BxW = tokens_BxW.astype(jnp.int32)
    return tokens_BxW[:, :-1], tokens_BxW[:, 1:]


def cast_matrices(params: Params, dtype: Any) -> Params:
    """Matrices in the compute type; vectors (norms, biases) stay float32, where they cost nothing."""
    cast: Params = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim >= 2 else leaf, params)
    return cast
