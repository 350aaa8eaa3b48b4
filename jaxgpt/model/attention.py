"""Causal attention: the choice between cuDNN, batched products and the exact definition.

B batch   T time   S cached tokens   H query heads   K key/value heads   G query heads per key/value head   C head size
"""

import math

import jax
import jax.numpy as jnp

from jaxgpt.config import Model
from jaxgpt.model.kv_cache import heads_first
from jaxgpt.model.ops.causal_attention import causal_attention
from jaxgpt.model.ops.dropout import dropout


def attend(
    q_BxTxHxC: jax.Array, k_BxTxKxC: jax.Array, v_BxTxKxC: jax.Array, config: Model, rngs_B: jax.Array | None
) -> jax.Array:
    """Causal attention [B, T, H, C] by cuDNN's kernel or XLA's matrix products, as `config.attention` says.

    Dropout uses the exact definition, because flash kernels have no dropout that a changing key can drive.
    """
    rate = config.attention_dropout if rngs_B is not None else 0.0
    if rate:
        no_offset = jnp.int32(0)
        return attend_cached(q_BxTxHxC, heads_first(k_BxTxKxC), heads_first(v_BxTxKxC), no_offset, rate, rngs_B)
    if config.attention == "cudnn":
        return jax.nn.dot_product_attention(q_BxTxHxC, k_BxTxKxC, v_BxTxKxC, is_causal=True, implementation="cudnn")
    return causal_attention(q_BxTxHxC, k_BxTxKxC, v_BxTxKxC)


def attend_cached(
    q_BxTxHxC: jax.Array,
    k_BxKxSxC: jax.Array,
    v_BxKxSxC: jax.Array,
    position_offset: jax.Array,
    rate: float = 0.0,
    rngs_B: jax.Array | None = None,
) -> jax.Array:
    """Attention [B, T, H, C] by its definition, on keys and values in the layout of a cache.

    Query t has the position `position_offset` + t and sees the keys up to it, through a softmax in float32. Batch axes
    come first, because XLA's CPU backend is slow with any other order.
    """
    batch, time, heads, size = q_BxTxHxC.shape
    kv_heads, cached = k_BxKxSxC.shape[1:3]
    q_BxKxGxTxC = q_BxTxHxC.reshape(batch, time, kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bkgtc,bksc->bkgts", q_BxKxGxTxC, k_BxKxSxC, preferred_element_type=jnp.float32)
    causal_mask_TxS = jnp.arange(cached)[None, :] <= position_offset + jnp.arange(time)[:, None]
    scores = jnp.where(causal_mask_TxS[None, None, None], scores / math.sqrt(size), -jnp.inf)
    p_BxKxGxTxS = dropout(jax.nn.softmax(scores, axis=-1), rate, rngs_B).astype(v_BxKxSxC.dtype)
    y_BxKxGxTxC = jnp.einsum("bkgts,bksc->bkgtc", p_BxKxGxTxS, v_BxKxSxC)
    return y_BxKxGxTxC.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)
