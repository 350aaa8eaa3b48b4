"""Causal attention as batched matrix products, with a custom VJP.

B batch   T time   H query heads   K key/value heads   C head size
M batch times key/value heads   G query heads per key/value head   R rows: G times the queries of a chunk   S keys
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.config.attention import QUERY_CHUNKS

Residuals = tuple[Any, ...]


def causal_attention(
    q_BxTxHxC: jax.Array, k_BxTxKxC: jax.Array, v_BxTxKxC: jax.Array, documents_BxT: jax.Array | None = None
) -> jax.Array:
    """Causal attention [B, T, H, C], computed for one chunk of queries at a time.

    A chunk sees no keys after its last query, so chunks save nearly half of the work and memory. The G query heads that
    share a key/value head are G times as many rows of queries. With `documents_BxT`, the number of each token's
    document, a query sees the keys of its own document only.
    """
    batch, time, heads, size = q_BxTxHxC.shape
    kv_heads = k_BxTxKxC.shape[2]
    q_MxGxTxC = q_BxTxHxC.reshape(batch, time, kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
    k_MxTxC, v_MxTxC = (array.transpose(0, 2, 1, 3).reshape(-1, time, size) for array in (k_BxTxKxC, v_BxTxKxC))
    documents_MxT = None if documents_BxT is None else jnp.repeat(documents_BxT, kv_heads, axis=0)
    y_MxGxTxC = _attend(q_MxGxTxC.reshape(batch * kv_heads, -1, time, size), k_MxTxC, v_MxTxC, documents_MxT)
    y_BxKxGxTxC = y_MxGxTxC.reshape(batch, kv_heads, -1, time, size)
    return y_BxKxGxTxC.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)


@jax.custom_vjp
def _attend(q_MxGxTxC: jax.Array, k_MxTxC: jax.Array, v_MxTxC: jax.Array, documents_MxT: jax.Array | None) -> jax.Array:
    return _attend_forward(q_MxGxTxC, k_MxTxC, v_MxTxC, documents_MxT)[0]


def _attend_forward(
    q_MxGxTxC: jax.Array, k_MxTxC: jax.Array, v_MxTxC: jax.Array, documents_MxT: jax.Array | None
) -> tuple[jax.Array, Residuals]:
    outputs, probs = [], []
    for start, end in _query_chunks(k_MxTxC.shape[1]):
        q_MxRxC = _stack_heads(q_MxGxTxC[:, :, start:end])
        documents_MxS = None if documents_MxT is None else documents_MxT[:, :end]
        p_MxRxS = _attention_probs(q_MxRxC, k_MxTxC[:, :end], start, documents_MxS).astype(v_MxTxC.dtype)
        outputs.append(_batched_matmul(p_MxRxS, v_MxTxC[:, :end], 2, 1).reshape(q_MxGxTxC[:, :, start:end].shape))
        probs.append(p_MxRxS)
    y_MxGxTxC = jnp.concatenate(outputs, axis=2)
    return y_MxGxTxC, (q_MxGxTxC, k_MxTxC, v_MxTxC, y_MxGxTxC, probs)


def _attend_backward(residuals: Residuals, dy_MxGxTxC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_MxGxTxC, k_MxTxC, v_MxTxC, y_MxGxTxC, probs = residuals
    # The mean of dp under p, which the gradient of the softmax subtracts.
    mean_dp_MxGxT = jnp.sum(dy_MxGxTxC.astype(jnp.float32) * y_MxGxTxC, axis=-1)
    dq_chunks = []
    dk_MxTxC = jnp.zeros(k_MxTxC.shape, jnp.float32)
    dv_MxTxC = jnp.zeros(k_MxTxC.shape, jnp.float32)
    for (start, end), p_MxRxS in zip(_query_chunks(k_MxTxC.shape[1]), probs, strict=True):
        q_MxRxC = _stack_heads(q_MxGxTxC[:, :, start:end])
        dy_MxRxC = _stack_heads(dy_MxGxTxC[:, :, start:end])
        mean_dp_MxR = mean_dp_MxGxT[:, :, start:end].reshape(len(p_MxRxS), -1)
        dp_MxRxS = _batched_matmul(dy_MxRxC, v_MxTxC[:, :end], 2, 2, jnp.float32)
        ds_MxRxS = p_MxRxS * (dp_MxRxS - mean_dp_MxR[:, :, None]) / math.sqrt(q_MxGxTxC.shape[-1])
        ds_MxRxS = ds_MxRxS.astype(q_MxGxTxC.dtype)
        dq_chunks.append(_batched_matmul(ds_MxRxS, k_MxTxC[:, :end], 2, 1).reshape(q_MxGxTxC[:, :, start:end].shape))
        later_keys = ((0, 0), (0, k_MxTxC.shape[1] - end), (0, 0))
        dk_MxTxC += jnp.pad(_batched_matmul(ds_MxRxS, q_MxRxC, 1, 1, jnp.float32), later_keys)
        dv_MxTxC += jnp.pad(_batched_matmul(p_MxRxS, dy_MxRxC, 1, 1, jnp.float32), later_keys)
    return jnp.concatenate(dq_chunks, axis=2), dk_MxTxC.astype(k_MxTxC.dtype), dv_MxTxC.astype(v_MxTxC.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)


def _query_chunks(time: int) -> list[tuple[int, int]]:
    """The start and end of each chunk of queries."""
    rows = math.ceil(time / QUERY_CHUNKS)
    return [(start, min(start + rows, time)) for start in range(0, time, rows)]


def _stack_heads(chunk_MxGxTxC: jax.Array) -> jax.Array:
    """The queries of a chunk [M, R, C], one head of a group after another."""
    return chunk_MxGxTxC.reshape(len(chunk_MxGxTxC), -1, chunk_MxGxTxC.shape[-1])


def _attention_probs(q_MxRxC: jax.Array, k_MxSxC: jax.Array, start: int, documents_MxS: jax.Array | None) -> jax.Array:
    """The softmax of each row's scores, in float32; the rows of each head have the positions start, start + 1, …"""
    keys = k_MxSxC.shape[1]
    positions_R = start + jnp.arange(q_MxRxC.shape[1]) % (keys - start)
    scores_MxRxS = _batched_matmul(q_MxRxC, k_MxSxC, 2, 2, jnp.float32) / math.sqrt(q_MxRxC.shape[-1])
    mask_xRxS = (jnp.arange(keys)[None, :] <= positions_R[:, None])[None]
    if documents_MxS is not None:
        documents_MxR = jnp.tile(documents_MxS[:, start:], (1, q_MxRxC.shape[1] // (keys - start)))
        mask_xRxS &= documents_MxR[:, :, None] == documents_MxS[:, None, :]
    return jax.nn.softmax(jnp.where(mask_xRxS, scores_MxRxS, -jnp.inf), axis=-1)


def _batched_matmul(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, dtype: Any = None) -> jax.Array:
    """Matrix products over a leading batch axis, contracting the axes given."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((0,), (0,))), preferred_element_type=dtype)
