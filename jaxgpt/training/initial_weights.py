"""The start of a run from given weights (`run.init_from`)."""

from typing import Any

import jax

from jaxgpt.config import Config
from jaxgpt.convert.source import read_weights
from jaxgpt.convert.weights import check_tokenizer, crop_context
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import DataError
from jaxgpt.training.step import TrainState


def named_arrays(params: Any) -> dict[str, Any]:
    """Nested parameters by their names: {"blocks.0.attention.qkv.kernel": array}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def replace_params(state: TrainState, config: Config, tokenizer: Tokenizer) -> TrainState:
    """`state` with the parameters of `config.run.init_from`, on the same devices; the optimizer starts from zero.

    Raises what `read_weights` raises, `DataError` D046 if the weights have other shapes, and `CheckpointError` K002 if
    they were trained with another tokenizer.
    """
    weights = crop_context(read_weights(config.run.init_from), config.model.block_size)
    check_tokenizer(weights, tokenizer)
    leaves = named_arrays(state.params)
    shapes = {name: array.shape for name, array in weights.arrays.items()}
    wrong = [name for name, leaf in leaves.items() if shapes.get(name) != leaf.shape]
    wrong += sorted(shapes.keys() - leaves.keys())
    if wrong:
        message = f"{config.run.init_from}: {wrong[0]} is {shapes.get(wrong[0])}; the run's network has another shape"
        raise DataError("D046", message, "the weights are not those that the run was started with")
    placed = [jax.device_put(weights.arrays[name], leaf.sharding) for name, leaf in leaves.items()]
    return state._replace(params=jax.tree.unflatten(jax.tree.structure(state.params), placed))
