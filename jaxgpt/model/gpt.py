"""The network in Flax NNX: GPT-2's block or Qwen3's dense block, from token ids to logits.

Parameters are float32. Activations have the config's compute type. Array names end in their axes:

    B batch   T time   S cached time   D width   H heads   K key/value heads   C head size   F inner   V vocabulary
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.config import Model as ModelConfig
from jaxgpt.model import kv_cache
from jaxgpt.model.attention import attend, attend_cached
from jaxgpt.model.backend import compute_dtype
from jaxgpt.model.kv_cache import KVCache
from jaxgpt.model.ops.dropout import dropout
from jaxgpt.model.ops.gelu import gelu
from jaxgpt.model.ops.matmul import dot_general, matmul_split, split
from jaxgpt.model.ops.norm import norm

INIT_STD = 0.02

KeysAndValues = tuple[jax.Array, jax.Array]


class AttentionInputs(NamedTuple):
    """What a block needs besides its activations: the first token's position, dropout keys, and its layer's cache.

    With `documents_BxT`, the number of each token's document, a token attends only to tokens of its own document.
    """

    position_offset: jax.Array
    rngs_B: jax.Array | None = None
    k_BxKxSxC: jax.Array | None = None
    v_BxKxSxC: jax.Array | None = None
    documents_BxT: jax.Array | None = None


class GPT(nnx.Module):
    """A decoder-only transformer; `config.architecture` selects the block."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        embed = partial(
            nnx.Embed,
            features=config.n_embd,
            embedding_init=_normal(INIT_STD),
            dtype=compute_dtype(config),
            rngs=rngs,
        )
        self.tokens = embed(config.vocab_size)
        if config.architecture == "gpt2":
            self.positions = embed(config.block_size)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layer)])
        self.norm = _norm_layer(config, config.n_embd, rngs)
        if not config.tie_embeddings:
            shape = (config.vocab_size, config.n_embd)
            self.output = nnx.Param(_normal(INIT_STD)(rngs.params(), shape, jnp.float32))

    def __call__(self, tokens_BxT: jax.Array, *, rngs_B: jax.Array | None = None) -> jax.Array:
        """Logits [B, T, V] in float32. Random keys, one per sequence, enable dropout."""
        return self.logits(self.hidden(tokens_BxT, rngs_B=rngs_B)[0])

    def hidden(
        self,
        tokens_BxT: jax.Array,
        *,
        rngs_B: jax.Array | None = None,
        cache: KVCache | None = None,
        documents_BxT: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """The final norm's output [B, T, D], and `cache` with these tokens appended.

        `documents_BxT` is for a window of several documents, without a cache (see `AttentionInputs`).
        """
        position_offset = jnp.int32(0) if cache is None else cache.length
        x_BxTxD, keys_and_values = self._run_blocks(tokens_BxT, position_offset, rngs_B, cache, documents_BxT)
        if cache is not None:
            k, v = zip(*keys_and_values, strict=True)
            cache = KVCache(k, v, position_offset + tokens_BxT.shape[1])
        return self.norm(x_BxTxD), cache

    def prefill(self, tokens_BxT: jax.Array, length: jax.Array) -> tuple[jax.Array, KVCache]:
        """The final norm's output [B, D] for token `length` - 1, and a new cache filled with the first `length` tokens.

        The tokens after them are padding: causal attention hides them, and the cache overwrites them before use.
        """
        x_BxTxD, keys_and_values = self._run_blocks(tokens_BxT, jnp.int32(0), None, None)
        k, v = zip(*(map(kv_cache.heads_first, pair) for pair in keys_and_values), strict=True)
        last_Bx1xD = jax.lax.dynamic_slice_in_dim(x_BxTxD, length - 1, 1, axis=1)
        return self.norm(last_Bx1xD)[:, 0], KVCache(k, v, length)

    def _run_blocks(
        self,
        tokens_BxT: jax.Array,
        position_offset: jax.Array,
        rngs_B: jax.Array | None,
        cache: KVCache | None,
        documents_BxT: jax.Array | None = None,
    ) -> tuple[jax.Array, list[KeysAndValues]]:
        """The last block's output, and each block's keys and values: those of the cache, or those of these tokens."""
        x_BxTxD = self._embed(tokens_BxT, position_offset, rngs_B)
        keys_and_values = []
        for i, block in enumerate(self.blocks):
            k, v = (None, None) if cache is None else (cache.k[i], cache.v[i])
            inputs = AttentionInputs(position_offset, _fold_in(rngs_B, i + 1), k, v, documents_BxT)
            x_BxTxD, pair = maybe_remat(block, self.config.remat == "blocks")(x_BxTxD, inputs)
            keys_and_values.append(pair)
        return x_BxTxD, keys_and_values

    def lm_head_weight(self) -> jax.Array:
        """The output matrix [V, D]."""
        return self.tokens.embedding[...] if self.config.tie_embeddings else self.output[...]

    def logits(self, x_xD: jax.Array) -> jax.Array:
        """Logits [..., V] in float32 of hidden vectors [..., D]."""
        head_VxD = self.lm_head_weight().astype(x_xD.dtype)
        return jnp.einsum("...d,vd->...v", x_xD, head_VxD, preferred_element_type=jnp.float32)

    def _embed(self, tokens_BxT: jax.Array, position_offset: jax.Array, rngs_B: jax.Array | None) -> jax.Array:
        # In float32, because the gradient of a frequent token, a sum over its positions, would stall in bfloat16.
        table_VxD = self.tokens.embedding[...].astype(jnp.float32)
        x_BxTxD = jnp.take(table_VxD, tokens_BxT, axis=0).astype(compute_dtype(self.config))
        if self.config.architecture == "gpt2":
            positions_T = position_offset + jnp.arange(tokens_BxT.shape[1])
            x_BxTxD = x_BxTxD + self.positions(positions_T)[None]
        return dropout(x_BxTxD, self.config.dropout, _fold_in(rngs_B, 0))


class Block(nnx.Module):
    """Pre-norm residual block: attention, then the MLP."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.attention_norm = _norm_layer(config, config.n_embd, rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = _norm_layer(config, config.n_embd, rngs)
        self.mlp = MLP(config, rngs=rngs) if config.architecture == "gpt2" else GatedMLP(config, rngs=rngs)

    def __call__(self, x_BxTxD: jax.Array, inputs: AttentionInputs) -> tuple[jax.Array, KeysAndValues]:
        rate = self.config.dropout
        attention_branch = maybe_remat(self._attention_branch, self.config.remat == "attention")
        attention_BxTxD, keys_and_values = attention_branch(x_BxTxD, inputs)
        x_BxTxD = x_BxTxD + dropout(attention_BxTxD, rate, _fold_in(inputs.rngs_B, 0))
        x_BxTxD = x_BxTxD + dropout(self.mlp(self.mlp_norm(x_BxTxD)), rate, _fold_in(inputs.rngs_B, 1))
        return x_BxTxD, keys_and_values

    def _attention_branch(self, x_BxTxD: jax.Array, inputs: AttentionInputs) -> tuple[jax.Array, KeysAndValues]:
        return self.attention(self.attention_norm(x_BxTxD), inputs)


class Attention(nnx.Module):
    """Causal self-attention. `modern` adds grouped heads, a norm on each query and key, and RoPE."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        heads = config.n_head + 2 * config.kv_heads
        self.qkv = _linear(config, config.n_embd, heads * config.head_size, rngs)
        self.out = _linear(config, config.n_head * config.head_size, config.n_embd, rngs, residual=True)
        if config.architecture == "modern":
            self.q_norm = _norm_layer(config, config.head_size, rngs)
            self.k_norm = _norm_layer(config, config.head_size, rngs)

    def __call__(self, x_BxTxD: jax.Array, inputs: AttentionInputs) -> tuple[jax.Array, KeysAndValues]:
        q_BxTxHxC, k_BxTxKxC, v_BxTxKxC = self._project(x_BxTxD, inputs.position_offset)
        keys_and_values = (k_BxTxKxC, v_BxTxKxC)
        if inputs.k_BxKxSxC is not None and inputs.v_BxKxSxC is not None:
            keys_and_values = (
                kv_cache.write(inputs.k_BxKxSxC, k_BxTxKxC, inputs.position_offset),
                kv_cache.write(inputs.v_BxKxSxC, v_BxTxKxC, inputs.position_offset),
            )
            y_BxTxHxC = attend_cached(q_BxTxHxC, *keys_and_values, inputs.position_offset)
        else:
            rngs_B = _fold_in(inputs.rngs_B, 2)
            y_BxTxHxC = attend(q_BxTxHxC, k_BxTxKxC, v_BxTxKxC, self.config, rngs_B, inputs.documents_BxT)
        return self.out(y_BxTxHxC.reshape(*x_BxTxD.shape[:2], -1)), keys_and_values

    def _project(self, x_BxTxD: jax.Array, position_offset: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, H, C], keys and values [B, T, K, C]."""
        config = self.config
        sizes = tuple(heads * config.head_size for heads in (config.n_head, config.kv_heads, config.kv_heads))
        x_NxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
        outputs = matmul_split(x_NxD, self.qkv.kernel[...].astype(x_BxTxD.dtype), sizes)
        if self.qkv.bias is not None:
            biases = split(self.qkv.bias[...].astype(x_BxTxD.dtype), sizes)
            outputs = tuple(y_NxO + bias_O[None] for y_NxO, bias_O in zip(outputs, biases, strict=True))
        q, k, v = (y_NxO.reshape(*x_BxTxD.shape[:2], -1, config.head_size) for y_NxO in outputs)
        if config.architecture == "modern":
            positions_T = position_offset + jnp.arange(x_BxTxD.shape[1])
            q = apply_rope(self.q_norm(q), positions_T, config.rope_theta)
            k = apply_rope(self.k_norm(k), positions_T, config.rope_theta)
        return q, k, v


class Norm(nnx.Module):
    """LayerNorm, or RMSNorm without `subtract_mean`, with the parameter names of Flax's norms."""

    def __init__(self, width: int, *, subtract_mean: bool, bias: bool, epsilon: float, rngs: nnx.Rngs) -> None:
        self.subtract_mean = subtract_mean
        self.epsilon = epsilon
        self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (width,), jnp.float32))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (width,), jnp.float32)) if bias else None

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        bias_D = None if self.bias is None else self.bias[...]
        return norm(x_xD, self.scale[...], bias_D, self.epsilon, subtract_mean=self.subtract_mean)


class MLP(nnx.Module):
    """GPT-2's MLP: up, GELU, down."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.tanh_gelu = config.activation == "gelu_tanh"
        self.up = _linear(config, config.n_embd, config.inner, rngs)
        self.down = _linear(config, config.inner, config.n_embd, rngs, residual=True)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        h_BxTxF = self.up(x_BxTxD)
        h_BxTxF = jax.nn.gelu(h_BxTxF) if self.tanh_gelu else gelu(h_BxTxF)
        return self.down(h_BxTxF)


class GatedMLP(nnx.Module):
    """SwiGLU (Shazeer 2020), as in Qwen3: down(silu(gate) * up)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.gate = _linear(config, config.n_embd, config.inner, rngs)
        self.up = _linear(config, config.n_embd, config.inner, rngs)
        self.down = _linear(config, config.inner, config.n_embd, rngs, residual=True)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BxTxD)) * self.up(x_BxTxD))


def apply_rope(x_BxTxHxC: jax.Array, positions_T: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (Su et al. 2021) of the pairs (c, c + C/2), which is Hugging Face's layout."""
    half = x_BxTxHxC.shape[-1] // 2
    frequency_C = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_TxC = positions_T.astype(jnp.float32)[:, None] * frequency_C[None, :]
    cos, sin = (f(angle_TxC)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x_BxTxHxC.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxTxHxC.dtype)


def maybe_remat(function: Callable[..., Any], enabled: bool) -> Callable[..., Any]:
    """`function`; if `enabled`, the backward pass recomputes its intermediate values instead of keeping them."""
    return jax.checkpoint(function) if enabled else function


def _normal(std: float) -> Any:
    return nnx.initializers.normal(std)


def _linear(config: ModelConfig, inputs: int, outputs: int, rngs: nnx.Rngs, *, residual: bool = False) -> nnx.Linear:
    """A linear layer with nanoGPT's initialization: N(0, 0.02), divided by sqrt(2 n_layer) at the end of a branch."""
    std = INIT_STD / math.sqrt(2 * config.n_layer) if residual else INIT_STD
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=config.bias,
        kernel_init=_normal(std),
        dtype=compute_dtype(config),
        dot_general=dot_general,
        rngs=rngs,
    )


def _norm_layer(config: ModelConfig, width: int, rngs: nnx.Rngs) -> Norm:
    modern = config.architecture == "modern"
    bias = config.bias and not modern
    return Norm(width, subtract_mean=not modern, bias=bias, epsilon=config.epsilon, rngs=rngs)


def _fold_in(rngs_B: jax.Array | None, number: int) -> jax.Array | None:
    return None if rngs_B is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(rngs_B)
