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
from jax.sharding import Mesh, PartitionSpec

from jaxgpt import config
from jaxgpt.config import Config
from jaxgpt.model import loss as cross_entropy
from jaxgpt.model.gpt import GPT, compute_dtype
from jaxgpt.training.mesh import over_batch, replicated

Params = dict[str, Any]
DROPOUT_PRNG = "threefry2x32"


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
    state: TrainState,
    tokens_AxBxW: jax.Array,
    *,
    cfg: Config,
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    axis: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update from A micro-batches: their mean gradient, accumulated in float32.

    `axis` names the mesh axis over which a caller has split B; the devices' gradients meet once, after the scan.
    """
    # Cast once here, not in the scan: the loop would otherwise convert every weight for each micro-batch.
    weights = cast_matrices(state.params, compute_dtype(cfg.model))
    keys_AxB = _dropout_keys(cfg, state.step, tokens_AxBxW, axis)

    def micro(carry: Params, xs: tuple[jax.Array, jax.Array | None]) -> tuple[Params, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(weights, *xs, graphdef=graphdef, settings=cfg.model)
        return jax.tree.map(lambda total, grad: total + grad.astype(jnp.float32), carry, grads), loss

    count = len(tokens_AxBxW)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    total, losses_A = jax.lax.scan(micro, zeros, (tokens_AxBxW, keys_AxB))
    grads, loss = jax.tree.map(lambda leaf: leaf / count, (total, jnp.sum(losses_A)))
    if axis:
        grads, loss = jax.lax.pmean((grads, loss), axis)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), Metrics(loss, optax.tree.norm(grads))


def loss_fn(
    params: Params, tokens_BxW: jax.Array, keys_B: jax.Array | None, *, graphdef: Any, settings: config.Model
) -> jax.Array:
    """Mean loss in nats per token of predicting each window's next tokens; `keys_B` drives dropout."""
    inputs_BxT, targets_BxT = shift(tokens_BxW)
    gpt = nnx.merge(graphdef, params)
    x_BxTxD, _ = gpt.hidden(inputs_BxT, keys_B=keys_B)
    head_VxD = gpt.head().astype(x_BxTxD.dtype)
    x_NxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
    return cross_entropy.mean_loss(x_NxD, head_VxD, targets_BxT.reshape(-1), settings.loss_chunk)


def _dropout_keys(cfg: Config, step: jax.Array, tokens_AxBxW: jax.Array, axis: str | None) -> jax.Array | None:
    """A key per window, [A, B], from (seed, step, the window's place in the step), or None without dropout.

    So a run keeps its dropout whatever its micro-batch and devices, as it keeps its order of tokens. Keys are few, and
    Threefry's; the masks are many, and `kernels.bernoulli` hashes them from the keys.
    """
    if not cfg.model.dropout and not cfg.model.attention_dropout:
        return None
    accum, rows = tokens_AxBxW.shape[:2]
    devices, here = (jax.lax.axis_size(axis), jax.lax.axis_index(axis)) if axis else (1, 0)
    places_AxB = jnp.arange(accum * devices * rows).reshape(accum, devices, rows)[:, here]
    key = jax.random.fold_in(jax.random.key(cfg.run.seed, impl=DROPOUT_PRNG), step)
    keys_AxB: jax.Array = jax.vmap(jax.vmap(partial(jax.random.fold_in, key)))(places_AxB)
    return keys_AxB


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
    function = partial(train_step, cfg=cfg, graphdef=graphdef, optimizer=optimizer, axis=mesh.axis_names[0])
    here, split = replicated(mesh), over_batch(mesh)
    by_device = _by_device(function, mesh, here.spec)
    options = _compiler_options(cfg, mesh)
    return jax.jit(
        by_device, donate_argnums=0, in_shardings=(here, split), out_shardings=here, compiler_options=options
    )


def compile_eval_step(cfg: Config, graphdef: Any, mesh: Mesh) -> Callable[[Params, jax.Array], jax.Array]:
    """`eval_step` jitted for `mesh`."""
    here, split = replicated(mesh), over_batch(mesh)
    by_device = _by_device(partial(eval_step, cfg=cfg, graphdef=graphdef), mesh, PartitionSpec(*split.spec[:2]))
    return jax.jit(by_device, in_shardings=(here, split), out_shardings=here)


def _compiler_options(cfg: Config, mesh: Mesh) -> dict[str, Any]:
    """On a CPU, XLA drops the barriers that keep a recomputation apart before it looks for common expressions.

    It would then compute nothing again and keep everything, whatever `model.remat` says. On a GPU they stay in place
    until the program has its order.
    """
    dropped = cfg.model.remat != "none" and mesh.devices.flat[0].platform == "cpu"
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if dropped else {}


def _by_device(function: Callable[..., Any], mesh: Mesh, out_specs: PartitionSpec) -> Callable[..., Any]:
    """`function` of (replicated arrays, tokens), run by each device on its own rows of every micro-batch.

    Left to the compiler's own partitioning, the chunks of the loss would be gathered and every device would do the
    whole head; here nothing crosses devices but what `function` sends.
    """
    in_specs = (replicated(mesh).spec, over_batch(mesh).spec)
    # Varying types are not tracked: the gradient of replicated weights is to stay each device's own until the pmean.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def shift(tokens_BxW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Windows as inputs and targets, each the other's neighbour, in int32."""
    tokens_BxW = tokens_BxW.astype(jnp.int32)
    return tokens_BxW[:, :-1], tokens_BxW[:, 1:]


def cast_matrices(params: Params, dtype: Any) -> Params:
    """Matrices in the compute type; vectors (norms, biases) stay float32, where they cost nothing."""
    cast: Params = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim >= 2 else leaf, params)
    return cast
