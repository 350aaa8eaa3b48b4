"""Hugging Face model folders, written and read with numpy and safetensors alone."""

import errno
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxgpt.config import Model
from jaxgpt.convert import gpt2, qwen3
from jaxgpt.convert.weights import Array, NoCounterpartError, TensorReader, Weights, no_counterpart
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.utils.files import read_json

FAMILIES: dict[str, ModuleType] = {"gpt2": gpt2, "modern": qwen3}  # by model.architecture
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
FETCH = "fetch or save the model again"
# Files of a model repository that are needed to read its model.
PATTERNS = [CONFIG, TOKENIZER, "*.safetensors", INDEX]


def write_model(folder: Path, weights: Weights, tokenizer: Tokenizer, dtype: str) -> None:
    """Writes the model and its tokenizer as Hugging Face's libraries read them; `folder` exists.

    `dtype` is "float32" or "bfloat16". Raises `ConfigError` C080 if no Hugging Face architecture has this network.
    """
    model = weights.model
    family = FAMILIES[model.architecture]
    family.check(model, f"model.architecture = {model.architecture}")
    tensors = family.to_tensors(weights.arrays, model)
    save_file(_cast(tensors, dtype), folder / WEIGHTS, metadata={"format": "pt"})
    ids = {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot, "pad_token_id": tokenizer.eot}
    described = {"architectures": [family.ARCHITECTURE], "model_type": family.MODEL_TYPE, "dtype": dtype, **ids}
    _write_json(folder / CONFIG, {**described, "torch_dtype": dtype, **family.to_config(model)})
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets only the owner read
    _write_json(folder / GENERATION_CONFIG, ids)
    _write_json(folder / TOKENIZER_CONFIG, _tokenizer_config(tokenizer, model.block_size))
    tokenizer.save(folder / TOKENIZER)


def _tokenizer_config(tokenizer: Tokenizer, length: int) -> dict[str, Any]:
    """The tokenizer's settings. Special tokens in a text are ordinary characters, as in training."""
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.eot is not None:
        text = tokenizer.decode([tokenizer.eot])
        values |= {"bos_token": text, "eos_token": text, "pad_token": text}
    return values


def _cast(tensors: dict[str, Array], dtype: str) -> dict[str, Array]:
    import ml_dtypes  # a dependency of JAX: numpy has no bfloat16

    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    return {name: np.ascontiguousarray(tensor.astype(target)) for name, tensor in tensors.items()}


def read_model(folder: Path) -> Model:
    """The network that `config.json` describes. Raises `DataError` D046 or `ConfigError` C080."""
    return _describe(folder)[1]


def read_weights(folder: Path) -> Weights:
    """The model in a folder. Raises `DataError` D046 if it cannot be read, `ConfigError` C080 if it does not fit."""
    family, model = _describe(folder)
    reader = TensorReader(str(folder), read_tensors(folder))
    arrays = family.to_arrays(reader, model)
    if model.architecture == "gpt2" and "norm.bias" not in arrays:
        model = Model(**{**vars(model), "bias": False})
    tokenizer_file = folder / TOKENIZER
    return Weights(model, arrays, tokenizer_file if os.path.lexists(tokenizer_file) else None)


def read_tensors(folder: Path) -> dict[str, Array]:
    """The tensors of a folder, of one file or of several with an index, as they are stored."""
    import ml_dtypes  # noqa: F401 - registers numpy's bfloat16, which safetensors looks up by name

    try:
        index = read_json(folder / INDEX) if os.path.lexists(folder / INDEX) else {}
        names = sorted(set(index.get("weight_map", {"": WEIGHTS}).values()))
        tensors: dict[str, Array] = {}
        for name in names:
            file = folder / Path(name).name  # no index reaches outside the folder
            if file.exists() and not file.is_file():  # safetensors would wait for a pipe
                raise OSError(errno.EINVAL, "it is not a regular file", str(file))
            tensors |= load_file(file)
    except FileNotFoundError as error:
        help = "save it again with save_pretrained(..., safe_serialization=True)"
        raise DataError("D046", f"{folder} has no {WEIGHTS}", help) from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise DataError("D046", f"the weights in {folder} cannot be read: {error}", FETCH) from error
    return tensors


def read_config(folder: Path) -> dict[str, Any]:
    """The values of `config.json`. Raises `DataError` D046 if it cannot be read."""
    path = folder / CONFIG
    try:
        values = read_json(path)
    except FileNotFoundError as error:
        raise DataError("D046", f"{folder} is not a model: it has no {CONFIG}", FETCH) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("D046", f"{path} cannot be read: {error}", FETCH) from error
    if not isinstance(values, dict):
        raise DataError("D046", f"{path} does not hold a JSON object", FETCH)
    return values


def _describe(folder: Path) -> tuple[ModuleType, Model]:
    values = read_config(folder)
    kind = values.get("model_type")
    family = next((family for family in FAMILIES.values() if kind == family.MODEL_TYPE), None)
    if family is None:
        raise no_counterpart(str(folder), f"model_type = {kind}")
    try:
        model: Model = family.to_model(values, str(folder))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError("D046", f"{folder / CONFIG} does not describe a {kind} model: {error!r}", FETCH) from error
    except NoCounterpartError:
        raise
    except ConfigError as error:
        raise DataError("D046", f"{folder / CONFIG}: {error.message}", FETCH) from error
    return family, model


def logits(folder: Path, tokens_T: Array) -> Array:
    """Logits [T, V] of the model in a folder that `write_model` has written, computed in numpy from its files alone."""
    family, _ = _describe(folder)
    tensors = {name: tensor.astype(np.float32) for name, tensor in read_tensors(folder).items()}
    result: Array = family.logits(tensors, read_config(folder), tokens_T)
    return result


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
