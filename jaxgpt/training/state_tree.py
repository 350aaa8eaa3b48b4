"""The arrays of a state by name, as checkpoints have them, and what must be true of them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.errors import LOWER_LR_HELP, CheckpointError, NonFiniteError
from jaxgpt.training.step import TrainState


def as_tree(state: TrainState) -> dict[str, Any]:
    """`state` as {"params.blocks.0.attention.kernel": array}: names that do not depend on Python classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def as_state(tree: dict[str, Any], template: TrainState) -> TrainState:
    state: TrainState = jax.tree.unflatten(jax.tree.structure(template), [tree[name] for name in as_tree(template)])
    return state


def check_tree(stored: dict[str, Any], expected: dict[str, Any], path: str) -> None:
    """Raises K004 for the first array that differs; Orbax itself would cast a type silently."""
    for name, leaf in expected.items():
        array = stored.get(name)
        if array is None:
            message = f"{path} does not have {name}; the config needs it"
            raise CheckpointError("K004", message, "resume with the run's config")
        if tuple(array.shape) != tuple(leaf.shape) or array.dtype != leaf.dtype:
            raise CheckpointError(
                "K004",
                f"{path}: {name} is {array.dtype}{list(array.shape)}; the config needs {leaf.dtype}{list(leaf.shape)}",
                "resume with the config that the run was started with",
            )
    extra = sorted(set(stored) - set(expected))
    if extra:
        raise CheckpointError("K004", f"{path} has {extra[0]}, which the config does not need")


def check_finite(step: int, tree: dict[str, Any]) -> None:
    """Raises `NonFiniteError` N001 for the first array with a NaN or an infinity; one transfer from the device."""
    finite = jax.device_get(_all_finite(tree))
    bad_name = next((name for name, is_finite in finite.items() if not is_finite), None)
    if bad_name:
        message = f"{bad_name} is not finite after step {step}: it was not saved"
        raise NonFiniteError("N001", message, LOWER_LR_HELP, step=step - 1)


@jax.jit
def _all_finite(tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in tree.items()}
