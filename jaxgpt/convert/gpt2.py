"""GPT-2 in Hugging Face's layout (`GPT2LMHeadModel`), which nanoGPT's checkpoints share but for transposed matrices.

Its linear layers (`Conv1D`) store [inputs, outputs], as Flax does, and fuse queries, keys and values in our order. They
always have biases: zeros stand for those that a model does not have.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.special

from jaxgpt.config import Model
from jaxgpt.convert.weights import Array, Arrays, TensorReader, no_counterpart

MODEL_TYPE = "gpt2"
ARCHITECTURE = "GPT2LMHeadModel"
PREFIX = "transformer."
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
SAME_AS_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers in old files, not weights
REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}


def check(model: Model, name: str) -> None:
    """Raises `ConfigError` C080 if GPT-2 cannot have this network."""
    if model.head_size * model.n_head != model.n_embd:
        heads = f"{model.n_head} heads of {model.head_size} in a width of {model.n_embd}"
        raise no_counterpart(name, heads)


def to_tensors(arrays: Arrays, model: Model) -> dict[str, Array]:
    """Hugging Face's tensors of a model."""
    tensors = {f"{PREFIX}wte.weight": arrays["tokens.embedding"], f"{PREFIX}wpe.weight": arrays["positions.embedding"]}
    for ours, theirs, kind, _ in _modules(model):
        weight = arrays[f"{ours}.{kind}"]
        bias = arrays.get(f"{ours}.bias")
        tensors[f"{PREFIX}{theirs}.weight"] = weight
        tensors[f"{PREFIX}{theirs}.bias"] = np.zeros(weight.shape[-1], np.float32) if bias is None else bias
    if not model.tie_embeddings:
        tensors["lm_head.weight"] = arrays["output"]
    return tensors


def to_arrays(reader: TensorReader, model: Model, *, transposed: bool = False) -> dict[str, Array]:
    """jaxgpt's arrays of the tensors of `reader`. nanoGPT's matrices are `transposed`.

    Raises `DataError` D046 or `ConfigError` C080 if the tensors are not those of `model`.
    """
    prefix = PREFIX if reader.has(f"{PREFIX}wte.weight") else ""  # OpenAI's own upload has none
    arrays = {
        "tokens.embedding": reader.take(f"{prefix}wte.weight", model.vocab_size, model.n_embd),
        "positions.embedding": reader.take(f"{prefix}wpe.weight", model.block_size, model.n_embd),
    }
    for ours, theirs, kind, shape in _modules(model):
        is_turned = transposed and kind == "kernel"
        weight = reader.take(f"{prefix}{theirs}.weight", *(reversed(shape) if is_turned else shape))
        arrays[f"{ours}.{kind}"] = np.ascontiguousarray(weight.T) if is_turned else weight
        if reader.has(f"{prefix}{theirs}.bias"):
            arrays[f"{ours}.bias"] = reader.take(f"{prefix}{theirs}.bias", shape[-1])
    if not model.tie_embeddings:
        arrays["output"] = reader.take("lm_head.weight", model.vocab_size, model.n_embd)
    reader.check_empty((*MASKS, "lm_head.weight") if model.tie_embeddings else MASKS)
    return _without_zero_biases(arrays)


def _without_zero_biases(arrays: dict[str, Array]) -> dict[str, Array]:
    """`arrays` without biases, if all of them are zeros: those of a model that has none."""
    biases = [name for name in arrays if name.endswith(".bias")]
    if any(arrays[name].any() for name in biases):
        return arrays
    return {name: array for name, array in arrays.items() if name not in biases}


def _modules(model: Model) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """Our name, GPT-2's, what our weight is called, and its shape, of each norm and linear layer."""
    width = model.n_embd
    for i in range(model.n_layer):
        ours, theirs = f"blocks.{i}", f"h.{i}"
        yield f"{ours}.attention_norm", f"{theirs}.ln_1", "scale", (width,)
        yield f"{ours}.attention.qkv", f"{theirs}.attn.c_attn", "kernel", (width, 3 * width)
        yield f"{ours}.attention.out", f"{theirs}.attn.c_proj", "kernel", (width, width)
        yield f"{ours}.mlp_norm", f"{theirs}.ln_2", "scale", (width,)
        yield f"{ours}.mlp.up", f"{theirs}.mlp.c_fc", "kernel", (width, model.inner)
        yield f"{ours}.mlp.down", f"{theirs}.mlp.c_proj", "kernel", (model.inner, width)
    yield "norm", "ln_f", "scale", (width,)


def to_config(model: Model) -> dict[str, Any]:
    """The values of `config.json` that describe the network."""
    return {
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "n_inner": model.inner,
        "n_positions": model.block_size,
        "vocab_size": model.vocab_size,
        "activation_function": ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.epsilon,
        "tie_word_embeddings": model.tie_embeddings,
        "embd_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
        "attn_pdrop": model.attention_dropout,
    }


def to_model(values: dict[str, Any], name: str) -> Model:
    """The network of a `config.json`. Raises `ConfigError` C080 for what jaxgpt does not have."""
    for key, required in REQUIRED.items():
        if values.get(key, required) != required:
            raise no_counterpart(name, f"{key} = {values[key]}")
    activation = values.get("activation_function", "gelu_new")
    if activation not in (*SAME_AS_TANH, "gelu"):
        raise no_counterpart(name, f"activation_function = {activation}")
    width = values.get("n_embd", 768)
    inner = values.get("n_inner") or 4 * width
    return Model(
        architecture="gpt2",
        n_layer=values.get("n_layer", 12),
        n_head=values.get("n_head", 12),
        n_embd=width,
        n_inner=None if inner == 4 * width else inner,
        block_size=values.get("n_positions", 1024),
        vocab_size=values.get("vocab_size", 50257),
        bias=True,
        activation="gelu" if activation == "gelu" else "gelu_tanh",
        tie_embeddings=values.get("tie_word_embeddings", True),
        norm_eps=_epsilon(values.get("layer_norm_epsilon", 1e-5)),
    )


def _epsilon(value: float) -> float | None:
    return None if value == 1e-5 else value


def logits(tensors: Arrays, values: dict[str, Any], tokens_T: Array) -> Array:
    """Logits [T, V] that GPT-2 computes of its files: the definition, in numpy, to check an export with.

    `tensors` and `values` are those of `model.safetensors` and `config.json`.
    """
    epsilon, heads = values["layer_norm_epsilon"], values["n_head"]
    activation = _ACTIVATION_FUNCTIONS[values["activation_function"]]

    def linear(x_TxI: Array, name: str) -> Array:
        product: Array = x_TxI @ tensors[f"{PREFIX}{name}.weight"] + tensors[f"{PREFIX}{name}.bias"]
        return product

    def norm(x_TxD: Array, name: str) -> Array:
        centered = x_TxD - x_TxD.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon)
        result: Array = scaled * tensors[f"{PREFIX}{name}.weight"] + tensors[f"{PREFIX}{name}.bias"]
        return result

    x_TxD = tensors[f"{PREFIX}wte.weight"][tokens_T] + tensors[f"{PREFIX}wpe.weight"][: len(tokens_T)]
    for i in range(values["n_layer"]):
        q, k, v = np.split(linear(norm(x_TxD, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=-1)
        q_HxTxC, k_HxTxC, v_HxTxC = (split_heads(array, heads) for array in (q, k, v))
        x_TxD = x_TxD + linear(attend(q_HxTxC, k_HxTxC, v_HxTxC), f"h.{i}.attn.c_proj")
        h_TxF = activation(linear(norm(x_TxD, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"))
        x_TxD = x_TxD + linear(h_TxF, f"h.{i}.mlp.c_proj")
    head_VxD = tensors.get("lm_head.weight", tensors[f"{PREFIX}wte.weight"])
    result: Array = norm(x_TxD, "ln_f") @ head_VxD.T
    return result


def split_heads(x_TxD: Array, heads: int) -> Array:
    """[T, H C] as [H, T, C]."""
    return x_TxD.reshape(len(x_TxD), heads, -1).transpose(1, 0, 2)


def attend(q_HxTxC: Array, k_HxTxC: Array, v_HxTxC: Array) -> Array:
    """Causal attention, [T, H C]."""
    length = q_HxTxC.shape[1]
    scores_HxTxT = q_HxTxC @ k_HxTxC.transpose(0, 2, 1) / np.sqrt(q_HxTxC.shape[-1])
    scores_HxTxT = np.where(np.tri(length, dtype=bool), scores_HxTxT, -np.inf)
    y_HxTxC = scipy.special.softmax(scores_HxTxT, axis=-1) @ v_HxTxC
    result: Array = y_HxTxC.transpose(1, 0, 2).reshape(length, -1)
    return result


def _gelu(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + scipy.special.erf(x / np.sqrt(2)))
    return result


def _gelu_tanh(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return result


_ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {"gelu": _gelu, "gelu_new": _gelu_tanh}
