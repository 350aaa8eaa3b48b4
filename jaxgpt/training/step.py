"""One optimizer step and one evaluation step: pure functions of state and tokens, each compiled once.

A micro-batches   B sequences per micro-batch   W window = T + 1 tokens   T block
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from jaxgpt.config import Config
from jaxgpt.config import Model as ModelConfig
from jaxgpt.model.backend import compute_dtype
from jaxgpt.model.gpt import GPT
from jaxgpt.model.loss import mean_loss, token_losses
from jaxgpt.training import mesh as meshes
from jaxgpt.training.loss_scale import current_scale, keep_unless
from jaxgpt.training.mesh import batch_sharding, replicated_sharding, state_shardings

Params = dict[str, Any]
DROPOUT_PRNG = "threefry2x32"


class TrainState(NamedTuple):
    """What training changes: completed steps (int32), float32 parameters (nested dicts) and the optimizer's state."""

    step: jax.Array
    params: Params
    opt_state: Any


class Metrics(NamedTuple):
    """Float32 scalars of one step: the mean loss of the batch, and the gradient norm before clipping."""

    loss: jax.Array
    grad_norm: jax.Array


def model_graphdef(model: ModelConfig) -> Any:
    """The model's structure without its parameters, for `nnx.merge`."""
    return nnx.split(nnx.eval_shape(lambda: GPT(model, rngs=nnx.Rngs(0))))[0]


def init_state(config: Config, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step: a function of the config and `run.seed` alone."""
    gpt = GPT(config.model, rngs=nnx.Rngs(params=config.run.seed))
    params = nnx.to_pure_dict(nnx.split(gpt)[1])
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def compile_init(config: Config, optimizer: optax.GradientTransformation, mesh: Mesh) -> Callable[[], TrainState]:
    """`init_state`, jitted so that every array is created with its sharding."""
    init = partial(init_state, config, optimizer)
    return jax.jit(init, out_shardings=state_shardings(mesh, jax.eval_shape(init)))


def abstract_state(config: Config, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, as `jax.ShapeDtypeStruct`s."""
    shapes = jax.eval_shape(partial(init_state, config, optimizer))
    state: TrainState = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )
    return state


def train_step(
    state: TrainState,
    tokens_AxBxW: jax.Array,
    *,
    config: Config,
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    eot: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on A micro-batches: their mean gradient, accumulated in float32.

    With the end-of-text token `eot`, attention does not cross documents (see `document_numbers`).
    With a mesh, its devices compute the gradient of their own windows; the compiler distributes the optimizer's work.
    """
    gradient: Callable[..., tuple[Params, jax.Array]]
    gradient = partial(mean_gradient, config=config, graphdef=graphdef, eot=eot)
    if mesh:
        specs = _specs(state_shardings(mesh, state.params))
        out_specs = (specs, PartitionSpec())
        in_specs = (specs, PartitionSpec(), PartitionSpec())
        gradient = _shard_map(partial(gradient, specs=specs), mesh, in_specs, out_specs)
    grads, loss = gradient(state.params, state.step, current_scale(state.opt_state), tokens_AxBxW)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = TrainState(state.step + 1, params, opt_state)
    metrics = Metrics(loss, optax.tree.norm(grads))
    return (_skip_unless_finite(metrics, state, after) if config.run.on_nonfinite == "skip" else after), metrics


def _skip_unless_finite(metrics: Metrics, before: TrainState, after: TrainState) -> TrainState:
    """`after`, or `before` if the loss or the gradient is not finite.

    Counters advance in either case, since the learning rate is a function of the step.
    """
    is_finite = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
    state: TrainState = keep_unless(is_finite, before, after)
    return state


def mean_gradient(
    params: Params,
    step: jax.Array,
    scale: jax.Array | None,
    tokens_AxBxW: jax.Array,
    *,
    config: Config,
    graphdef: Any,
    eot: int | None = None,
    specs: Any = None,
) -> tuple[Params, jax.Array]:
    """The float32 gradient and the loss, means over all windows; `scale` is that of the loss in float16.

    With `specs`, those of `params`, this runs on each device of a mesh: on its shards of `params` and its rows of B.
    Devices gather the weights once; those of a group reduce each micro-batch's gradient to their shards, and the groups
    average these once, after the scan.
    """
    # Cast once here, not in the scan: the loop would otherwise convert every weight for each micro-batch.
    weights = cast_matrices(params, compute_dtype(config.model))
    if specs is not None:
        weights = meshes.gather(weights, specs)
    rngs_AxB = _dropout_rngs(config, step, tokens_AxBxW, is_sharded=specs is not None)

    def micro_step(carry: Params, xs: tuple[jax.Array, jax.Array | None]) -> tuple[Params, jax.Array]:
        compute = partial(loss_fn, graphdef=graphdef, model=config.model, eot=eot, scale=scale)
        loss, grads = jax.value_and_grad(compute)(weights, *xs)
        grads = jax.tree.map(lambda grad: _unscaled(grad.astype(jnp.float32), scale), grads)
        if specs is not None:
            grads = meshes.scatter_mean(grads, specs)
        return jax.tree.map(jnp.add, carry, grads), loss

    count = len(tokens_AxBxW)
    zeros = jax.tree.map(jnp.zeros_like, params)
    total, losses_A = jax.lax.scan(micro_step, zeros, (tokens_AxBxW, rngs_AxB))
    grads, loss = jax.tree.map(lambda leaf: leaf / count, (total, jnp.sum(losses_A)))
    if specs is None:
        return grads, loss
    return jax.lax.pmean(grads, "data"), jax.lax.pmean(loss, meshes.AXES)


def loss_fn(
    params: Params,
    tokens_BxW: jax.Array,
    rngs_B: jax.Array | None,
    *,
    graphdef: Any,
    model: ModelConfig,
    eot: int | None = None,
    scale: jax.Array | None = None,
) -> jax.Array:
    """Mean loss in nats per token of predicting each window's next tokens; `rngs_B` enables dropout."""
    inputs_BxT, targets_BxT = inputs_and_targets(tokens_BxW)
    gpt = nnx.merge(graphdef, params)
    x_BxTxD, _ = gpt.hidden(inputs_BxT, rngs_B=rngs_B, documents_BxT=document_numbers(inputs_BxT, eot))
    head_VxD = gpt.lm_head_weight().astype(x_BxTxD.dtype)
    x_NxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
    return mean_loss(x_NxD, head_VxD, targets_BxT.reshape(-1), model.loss_chunk, scale)


def _unscaled(grad: jax.Array, scale: jax.Array | None) -> jax.Array:
    return grad if scale is None else grad / scale


def _dropout_rngs(config: Config, step: jax.Array, tokens_AxBxW: jax.Array, *, is_sharded: bool) -> jax.Array | None:
    """A key per window, [A, B], from (seed, step, index of the window in the step), or None without dropout.

    So dropout, like the data order, does not depend on the micro-batch size or the number of devices. The few keys are
    Threefry's; `ops.dropout.dropout_mask` hashes the many mask elements from them.
    """
    if not config.model.dropout and not config.model.attention_dropout:
        return None
    accum, rows = tokens_AxBxW.shape[:2]
    axes = meshes.AXES
    devices, device = (jax.lax.axis_size(axes), jax.lax.axis_index(axes)) if is_sharded else (1, 0)
    indices_AxB = jnp.arange(accum * devices * rows).reshape(accum, devices, rows)[:, device]
    key = jax.random.fold_in(jax.random.key(config.run.seed, impl=DROPOUT_PRNG), step)
    rngs_AxB: jax.Array = jax.vmap(jax.vmap(partial(jax.random.fold_in, key)))(indices_AxB)
    return rngs_AxB


def eval_step(
    params: Params, tokens_AxBxW: jax.Array, *, config: Config, graphdef: Any, specs: Any = None, eot: int | None = None
) -> jax.Array:
    """Mean loss of each window, float32 [A, B], in evaluation mode; on each device of a mesh, as `mean_gradient`."""
    weights = cast_matrices(params, compute_dtype(config.model))
    if specs is not None:
        weights = meshes.gather(weights, specs)

    def micro_step(_: None, tokens_BxW: jax.Array) -> tuple[None, jax.Array]:
        inputs_BxT, targets_BxT = inputs_and_targets(tokens_BxW)
        gpt = nnx.merge(graphdef, weights)
        x_BxTxD, _ = gpt.hidden(inputs_BxT, documents_BxT=document_numbers(inputs_BxT, eot))
        x_NxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
        head_VxD = gpt.lm_head_weight().astype(x_BxTxD.dtype)
        losses_N = token_losses(x_NxD, head_VxD, targets_BxT.reshape(-1), config.model.loss_chunk)
        return None, jnp.mean(losses_N.reshape(targets_BxT.shape), axis=-1)

    return jax.lax.scan(micro_step, None, tokens_AxBxW)[1]


def compile_train_step(
    config: Config, graphdef: Any, optimizer: optax.GradientTransformation, mesh: Mesh, eot: int | None = None
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """`train_step` jitted for `mesh`; it donates the buffers of the given state."""
    shardings = state_shardings(mesh, jax.eval_shape(partial(init_state, config, optimizer)))
    return jax.jit(
        partial(train_step, config=config, graphdef=graphdef, optimizer=optimizer, eot=eot, mesh=mesh),
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated_sharding(mesh)),
        compiler_options=_compiler_options(config, mesh),
    )


def compile_eval_step(
    config: Config, graphdef: Any, mesh: Mesh, eot: int | None = None
) -> Callable[[Params, jax.Array], jax.Array]:
    """`eval_step` jitted for `mesh`."""
    batch = batch_sharding(mesh)

    def evaluate(params: Params, tokens_AxBxW: jax.Array) -> jax.Array:
        specs = _specs(state_shardings(mesh, params))
        function = partial(eval_step, config=config, graphdef=graphdef, specs=specs, eot=eot)
        sharded: Callable[..., jax.Array] = _shard_map(function, mesh, (specs,), PartitionSpec(*batch.spec[:2]))
        return sharded(params, tokens_AxBxW)

    return jax.jit(evaluate, out_shardings=replicated_sharding(mesh))


def _compiler_options(config: Config, mesh: Mesh) -> dict[str, Any]:
    """The config's XLA options, and one that makes `model.remat` effective on a CPU.

    There XLA drops the barriers that separate a recomputation before it eliminates common subexpressions. Without this
    option it would recompute nothing and keep everything. On a GPU the barriers stay until the program is scheduled.
    """
    options: dict[str, Any] = {}
    if mesh.devices.flat[0].platform == "cpu" and config.model.remat != "none":
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    for text in config.mesh.compiler_options:
        name, _, value = text.partition("=")
        options[name] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def _specs(shardings: Any) -> Any:
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


def _shard_map(function: Callable[..., Any], mesh: Mesh, specs: tuple[Any, ...], out_specs: Any) -> Callable[..., Any]:
    """`function` of arrays with `specs` and tokens, run by each device on its own rows of every micro-batch.

    With the compiler's automatic partitioning, the loss chunks would be gathered and every device would compute the
    whole head. Here devices exchange only what `function` communicates explicitly.
    """
    in_specs = (*specs, batch_sharding(mesh).spec)
    # check_vma=False: the gradient of the replicated weights must stay local to each device until the pmean.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def inputs_and_targets(tokens_BxW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inputs [B, T] and next-token targets [B, T] of windows, in int32."""
    tokens_BxW = tokens_BxW.astype(jnp.int32)
    return tokens_BxW[:, :-1], tokens_BxW[:, 1:]


def document_numbers(inputs_BxT: jax.Array, eot: int | None) -> jax.Array | None:
    """The number of each token's document in its window, int32 [B, T]; None without `eot`.

    The end-of-text token starts a document, wherever the data's author puts it: from it the first token of a document
    is predicted, as at the start of a sample, and the last token of a document predicts it.
    """
    return None if eot is None else jnp.cumsum(inputs_BxT == eot, axis=1, dtype=jnp.int32)


def cast_matrices(params: Params, dtype: Any) -> Params:
    """Matrices in the compute type; vectors (norms, biases) stay float32, where they cost nothing."""
    cast: Params = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim >= 2 else leaf, params)
    return cast
