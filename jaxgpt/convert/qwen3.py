"""Qwen3's dense models in Hugging Face's layout (`Qwen3ForCausalLM`): the block that `architecture = modern` has.

Its matrices are [outputs, inputs], so each is transposed, and queries, keys and values are three.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.special

from jaxgpt.config import Model
from jaxgpt.convert.gpt2 import attend, split_heads
from jaxgpt.convert.weights import Array, Arrays, TensorReader, no_counterpart

MODEL_TYPE = "qwen3"
ARCHITECTURE = "Qwen3ForCausalLM"
REQUIRED = {"attention_bias": False, "use_sliding_window": False, "hidden_act": "silu"}
QKV = ("q_proj", "k_proj", "v_proj")


def check(model: Model, name: str) -> None:
    """Every network with this block has a counterpart."""
    del model, name


def to_tensors(arrays: Arrays, model: Model) -> dict[str, Array]:
    """Hugging Face's tensors of a model."""
    tensors = {"model.embed_tokens.weight": arrays["tokens.embedding"]}
    for ours, theirs in _norms(model):
        tensors[f"{theirs}.weight"] = arrays[f"{ours}.scale"]
    for ours, theirs, _ in _linears(model):
        tensors[f"{theirs}.weight"] = np.ascontiguousarray(arrays[f"{ours}.kernel"].T)
    ends = np.cumsum(_qkv_widths(model))[:2]
    for i in range(model.n_layer):
        matrices = np.split(arrays[f"blocks.{i}.attention.qkv.kernel"], ends, axis=1)
        for projection, matrix in zip(QKV, matrices):
            tensors[f"model.layers.{i}.self_attn.{projection}.weight"] = np.ascontiguousarray(matrix.T)
    if not model.tie_embeddings:
        tensors["lm_head.weight"] = arrays["output"]
    return tensors


def to_arrays(reader: TensorReader, model: Model) -> dict[str, Array]:
    """jaxgpt's arrays. Raises `DataError` D046 or `ConfigError` C080 if the tensors are not those of `model`."""
    arrays = {"tokens.embedding": reader.take("model.embed_tokens.weight", model.vocab_size, model.n_embd)}
    for ours, theirs in _norms(model):
        size = model.head_size if ours.endswith(("q_norm", "k_norm")) else model.n_embd
        arrays[f"{ours}.scale"] = reader.take(f"{theirs}.weight", size)
    for ours, theirs, (inputs, outputs) in _linears(model):
        arrays[f"{ours}.kernel"] = np.ascontiguousarray(reader.take(f"{theirs}.weight", outputs, inputs).T)
    for i in range(model.n_layer):
        matrices = [
            reader.take(f"model.layers.{i}.self_attn.{projection}.weight", width, model.n_embd).T
            for projection, width in zip(QKV, _qkv_widths(model))
        ]
        arrays[f"blocks.{i}.attention.qkv.kernel"] = np.concatenate(matrices, axis=1)
    if not model.tie_embeddings:
        arrays["output"] = reader.take("lm_head.weight", model.vocab_size, model.n_embd)
    reader.check_empty(["lm_head.weight"] if model.tie_embeddings else [])
    return arrays


def _norms(model: Model) -> Iterator[tuple[str, str]]:
    """Our name and Qwen3's of each norm."""
    for i in range(model.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield f"{ours}.attention_norm", f"{theirs}.input_layernorm"
        yield f"{ours}.attention.q_norm", f"{theirs}.self_attn.q_norm"
        yield f"{ours}.attention.k_norm", f"{theirs}.self_attn.k_norm"
        yield f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm"
    yield "norm", "model.norm"


def _linears(model: Model) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Our name, Qwen3's, and [inputs, outputs] of each matrix but those of queries, keys and values."""
    width, inner = model.n_embd, model.inner
    for i in range(model.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield f"{ours}.attention.out", f"{theirs}.self_attn.o_proj", (model.n_head * model.head_size, width)
        yield f"{ours}.mlp.gate", f"{theirs}.mlp.gate_proj", (width, inner)
        yield f"{ours}.mlp.up", f"{theirs}.mlp.up_proj", (width, inner)
        yield f"{ours}.mlp.down", f"{theirs}.mlp.down_proj", (inner, width)


def _qkv_widths(model: Model) -> list[int]:
    return [heads * model.head_size for heads in (model.n_head, model.kv_heads, model.kv_heads)]


def to_config(model: Model) -> dict[str, Any]:
    """The values of `config.json` that describe the network; RoPE's base in both of the spellings that are read."""
    return {
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.kv_heads,
        "hidden_size": model.n_embd,
        "head_dim": model.head_size,
        "intermediate_size": model.inner,
        "max_position_embeddings": model.block_size,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.epsilon,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        "attention_dropout": model.attention_dropout,
        **REQUIRED,
    }


def to_model(values: dict[str, Any], name: str) -> Model:
    """The network of a `config.json`. Raises `ConfigError` C080 for what jaxgpt does not have."""
    for key, required in REQUIRED.items():
        if values.get(key, required) != required:
            raise no_counterpart(name, f"{key} = {values[key]}")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise no_counterpart(name, f"rope_type = {rope.get('rope_type', rope.get('type'))}")
    heads, width = values["num_attention_heads"], values["hidden_size"]
    kv_heads = values.get("num_key_value_heads") or heads
    head_dim = values.get("head_dim") or width // heads
    return Model(
        architecture="modern",
        n_layer=values["num_hidden_layers"],
        n_head=heads,
        n_kv_head=None if kv_heads == heads else kv_heads,
        n_embd=width,
        head_dim=None if head_dim * heads == width else head_dim,
        n_inner=values["intermediate_size"],
        block_size=values["max_position_embeddings"],
        vocab_size=values["vocab_size"],
        rope_theta=float(rope.get("rope_theta") or values.get("rope_theta", 10_000.0)),
        tie_embeddings=values.get("tie_word_embeddings", False),
        norm_eps=_epsilon(values.get("rms_norm_eps", 1e-6)),
    )


def _epsilon(value: float) -> float | None:
    return None if value == 1e-6 else value


def logits(tensors: Arrays, values: dict[str, Any], tokens_T: Array) -> Array:
    """Logits [T, V] that Qwen3 computes of its files: the definition, in numpy, to check an export with."""
    epsilon, heads, kv_heads = values["rms_norm_eps"], values["num_attention_heads"], values["num_key_value_heads"]
    cos_TxC, sin_TxC = _rotation(len(tokens_T), values["head_dim"], values["rope_parameters"]["rope_theta"])

    def linear(x_TxI: Array, name: str) -> Array:
        product: Array = x_TxI @ tensors[f"{name}.weight"].T
        return product

    def norm(x: Array, name: str) -> Array:
        result: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * tensors[f"{name}.weight"]
        return result

    def rotate(x_HxTxC: Array) -> Array:
        first, second = np.split(x_HxTxC, 2, axis=-1)
        turned: Array = x_HxTxC * cos_TxC + np.concatenate([-second, first], axis=-1) * sin_TxC
        return turned

    x_TxD = tensors["model.embed_tokens.weight"][tokens_T]
    for i in range(values["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h_TxD = norm(x_TxD, f"{layer}.input_layernorm")
        counts = (heads, kv_heads, kv_heads)
        q, k, v = (
            split_heads(linear(h_TxD, f"{layer}.self_attn.{projection}"), count)
            for projection, count in zip(QKV, counts)
        )
        q = rotate(norm(q, f"{layer}.self_attn.q_norm"))
        k = rotate(norm(k, f"{layer}.self_attn.k_norm"))
        k, v = (np.repeat(array, heads // kv_heads, axis=0) for array in (k, v))
        x_TxD = x_TxD + linear(attend(q, k, v), f"{layer}.self_attn.o_proj")
        h_TxD = norm(x_TxD, f"{layer}.post_attention_layernorm")
        gate_TxF = linear(h_TxD, f"{layer}.mlp.gate_proj")
        h_TxF = gate_TxF * scipy.special.expit(gate_TxF) * linear(h_TxD, f"{layer}.mlp.up_proj")
        x_TxD = x_TxD + linear(h_TxF, f"{layer}.mlp.down_proj")
    head_VxD = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    result: Array = norm(x_TxD, "model.norm") @ head_VxD.T
    return result


def _rotation(length: int, head_size: int, theta: float) -> tuple[Array, Array]:
    """Cosine and sine [T, C] of RoPE's angles, each frequency in both halves."""
    frequency_C = theta ** (-np.arange(0, head_size, 2) / head_size)
    angle_TxC = np.tile(np.arange(length)[:, None] * frequency_C, 2)
    return np.cos(angle_TxC).astype(np.float32), np.sin(angle_TxC).astype(np.float32)
