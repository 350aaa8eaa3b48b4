"""A model apart from any program: its config and its arrays under jaxgpt's names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jaxgpt.config import Model
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.data.tokenizer import load_file as load_tokenizer
from jaxgpt.errors import CheckpointError, ConfigError, DataError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

# Fields of the model's config that belong to its weights. The others say how it is trained.
NETWORK_FIELDS = (
    "architecture",
    "n_layer",
    "n_head",
    "n_kv_head",
    "n_embd",
    "head_dim",
    "n_inner",
    "vocab_size",
    "bias",
    "activation",
    "tie_embeddings",
    "rope_theta",
    "norm_eps",
)
FAMILIES = "GPT-2's and Qwen3's dense models, and nanoGPT's checkpoints"


class Weights(NamedTuple):
    """A model: float32 `arrays` by jaxgpt's names ("blocks.0.attention.qkv.kernel"), and its `tokenizer.json`."""

    model: Model
    arrays: dict[str, Array]
    tokenizer_file: Path | None = None


class TensorReader:
    """Takes tensors out of a file's, one by one, with their shapes checked. `name` is the file, for messages."""

    def __init__(self, name: str, tensors: Arrays) -> None:
        self.name = name
        self._tensors = dict(tensors)

    def take(self, name: str, *shape: int) -> Array:
        """The tensor `name` in float32.

        Raises `DataError` D046 if it is missing, has another shape, or has a value that is NaN or infinite.
        """
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise DataError("D046", f"{self.name} has no tensor {name}", f"jaxgpt reads {FAMILIES}")
        if not isinstance(tensor, np.ndarray) or tensor.dtype.kind in "iub":
            message = f"{self.name}: {name} does not hold floating-point numbers"
            raise DataError("D046", message, f"jaxgpt reads {FAMILIES}")
        if tensor.shape != shape:
            message = f"{self.name}: {name} has the shape {list(tensor.shape)}; its config needs {list(shape)}"
            raise DataError("D046", message, "the file and its config do not belong together")
        with np.errstate(over="ignore"):  # float64 may be too large for float32
            array = np.ascontiguousarray(tensor, dtype=np.float32)
        if not np.isfinite(array).all():
            message = f"{self.name}: {name} has values that are not finite in float32"
            raise DataError("D046", message, "use another checkpoint: the training that saved this one had diverged")
        return array

    def has(self, name: str) -> bool:
        return name in self._tensors

    def check_empty(self, ignored: Iterable[str] = ()) -> None:
        """Raises `ConfigError` C080 if a tensor is left that jaxgpt's network does not have."""
        left = sorted(name for name in self._tensors if not name.endswith(tuple(ignored)))
        if left:
            raise no_counterpart(self.name, f"the tensor {left[0]}")


class NoCounterpartError(ConfigError):
    """A model that cannot be converted exactly (C080)."""


def no_counterpart(name: str, what: str) -> NoCounterpartError:
    """The error of a model or tokenizer with `what`, which the other program does not have."""
    return NoCounterpartError("C080", f"{name} has {what}, which has no counterpart", f"jaxgpt reads {FAMILIES}")


def trim_vocabulary(weights: Weights, size: int) -> Weights:
    """`weights` without the rows of the embedding and the LM head that no token of the tokenizer has."""
    rows = {"tokens.embedding", "output"}
    arrays = {name: array[:size] if name in rows else array for name, array in weights.arrays.items()}
    return weights._replace(model=_with(weights.model, vocab_size=size), arrays=arrays)


def crop_context(weights: Weights, block_size: int) -> Weights:
    """`weights` for a shorter context: the first rows of the position embedding, if it has one."""
    arrays = dict(weights.arrays)
    if "positions.embedding" in arrays:
        arrays["positions.embedding"] = arrays["positions.embedding"][:block_size]
    return weights._replace(model=_with(weights.model, block_size=block_size), arrays=arrays)


def check_tokenizer(weights: Weights, tokenizer: Tokenizer) -> None:
    """Raises `CheckpointError` K002 if the weights come with another tokenizer than `tokenizer`."""
    if weights.tokenizer_file is None:
        return
    own = load_tokenizer(weights.tokenizer_file, weights.tokenizer_file.parent.name)
    if own.fingerprint != tokenizer.fingerprint:
        message = f"the data was made with the tokenizer {tokenizer.name}, the weights with {weights.tokenizer_file}"
        raise CheckpointError("K002", message, f"prepare the data with --tokenizer {weights.tokenizer_file}")


def _with(model: Model, **changes: Any) -> Model:
    values = {name: getattr(model, name) for name in model.__dataclass_fields__}
    return Model(**{**values, **changes})
