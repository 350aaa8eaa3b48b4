"""The network: GPT-2's block or Qwen3's dense block, in Flax NNX, as a function from token ids to logits.

It knows nothing of losses, optimizers, devices or text. Parameters are float32; the compute type is the config's.
Array names end in their axes:

    B batch   T time   S cached time   D width   H heads   K key/value heads   C head size   F inner   V vocabulary
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt import config
from jaxgpt.errors import ConfigError
from jaxgpt.model import ops

INIT_STD = 0.02
AMPERE = 8.0  # compute capability of the first GPUs whose attention cuDNN writes for bfloat16


class KVCache(NamedTuple):
    """Keys and values of the tokens read so far, per layer [B, K, S, C], of which the first `length` are filled.

    Heads stand before time, as the products of a decoding step want them: nothing is turned round for each token.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    length: jax.Array

    @classmethod
    def create(cls, settings: config.Model, batch: int, size: int) -> "KVCache":
        """An empty cache for `size` tokens of each of `batch` sequences."""
        empty_BxKxSxC = jnp.zeros((batch, settings.kv_heads, size, settings.head_size), compute_dtype(settings))
        layers = (empty_BxKxSxC,) * settings.n_layer
        return cls(layers, layers, jnp.int32(0))

    def grown(self, size: int) -> "KVCache":
        """This cache with room for `size` tokens."""
        more = ((0, 0), (0, 0), (0, size - self.k[0].shape[2]), (0, 0))
        k, v = (tuple(jnp.pad(layer, more) for layer in layers) for layers in (self.k, self.v))
        return KVCache(k, v, self.length)


class Context(NamedTuple):
    """What a block needs beside its input: the place of its first token, its dropout keys, its part of the cache."""

    start: jax.Array
    keys_B: jax.Array | None = None
    k_BxKxSxC: jax.Array | None = None
    v_BxKxSxC: jax.Array | None = None


class GPT(nnx.Module):
    """A decoder-only transformer; `settings.architecture` chooses its block."""

    def __init__(self, settings: config.Model, *, rngs: nnx.Rngs) -> None:
        self.settings = settings
        embed = partial(
            nnx.Embed,
            features=settings.n_embd,
            embedding_init=_normal(INIT_STD),
            dtype=compute_dtype(settings),
            rngs=rngs,
        )
        self.tokens = embed(settings.vocab_size)
        if settings.architecture == "gpt2":
            self.positions = embed(settings.block_size)
        self.blocks = nnx.List([Block(settings, rngs=rngs) for _ in range(settings.n_layer)])
        self.norm = _norm(settings, settings.n_embd, rngs)
        if not settings.tie_embeddings:
            shape = (settings.vocab_size, settings.n_embd)
            self.output = nnx.Param(_normal(INIT_STD)(rngs.params(), shape, jnp.float32))

    def __call__(self, tokens_BxT: jax.Array, *, keys_B: jax.Array | None = None) -> jax.Array:
        """Logits [B, T, V] in float32. Keys, one per sequence, switch dropout on."""
        return self.logits(self.hidden(tokens_BxT, keys_B=keys_B)[0])

    def hidden(
        self, tokens_BxT: jax.Array, *, keys_B: jax.Array | None = None, cache: KVCache | None = None
    ) -> tuple[jax.Array, KVCache | None]:
        """The last block's normed output [B, T, D], and `cache` with these tokens appended to it."""
        start = jnp.int32(0) if cache is None else cache.length
        x_BxTxD, pairs = self._through(tokens_BxT, start, keys_B, cache)
        if cache is not None:
            k_all, v_all = zip(*pairs, strict=True)
            cache = KVCache(k_all, v_all, start + tokens_BxT.shape[1])
        return self.norm(x_BxTxD), cache

    def read(self, tokens_BxT: jax.Array, length: jax.Array) -> tuple[jax.Array, KVCache]:
        """The normed output [B, D] of token `length` - 1, and a new cache that is filled with the first `length`.

        What follows them in `tokens_BxT` is seen by none of them, and is overwritten in the cache before it is read.
        """
        x_BxTxD, pairs = self._through(tokens_BxT, jnp.int32(0), None, None)
        k_all, v_all = zip(*(map(_heads_first, pair) for pair in pairs), strict=True)
        last_Bx1xD = jax.lax.dynamic_slice_in_dim(x_BxTxD, length - 1, 1, axis=1)
        return self.norm(last_Bx1xD)[:, 0], KVCache(k_all, v_all, length)

    def _through(
        self, tokens_BxT: jax.Array, start: jax.Array, keys_B: jax.Array | None, cache: KVCache | None
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """The last block's output, and each block's keys and values: the cache's, or these tokens' without one."""
        x_BxTxD = self._embed(tokens_BxT, start, keys_B)
        pairs = []
        for i, block in enumerate(self.blocks):
            k, v = (None, None) if cache is None else (cache.k[i], cache.v[i])
            context = Context(start, _fold(keys_B, i + 1), k, v)
            x_BxTxD, pair = again(block, self.settings.remat == "blocks")(x_BxTxD, context)
            pairs.append(pair)
        return x_BxTxD, pairs

    def head(self) -> jax.Array:
        """The output matrix [V, D]."""
        return self.tokens.embedding[...] if self.settings.tie_embeddings else self.output[...]

    def logits(self, x_xD: jax.Array) -> jax.Array:
        """Logits [..., V] in float32 of hidden vectors [..., D]."""
        head_VxD = self.head().astype(x_xD.dtype)
        return jnp.einsum("...d,vd->...v", x_xD, head_VxD, preferred_element_type=jnp.float32)

    def _embed(self, tokens_BxT: jax.Array, start: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        # Through float32, so that a frequent token's gradient, a sum over all its places, does not stall in bfloat16.
        table_VxD = self.tokens.embedding[...].astype(jnp.float32)
        x_BxTxD = jnp.take(table_VxD, tokens_BxT, axis=0).astype(compute_dtype(self.settings))
        if self.settings.architecture == "gpt2":
            places_T = start + jnp.arange(tokens_BxT.shape[1])
            x_BxTxD = x_BxTxD + self.positions(places_T)[None]
        return dropout(x_BxTxD, self.settings.dropout, _fold(keys_B, 0))


class Block(nnx.Module):
    """Pre-norm residual block: attention, then the MLP."""

    def __init__(self, settings: config.Model, *, rngs: nnx.Rngs) -> None:
        self.rate, self.remat = settings.dropout, settings.remat
        self.attention_norm = _norm(settings, settings.n_embd, rngs)
        self.attention = Attention(settings, rngs=rngs)
        self.mlp_norm = _norm(settings, settings.n_embd, rngs)
        self.mlp = Mlp(settings, rngs=rngs) if settings.architecture == "gpt2" else GatedMlp(settings, rngs=rngs)

    def __call__(self, x_BxTxD: jax.Array, context: Context) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        keys_B = context.keys_B
        branch_BxTxD, pair = again(self._attend, self.remat == "attention")(x_BxTxD, context)
        x_BxTxD = x_BxTxD + dropout(branch_BxTxD, self.rate, _fold(keys_B, 0))
        return x_BxTxD + dropout(self.mlp(self.mlp_norm(x_BxTxD)), self.rate, _fold(keys_B, 1)), pair

    def _attend(self, x_BxTxD: jax.Array, context: Context) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return self.attention(self.attention_norm(x_BxTxD), context)


class Attention(nnx.Module):
    """Causal self-attention. `modern` adds grouped heads, a norm on each query and key, and rotary positions."""

    def __init__(self, settings: config.Model, *, rngs: nnx.Rngs) -> None:
        self.settings = settings
        heads, head = settings.n_head + 2 * settings.kv_heads, settings.head_size
        self.qkv = _linear(settings, settings.n_embd, heads * head, rngs)
        self.out = _linear(settings, settings.n_head * head, settings.n_embd, rngs, residual=True)
        if settings.architecture == "modern":
            self.q_norm = _norm(settings, head, rngs)
            self.k_norm = _norm(settings, head, rngs)

    def __call__(self, x_BxTxD: jax.Array, context: Context) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        q_BxTxHxC, k_BxTxKxC, v_BxTxKxC = self._project(x_BxTxD, context.start)
        pair = (k_BxTxKxC, v_BxTxKxC)
        if context.k_BxKxSxC is not None and context.v_BxKxSxC is not None:
            pair = (
                _write(context.k_BxKxSxC, k_BxTxKxC, context.start),
                _write(context.v_BxKxSxC, v_BxTxKxC, context.start),
            )
            y_BxTxHxC = _attend_cached(q_BxTxHxC, *pair, context.start)
        else:
            y_BxTxHxC = attend(q_BxTxHxC, k_BxTxKxC, v_BxTxKxC, self.settings, _fold(context.keys_B, 2))
        return self.out(y_BxTxHxC.reshape(*x_BxTxD.shape[:2], -1)), pair

    def _project(self, x_BxTxD: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        settings = self.settings
        sizes = tuple(heads * settings.head_size for heads in (settings.n_head, *(settings.kv_heads,) * 2))
        x_NxD, kernel_DxO = x_BxTxD.reshape(-1, x_BxTxD.shape[-1]), self.qkv.kernel[...].astype(x_BxTxD.dtype)
        parts = ops.split_product(x_NxD, kernel_DxO, sizes)
        if self.qkv.bias is not None:
            biases = ops.split(self.qkv.bias[...].astype(x_BxTxD.dtype), sizes)
            parts = tuple(part_NxO + bias_O[None] for part_NxO, bias_O in zip(parts, biases, strict=True))
        q, k, v = (part.reshape(*x_BxTxD.shape[:2], -1, settings.head_size) for part in parts)
        if settings.architecture == "modern":
            places_T = start + jnp.arange(x_BxTxD.shape[1])
            q = rotate(self.q_norm(q), places_T, settings.rope_theta)
            k = rotate(self.k_norm(k), places_T, settings.rope_theta)
        return q, k, v


class Norm(nnx.Module):
    """`ops.norm` with its parameters, named as Flax's norms name them."""

    def __init__(self, width: int, *, centred: bool, bias: bool, epsilon: float, rngs: nnx.Rngs) -> None:
        self.centred, self.epsilon = centred, epsilon
        self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (width,), jnp.float32))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (width,), jnp.float32)) if bias else None

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        bias_D = None if self.bias is None else self.bias[...]
        return ops.norm(x_xD, self.scale[...], bias_D, self.epsilon, centred=self.centred)


class Mlp(nnx.Module):
    """GPT-2's MLP: widen, GELU, narrow."""

    def __init__(self, settings: config.Model, *, rngs: nnx.Rngs) -> None:
        self.approximate = settings.activation == "gelu_tanh"
        self.up = _linear(settings, settings.n_embd, settings.inner, rngs)
        self.down = _linear(settings, settings.inner, settings.n_embd, rngs, residual=True)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        h_BxTxF = self.up(x_BxTxD)
        h_BxTxF = jax.nn.gelu(h_BxTxF) if self.approximate else ops.gelu(h_BxTxF)
        return self.down(h_BxTxF)


class GatedMlp(nnx.Module):
    """SwiGLU (Shazeer 2020), as Qwen3 has it: down(silu(gate) * up)."""

    def __init__(self, settings: config.Model, *, rngs: nnx.Rngs) -> None:
        self.gate = _linear(settings, settings.n_embd, settings.inner, rngs)
        self.up = _linear(settings, settings.n_embd, settings.inner, rngs)
        self.down = _linear(settings, settings.inner, settings.n_embd, rngs, residual=True)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BxTxD)) * self.up(x_BxTxD))


def attend(
    q_BxTxHxC: jax.Array, k_BxTxKxC: jax.Array, v_BxTxKxC: jax.Array, settings: config.Model, keys_B: jax.Array | None
) -> jax.Array:
    """Causal attention [B, T, H, C]: cuDNN's kernel, or XLA's matrix products.

    Dropout takes the exact way, because flash kernels have none that a changing key can drive.
    """
    rate = settings.attention_dropout if keys_B is not None else 0.0
    if rate:
        return _attend_exactly(q_BxTxHxC, k_BxTxKxC, v_BxTxKxC, jnp.int32(0), rate, keys_B)
    if settings.attention == "cudnn":
        return jax.nn.dot_product_attention(q_BxTxHxC, k_BxTxKxC, v_BxTxKxC, is_causal=True, implementation="cudnn")
    return ops.attend(q_BxTxHxC, k_BxTxKxC, v_BxTxKxC)


def _attend_exactly(
    q_BxTxHxC: jax.Array,
    k_BxSxKxC: jax.Array,
    v_BxSxKxC: jax.Array,
    start: jax.Array,
    rate: float = 0.0,
    keys_B: jax.Array | None = None,
) -> jax.Array:
    """The definition: query t of place start + t sees the keys up to its own place, with a softmax in float32."""
    return _attend_cached(q_BxTxHxC, _heads_first(k_BxSxKxC), _heads_first(v_BxSxKxC), start, rate, keys_B)


def _attend_cached(
    q_BxTxHxC: jax.Array,
    k_BxKxSxC: jax.Array,
    v_BxKxSxC: jax.Array,
    start: jax.Array,
    rate: float = 0.0,
    keys_B: jax.Array | None = None,
) -> jax.Array:
    """`_attend_exactly` on keys and values as a cache holds them.

    G query heads share each key head. Batch axes stand first, because XLA's CPU backend is slow at any other order.
    """
    batch, time, heads, size = q_BxTxHxC.shape
    kv_heads, cached = k_BxKxSxC.shape[1:3]
    q_BxKxGxTxC = q_BxTxHxC.reshape(batch, time, kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bkgtc,bksc->bkgts", q_BxKxGxTxC, k_BxKxSxC, preferred_element_type=jnp.float32)
    seen_TxS = jnp.arange(cached)[None, :] <= start + jnp.arange(time)[:, None]
    scores = jnp.where(seen_TxS[None, None, None], scores / math.sqrt(size), -jnp.inf)
    p_BxKxGxTxS = dropout(jax.nn.softmax(scores, axis=-1), rate, keys_B).astype(v_BxKxSxC.dtype)
    y_BxKxGxTxC = jnp.einsum("bkgts,bksc->bkgtc", p_BxKxGxTxS, v_BxKxSxC)
    return y_BxKxGxTxC.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)


def _heads_first(array_BxSxKxC: jax.Array) -> jax.Array:
    return array_BxSxKxC.transpose(0, 2, 1, 3)


def _write(cached_BxKxSxC: jax.Array, new_BxTxKxC: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(cached_BxKxSxC, _heads_first(new_BxTxKxC), start, 2)


def again(function: Callable[..., Any], when: bool) -> Callable[..., Any]:
    """`function`; if `when`, the backward pass computes it anew from its arguments instead of keeping its insides."""
    return jax.checkpoint(function) if when else function


def rotate(x_BxTxHxC: jax.Array, places_T: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (Su et al. 2021) on the pairs (c, c + C/2), which is Hugging Face's layout."""
    half = x_BxTxHxC.shape[-1] // 2
    frequency_C = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_TxC = places_T.astype(jnp.float32)[:, None] * frequency_C[None, :]
    cos, sin = (f(angle_TxC)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x_BxTxHxC.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxTxHxC.dtype)


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None) -> jax.Array:
    """`x` [B, ...] with a share `rate` of its elements zeroed and the rest scaled up; unchanged without keys.

    A sequence's mask depends on its own key alone, so it is the same in any micro-batch and on any device.
    """
    if keys_B is None or rate == 0:
        return x
    kept = ops.bernoulli(keys_B, 1 - rate, x.shape[1:])
    # Scaled in float32: bfloat16's nearest number to 0.9 would enlarge every branch by 0.2%.
    return jnp.where(kept, x.astype(jnp.float32) / (1 - rate), 0.0).astype(x.dtype)


def compute_dtype(settings: config.Model) -> Any:
    """The JAX type of activations; `auto` must have been resolved."""
    return {"bfloat16": jnp.bfloat16, "float32": jnp.float32}[settings.dtype]


def resolve(settings: config.Model, platform: str, capability: str = "") -> config.Model:
    """`settings` with `auto` replaced by what suits `platform` ("cpu", "gpu") of that CUDA compute capability.

    Raises `ConfigError` C023 where cuDNN's attention is asked for and cannot run.
    """
    dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if platform == "gpu" else "float32"
    obstacle = _cudnn_obstacle(settings, platform, dtype, capability)
    if settings.attention == "cudnn" and obstacle:
        raise ConfigError("C023", f"model.attention = cudnn cannot run here: {obstacle}", "--model.attention auto")
    attention = settings.attention if settings.attention != "auto" else "xla" if obstacle else "cudnn"
    return dataclasses.replace(settings, dtype=dtype, attention=attention)


def _cudnn_obstacle(settings: config.Model, platform: str, dtype: str, capability: str) -> str:
    if platform != "gpu":
        return f"the device is a {platform}"
    if capability and float(capability) < AMPERE:
        return f"it needs a GPU of compute capability {AMPERE:g} (Ampere) or newer, not {capability}"
    if dtype != "bfloat16":
        return f"it needs model.dtype = bfloat16, not {dtype}"
    if settings.head_size % 8 or settings.head_size > 128:
        return f"the head size {settings.head_size} must be a multiple of 8 up to 128"
    return ""


def _normal(std: float) -> Any:
    return nnx.initializers.normal(std)


def _linear(settings: config.Model, inputs: int, outputs: int, rngs: nnx.Rngs, *, residual: bool = False) -> nnx.Linear:
    """nanoGPT's initialisation: N(0, 0.02), and a residual branch's last matrix smaller by sqrt(2 n_layer)."""
    std = INIT_STD / math.sqrt(2 * settings.n_layer) if residual else INIT_STD
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=settings.bias,
        kernel_init=_normal(std),
        dtype=compute_dtype(settings),
        dot_general=ops.dot_general,
        rngs=rngs,
    )


def _norm(settings: config.Model, width: int, rngs: nnx.Rngs) -> "Norm":
    modern = settings.architecture == "modern"
    return Norm(width, centred=not modern, bias=settings.bias and not modern, epsilon=settings.epsilon, rngs=rngs)


def _fold(keys_B: jax.Array | None, number: int) -> jax.Array | None:
    return None if keys_B is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)
