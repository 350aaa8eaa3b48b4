"""Dynamic loss scaling for float16, whose small numbers end at 6e-8 and whose large ones at 65,504.

The loss is multiplied by a scale before its gradient is computed in float16, and the float32 gradient is divided by it.
The scale is a part of the optimizer's state, so that a resumed run continues with it. Micikevicius et al. 2018, "Mixed
precision training" (arXiv 1710.03740); the constants are those of PyTorch's GradScaler.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # steps without an overflow, after which the scale is doubled


class LossScaleState(NamedTuple):
    """The scale (float32), the steps since it changed (int32), and the state of the optimizer."""

    scale: jax.Array
    steps: jax.Array
    inner: Any


def with_loss_scale(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` that skips a gradient which is not finite, and halves the scale then.

    Its counters advance in either case, since the learning rate is a function of the step.
    """

    def init(params: Any) -> LossScaleState:
        return LossScaleState(jnp.float32(INITIAL_SCALE), jnp.int32(0), optimizer.init(params))

    def update(grads: Any, state: LossScaleState, params: Any = None) -> tuple[Any, LossScaleState]:
        is_finite = jnp.isfinite(optax.tree.norm(grads))
        updates, inner = optimizer.update(grads, state.inner, params)
        updates = jax.tree.map(lambda update: jnp.where(is_finite, update, 0.0), updates)
        scale, steps = _next_scale(state, is_finite)
        return updates, LossScaleState(scale, steps, keep_unless(is_finite, state.inner, inner))

    return optax.GradientTransformation(init, update)


def keep_unless(is_finite: jax.Array, before: Any, after: Any) -> Any:
    """`after`, or `before` if `is_finite` is false, but for the counters, which are those of `after`."""

    def choose(old: jax.Array, new: jax.Array) -> jax.Array:
        return new if jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(is_finite, new, old)

    return jax.tree.map(choose, before, after)


def current_scale(opt_state: Any) -> jax.Array | None:
    """The scale of an optimizer's state; None if it has none."""
    return opt_state.scale if isinstance(opt_state, LossScaleState) else None


def _next_scale(state: LossScaleState, is_finite: jax.Array) -> tuple[jax.Array, jax.Array]:
    steps = jnp.where(is_finite, state.steps + 1, 0)
    grows = steps == GROWTH_INTERVAL
    factor = jnp.where(is_finite, jnp.where(grows, 2.0, 1.0), 0.5)
    return state.scale * factor, jnp.where(grows, 0, steps)
