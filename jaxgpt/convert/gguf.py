"""GGUF files for llama.cpp, written with the library `gguf` (the extra `gguf`)."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert import huggingface
from jaxgpt.convert.weights import Array, Weights, no_counterpart
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import ConfigError, DataError

PRE_TOKENIZER = "gpt-2"  # llama.cpp's name of the pattern that splits text before the merges


def write_model(path: Path, weights: Weights, tokenizer: Tokenizer, dtype: str, name: str) -> None:
    """Writes a GGUF file. Raises `ConfigError` C080 if GGUF cannot have this model, C082 without the library."""
    library = _library()
    model = weights.model
    family = huggingface.FAMILIES[model.architecture]
    family.check(model, f"model.architecture = {model.architecture}")
    writer = library.GGUFWriter(path, family.MODEL_TYPE)
    writer.add_name(name)
    writer.add_context_length(model.block_size)
    writer.add_embedding_length(model.n_embd)
    writer.add_block_count(model.n_layer)
    writer.add_feed_forward_length(model.inner)
    writer.add_head_count(model.n_head)
    if model.architecture == "gpt2":
        writer.add_layer_norm_eps(model.epsilon)
    else:
        writer.add_head_count_kv(model.kv_heads)
        writer.add_key_length(model.head_size)
        writer.add_value_length(model.head_size)
        writer.add_layer_norm_rms_eps(model.epsilon)
        writer.add_rope_freq_base(model.rope_theta)
    writer.add_file_type(_file_type(library, dtype))
    _add_tokenizer(library, writer, tokenizer)
    for tensor_name, tensor in _tensors(library, weights, dtype).items():
        raw_dtype = library.GGMLQuantizationType.BF16 if tensor.dtype == np.uint8 else None
        writer.add_tensor(tensor_name, tensor, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_model(path: Path, weights: Weights, dtype: str) -> None:
    """Reads the file back. Raises `DataError` D047 if a tensor differs from the model's."""
    library = _library()
    read = {tensor.name: tensor for tensor in library.GGUFReader(path).tensors}
    expected = _tensors(library, weights, dtype)
    for name, tensor in expected.items():
        if name not in read or read[name].data.tobytes() != tensor.tobytes():
            raise DataError("D047", f"{path}: the tensor {name} is not the model's", "nothing was written")


def _tensors(library: Any, weights: Weights, dtype: str) -> dict[str, Array]:
    """The tensors by GGUF's names; matrices are [outputs, inputs], vectors always float32."""
    model = weights.model
    architecture = library.MODEL_ARCH.GPT2 if model.architecture == "gpt2" else library.MODEL_ARCH.QWEN3
    names = library.get_tensor_name_map(architecture, model.n_layer)
    tensors = {}
    for name, tensor in huggingface.FAMILIES[model.architecture].to_tensors(weights.arrays, model).items():
        is_conv = model.architecture == "gpt2" and tensor.ndim == 2 and ".h." in name
        matrix = np.ascontiguousarray(tensor.T if is_conv else tensor)
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        tensors[gguf_name] = _cast(library, matrix, dtype)
    return tensors


def _cast(library: Any, tensor: Array, dtype: str) -> Array:
    if dtype == "float32" or tensor.ndim == 1:
        return tensor
    quantized: Array = library.quants.quantize(tensor, library.GGMLQuantizationType.BF16)
    return quantized


def _file_type(library: Any, dtype: str) -> Any:
    return library.LlamaFileType.MOSTLY_BF16 if dtype == "bfloat16" else library.LlamaFileType.ALL_F32


def _add_tokenizer(library: Any, writer: Any, tokenizer: Tokenizer) -> None:
    """The vocabulary and merges of a byte-level BPE. Raises `ConfigError` C080 for another tokenizer."""
    described = json.loads(tokenizer.to_json())
    model = described["model"]
    is_byte_level = (described.get("pre_tokenizer") or {}).get("type") == "ByteLevel"
    if model.get("type", "BPE") != "BPE" or not is_byte_level:
        raise no_counterpart(f"tokenizer '{tokenizer.name}'", "a vocabulary other than byte-level BPE")
    special = {token["id"]: token["content"] for token in described["added_tokens"]}
    vocabulary = {number: token for token, number in model["vocab"].items()} | special
    tokens = [vocabulary.get(number, f"[PAD{number}]") for number in range(tokenizer.vocab_size)]
    kinds = [library.TokenType.CONTROL if i in special else library.TokenType.NORMAL for i in range(len(tokens))]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    if tokenizer.eot is not None:
        writer.add_bos_token_id(tokenizer.eot)
        writer.add_eos_token_id(tokenizer.eot)
        writer.add_pad_token_id(tokenizer.eot)


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ConfigError("C082", "GGUF files need the library gguf", "pip install 'jaxgpt[gguf]'") from error
