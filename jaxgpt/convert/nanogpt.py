"""nanoGPT's `ckpt.pt`, read without PyTorch. Nothing in the file runs: its pickle may name only what a state has.

PyTorch's format since 1.6: a zip of one pickle, `data.pkl`, and a file of raw numbers for each storage, `data/KEY`.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.config import Model
from jaxgpt.convert import gpt2
from jaxgpt.convert.weights import Array, TensorReader, Weights
from jaxgpt.errors import ConfigError, DataError

COMPILED = "_orig_mod."  # torch.compile's prefix
TIED_HEAD = "lm_head.weight"
STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16"}
STORAGES |= {"LongStorage": "<i8", "IntStorage": "<i4", "ByteStorage": "u1", "BoolStorage": "?"}
CONTAINERS = {("collections", "OrderedDict"): OrderedDict}
HELP = "a checkpoint that nanoGPT's train.py wrote is needed"


class Storage(NamedTuple):
    """The raw numbers of a tensor."""

    dtype: str


def read_checkpoint(path: Path) -> Weights:
    """The model of a `ckpt.pt`. Raises `DataError` D046 if it is not one of nanoGPT's."""
    state = _load(path)
    try:
        settings = state["model_args"]
        tensors = {name.removeprefix(COMPILED): tensor for name, tensor in state["model"].items()}
        model = Model(
            n_layer=settings["n_layer"],
            n_head=settings["n_head"],
            n_embd=settings["n_embd"],
            block_size=settings["block_size"],
            vocab_size=settings["vocab_size"],
            bias=settings["bias"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError("D046", f"{path} is not a checkpoint of nanoGPT: {error!r}", HELP) from error
    except ConfigError as error:
        raise DataError("D046", f"{path}: {error.message}", HELP) from error
    tensors.pop(TIED_HEAD, None)  # nanoGPT ties it to the embedding
    arrays = gpt2.to_arrays(TensorReader(str(path), tensors), model, transposed=True)
    has_bias = "norm.bias" in arrays
    return Weights(Model(**{**vars(model), "bias": has_bias}), arrays)


def _load(path: Path) -> Any:
    """The object in a file of `torch.save`: dictionaries, numbers, texts and arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise pickle.UnpicklingError("it is compressed, which torch.save never does")
            return _Unpickler(archive, name.removesuffix("data.pkl")).load()
    except OSError as error:
        raise DataError("D046", f"{path} cannot be read: {error.strerror or error}", HELP) from error
    except Exception as error:  # a damaged pickle raises errors of any type
        raise DataError("D046", f"{path} is not a checkpoint of nanoGPT: {error}", HELP) from error


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors as numpy arrays, and refuses every name but those below."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        if module == "torch" and name in STORAGES:
            return Storage(STORAGES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not part of a model")

    def persistent_load(self, pid: Any) -> Array:
        """The storage (kind, type, key, device, count) as a flat array."""
        _, storage, key, _, count = pid
        content = self._archive.read(f"{self._folder}data/{int(key)}")
        return np.frombuffer(content, _dtype(storage.dtype), count=count)


def _dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # a dependency of JAX: numpy has no bfloat16

    return np.dtype(ml_dtypes.bfloat16)


def _rebuild_tensor(flat: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Array:
    """A tensor of a flat storage; `strides` count elements."""
    if math.prod(shape) > len(flat):
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if min((offset, last, *shape, *strides), default=0) < 0 or (0 not in shape and last >= len(flat)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    bytes_per_item = flat.itemsize
    view = np.lib.stride_tricks.as_strided(flat[offset:], shape, [stride * bytes_per_item for stride in strides])
    return view.copy()
