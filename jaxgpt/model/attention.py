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
    q_BxTxHxC: jax.Array,
    k_BxTxKxC: jax.Array,
    v_BxTxKxC: jax.Array,
    config: Model,
    rngs_B: jax.Array | None,
    documents_BxT: jax.Array | None = None,
) -> jax.Array:
    """Causal attention [B, T, H, C] by cuDNN's kernel or XLA's matrix products, as `config.attention` says.

    With `documents_BxT`, the number of each token's document, a token attends only to tokens of its own document.
    Dropout uses the exact definition, because flash kernels have no dropout that a changing key can drive.
    """
    rate = config.attention_dropout if rngs_B is not None else 0.0
    if rate:
        no_offset = jnp.int32(0)
        keys_and_values = heads_first(k_BxTxKxC), heads_first(v_BxTxKxC)
        return attend_cached(q_BxTxHxC, *keys_and_values, no_offset, rate, rngs_B, documents_BxT)
    # In training cuDNN takes a mask for an even number of tokens only.
    if config.attention == "cudnn" and (documents_BxT is None or q_BxTxHxC.shape[1] % 2 == 0):
        mask_Bx1xTxT = None if documents_BxT is None else same_document(documents_BxT)[:, None]
        return jax.nn.dot_product_attention(
            q_BxTxHxC, k_BxTxKxC, v_BxTxKxC, mask=mask_Bx1xTxT, is_causal=True, implementation="cudnn"
        )
    return causal_attention(q_BxTxHxC, k_BxTxKxC, v_BxTxKxC, documents_BxT)


def same_document(documents_BxT: jax.Array) -> jax.Array:
    """Whether two tokens belong to the same document, [B, T, T]."""
    return documents_BxT[:, :, None] == documents_BxT[:, None, :]


def attend_cached(
    q_BxTxHxC: jax.Array,
    k_BxKxSxC: jax.Array,
    v_BxKxSxC: jax.Array,
    position_offset: jax.Array,
    rate: float = 0.0,
    rngs_B: jax.Array | None = None,
    documents_BxT: jax.Array | None = None,
) -> jax.Array:
    """Attention [B, T, H, C] by its definition, on keys and values in the layout of a cache.

    Query t has the position `position_offset` + t and sees the keys up to it, through a softmax in float32.
    `documents_BxT`, as in `attend`, is for queries and keys of the same tokens (S = T). Batch axes come first, because
    XLA's CPU backend is slow with any other order.
    """
    batch, time, heads, size = q_BxTxHxC.shape
    kv_heads, cached = k_BxKxSxC.shape[1:3]
    q_BxKxGxTxC = q_BxTxHxC.reshape(batch, time, kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bkgtc,bksc->bkgts", q_BxKxGxTxC, k_BxKxSxC, preferred_element_type=jnp.float32)
    mask_xTxS = (jnp.arange(cached)[None, :] <= position_offset + jnp.arange(time)[:, None])[None]
    if documents_BxT is not None:
        mask_xTxS &= same_document(documents_BxT)
    scores = jnp.where(mask_xTxS[:, None, None], scores / math.sqrt(size), -jnp.inf)
    p_BxKxGxTxS = dropout(jax.nn.softmax(scores, axis=-1), rate, rngs_B).astype(v_BxKxSxC.dtype)
    y_BxKxGxTxC = jnp.einsum("bkgts,bksc->bkgtc", p_BxKxGxTxS, v_BxKxSxC)
    return y_BxKxGxTxC.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)
