"""Operations of the step whose gradient is written by hand, because compilers make too much of the derived one.

Each equals its definition up to rounding. What one platform needs and another does not is decided here and nowhere
else, when the program is lowered (`jax.lax.platform_dependent`).

    N tokens   I inputs   O outputs   M batch and key/value heads   R rows of queries   S keys   T time   C head size
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

ATTENTION_PARTS = 4  # more parts save little work and take longer to compile

Residuals = tuple[Any, ...]


def dot_general(x_xI: jax.Array, kernel_IxO: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`x @ kernel` with the signature that `nnx.Linear` asks of its `dot_general`; contracts the last axis of x."""
    y_NxO = product(x_xI.reshape(-1, x_xI.shape[-1]), kernel_IxO)
    return y_NxO.reshape(*x_xI.shape[:-1], -1)


@jax.custom_vjp
def product(x_NxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """`x @ kernel`, whose gradients are two matrix products and no copy of an operand."""
    return x_NxI @ kernel_IxO


def _product_backward(residuals: Residuals, dy_NxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_NxI, kernel_IxO = residuals
    return dy_NxO @ kernel_IxO.T, outer_sum(x_NxI, dy_NxO, kernel_IxO.dtype)


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


def outer_sum(x_NxI: jax.Array, y_NxO: jax.Array, dtype: Any) -> jax.Array:
    """The sum over tokens of outer products, `x^T y` [I, O], in `dtype`: the gradient of a matrix.

    XLA's CPU backend copies the left operand transposed, so the narrower one stands there. The barrier keeps the
    simplifier from turning the product around again; other backends have no such preference and get no barrier.
    """

    def plain(x_NxI: jax.Array, y_NxO: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x_NxI, y_NxO, (((0,), (0,)), ((), ())), preferred_element_type=dtype)

    def turned(x_NxI: jax.Array, y_NxO: jax.Array) -> jax.Array:
        turned_OxI: jax.Array = jax.lax.optimization_barrier(plain(y_NxO, x_NxI))
        return turned_OxI.T

    if x_NxI.shape[1] <= y_NxO.shape[1]:
        return plain(x_NxI, y_NxO)
    found: jax.Array = jax.lax.platform_dependent(x_NxI, y_NxO, cpu=turned, default=plain)
    return found


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Phi(x), by erf in float32.

    `jax.nn.gelu` takes erfc, whose tail is of use to nobody here and which costs twice as much on a CPU.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def attend(q_BxTxHxC: jax.Array, k_BxTxKxC: jax.Array, v_BxTxKxC: jax.Array) -> jax.Array:
    """Causal attention [B, T, H, C] as batched matrix products, a few rows of queries at a time.

    The rows of a part never see beyond its last token, so short parts leave out nearly half of the work and memory.
    G query heads share each key head: they are G times as many rows of queries.
    """
    batch, time, heads, size = q_BxTxHxC.shape
    kv_heads = k_BxTxKxC.shape[2]
    q_MxGxTxC = q_BxTxHxC.reshape(batch, time, kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
    k_MxTxC, v_MxTxC = (array.transpose(0, 2, 1, 3).reshape(-1, time, size) for array in (k_BxTxKxC, v_BxTxKxC))
    y_MxGxTxC = _attend(q_MxGxTxC.reshape(batch * kv_heads, -1, time, size), k_MxTxC, v_MxTxC)
    y_BxKxGxTxC = y_MxGxTxC.reshape(batch, kv_heads, -1, time, size)
    return y_BxKxGxTxC.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)


@jax.custom_vjp
def _attend(q_MxGxTxC: jax.Array, k_MxTxC: jax.Array, v_MxTxC: jax.Array) -> jax.Array:
    return _attend_forward(q_MxGxTxC, k_MxTxC, v_MxTxC)[0]


def _attend_forward(q_MxGxTxC: jax.Array, k_MxTxC: jax.Array, v_MxTxC: jax.Array) -> tuple[jax.Array, Residuals]:
    outputs, chances = [], []
    for start, end in _parts(k_MxTxC.shape[1]):
        q_MxRxC = _rows(q_MxGxTxC[:, :, start:end])
        p_MxRxS = _probabilities(q_MxRxC, k_MxTxC[:, :end], start).astype(v_MxTxC.dtype)
        outputs.append(_batched(p_MxRxS, v_MxTxC[:, :end], 2, 1).reshape(q_MxGxTxC[:, :, start:end].shape))
        chances.append(p_MxRxS)
    y_MxGxTxC = jnp.concatenate(outputs, axis=2)
    return y_MxGxTxC, (q_MxGxTxC, k_MxTxC, v_MxTxC, y_MxGxTxC, chances)


def _attend_backward(residuals: Residuals, dy_MxGxTxC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_MxGxTxC, k_MxTxC, v_MxTxC, y_MxGxTxC, chances = residuals
    wide_MxGxTxC = dy_MxGxTxC.astype(jnp.float32)
    mean_MxGxT = jnp.sum(wide_MxGxTxC * y_MxGxTxC, axis=-1)  # of dp under p, which the softmax's gradient takes away
    dq, dk_MxTxC, dv_MxTxC = [], *(jnp.zeros(k_MxTxC.shape, jnp.float32) for _ in range(2))
    for (start, end), p_MxRxS in zip(_parts(k_MxTxC.shape[1]), chances, strict=True):
        q_MxRxC, dy_MxRxC = _rows(q_MxGxTxC[:, :, start:end]), _rows(dy_MxGxTxC[:, :, start:end])
        mean_MxR = mean_MxGxT[:, :, start:end].reshape(len(p_MxRxS), -1)
        dp_MxRxS = _batched(dy_MxRxC, v_MxTxC[:, :end], 2, 2, jnp.float32)
        ds_MxRxS = p_MxRxS * (dp_MxRxS - mean_MxR[:, :, None]) / math.sqrt(q_MxGxTxC.shape[-1])
        ds_MxRxS = ds_MxRxS.astype(q_MxGxTxC.dtype)
        dq.append(_batched(ds_MxRxS, k_MxTxC[:, :end], 2, 1).reshape(q_MxGxTxC[:, :, start:end].shape))
        rest = ((0, 0), (0, k_MxTxC.shape[1] - end), (0, 0))
        dk_MxTxC += jnp.pad(_batched(ds_MxRxS, q_MxRxC, 1, 1, jnp.float32), rest)
        dv_MxTxC += jnp.pad(_batched(p_MxRxS, dy_MxRxC, 1, 1, jnp.float32), rest)
    return jnp.concatenate(dq, axis=2), dk_MxTxC.astype(k_MxTxC.dtype), dv_MxTxC.astype(v_MxTxC.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _parts(time: int) -> list[tuple[int, int]]:
    rows = math.ceil(time / ATTENTION_PARTS)
    return [(start, min(start + rows, time)) for start in range(0, time, rows)]


def _rows(part_MxGxRxC: jax.Array) -> jax.Array:
    """The heads of a group one below the other."""
    return part_MxGxRxC.reshape(len(part_MxGxRxC), -1, part_MxGxRxC.shape[-1])


def _probabilities(q_MxRxC: jax.Array, k_MxSxC: jax.Array, start: int) -> jax.Array:
    """Softmax in float32 of the rows' scores; row r of each head of a group has the place start + r."""
    seen = k_MxSxC.shape[1]
    places_R = start + jnp.arange(q_MxRxC.shape[1]) % (seen - start)
    scores_MxRxS = _batched(q_MxRxC, k_MxSxC, 2, 2, jnp.float32) / math.sqrt(q_MxRxC.shape[-1])
    visible_RxS = jnp.arange(seen)[None, :] <= places_R[:, None]
    return jax.nn.softmax(jnp.where(visible_RxS[None], scores_MxRxS, -jnp.inf), axis=-1)


def _batched(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, dtype: Any = None) -> jax.Array:
    """Matrix products over a leading batch axis, contracting the axes given."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((0,), (0,))), preferred_element_type=dtype)
