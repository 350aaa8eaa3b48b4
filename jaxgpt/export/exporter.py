"""Exports a model: takes its arrays from JAX, writes them, and compares what the written files compute."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt.convert import gguf, huggingface
from jaxgpt.convert.weights import Array, Weights, trim_vocabulary
from jaxgpt.errors import DataError, StorageError
from jaxgpt.export.model_card import model_card
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import warn
from jaxgpt.training.initial_weights import named_arrays
from jaxgpt.training.loaded_model import LoadedModel
from jaxgpt.training.step import model_graphdef
from jaxgpt.utils.formatting import format_bytes

CHECKED_TOKENS = 128
MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.05}  # of logits, relative to their largest
TANH_WARNING = "llama.cpp computes GPT-2 with the tanh approximation of GELU; this model was trained with the exact one"


def export_hf(run: RunFolder, model: LoadedModel, out: Path, dtype: str = "float32") -> str:
    """Writes `model` of `run` as the Hugging Face folder `out`, and returns what was written, in a sentence.

    Raises `StorageError` S012 if `out` exists, `ConfigError` C080 if no Hugging Face architecture is this network, and
    `DataError` D047 if the written files do not compute the model's logits.
    """
    weights = _take_weights(model)
    with _new_path(out) as temporary:
        temporary.mkdir()
        huggingface.write_model(temporary, weights, model.tokenizer, dtype)
        difference = _check(temporary, model, dtype)
        (temporary / "README.md").write_text(model_card(run, model, weights.model, dtype), encoding="utf-8")
    size = sum(file.stat().st_size for file in out.iterdir())
    return f"{out}: {huggingface.FAMILIES[weights.model.architecture].ARCHITECTURE}, {_describe(size, difference)}"


def export_gguf(run: RunFolder, model: LoadedModel, out: Path, dtype: str = "float32") -> str:
    """Writes `model` as the GGUF file `out`, and returns what was written, in a sentence.

    Raises what `export_hf` raises, and `ConfigError` C082 without the library `gguf`.
    """
    weights = _take_weights(model)
    if weights.model.architecture == "gpt2" and weights.model.activation == "gelu":
        warn(TANH_WARNING)
    with _new_path(out) as temporary:
        gguf.write_model(temporary, weights, model.tokenizer, dtype, name=run.path.name)
        gguf.check_model(temporary, weights, dtype)
    return f"{out}: GGUF, {format_bytes(out.stat().st_size)}; every tensor was read back"


def _take_weights(model: LoadedModel) -> Weights:
    arrays = {name: np.asarray(array) for name, array in named_arrays(model.params).items()}
    return trim_vocabulary(Weights(model.config.model, arrays), model.tokenizer.vocab_size)


@contextmanager
def _new_path(out: Path) -> Iterator[Path]:
    """A path beside `out`, which takes its name when all is written. Raises `StorageError` S012 if `out` exists."""
    if out.exists():
        raise StorageError("S012", f"'{out}' exists", "choose another --out, or remove it")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.rename(out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _check(folder: Path, model: LoadedModel, dtype: str) -> float:
    """Compares the logits of the written files with the model's, on random tokens; the largest difference."""
    size = model.tokenizer.vocab_size
    length = min(CHECKED_TOKENS, model.config.model.block_size)
    tokens_T = np.random.default_rng(0).integers(0, size, length)
    expected_TxV = exact_logits(model, tokens_T)[:, :size]
    difference = float(np.abs(huggingface.logits(folder, tokens_T) - expected_TxV).max())
    if not difference <= MAX_DIFFERENCE[dtype] * max(float(np.abs(expected_TxV).max()), 1.0):
        message = f"the exported model's logits differ from the run's by {difference:.2g}"
        raise DataError("D047", message, "nothing was written; please report this with the run's config.json")
    return difference


def exact_logits(model: LoadedModel, tokens_T: Array) -> Array:
    """Logits [T, V] of the model in float32, without fused kernels."""
    settings = dataclasses.replace(model.config.model, dtype="float32", attention="xla", remat="none")

    @jax.jit
    def compute(params: Any, tokens_1xT: jax.Array) -> jax.Array:
        logits: jax.Array = nnx.merge(model_graphdef(settings), params)(tokens_1xT)[0]
        return logits

    with jax.default_matmul_precision("highest"):
        return np.asarray(compute(model.params, jnp.asarray(tokens_T)[None]))


def _describe(size: int, difference: float) -> str:
    return f"{format_bytes(size)}; its logits differ from the run's by {difference:.1e} at most"
