"""Operations of the step whose gradient is written by hand, because compilers make too much of the derived one.

Each equals its definition up to rounding. What one platform needs and another does not is decided here and nowhere
else, when the program is lowered (`jax.lax.platform_dependent`).

    N tokens   D width   I inputs   O outputs   V vocabulary   B sequences   T time
    M batch and key/value heads, or tokens of a chunk   R rows of queries   S keys, or numbers of a group   C head size
"""

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

FLOAT32_MIN = -3.4028235e38
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


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def split_product(x_NxI: jax.Array, kernel_IxO: jax.Array, sizes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """`x @ kernel` cut along its last axis into arrays of `sizes` columns.

    A GPU computes the parts of many rows one by one, because a library's kernel that takes a part would be given a copy
    of it. One wide product is faster on a CPU, and for a few rows.
    """

    def one_by_one(x_NxI: jax.Array, kernel_IxO: jax.Array) -> tuple[jax.Array, ...]:
        copies = jax.lax.optimization_barrier((x_NxI,) * len(sizes))  # else XLA would merge the products again
        return tuple(x @ part_IxO for x, part_IxO in zip(copies, split(kernel_IxO, sizes), strict=True))

    def at_once(x_NxI: jax.Array, kernel_IxO: jax.Array) -> tuple[jax.Array, ...]:
        return split(x_NxI @ kernel_IxO, sizes)

    if len(x_NxI) < kernel_IxO.shape[1]:
        return at_once(x_NxI, kernel_IxO)
    found: tuple[jax.Array, ...] = jax.lax.platform_dependent(x_NxI, kernel_IxO, cpu=at_once, default=one_by_one)
    return found


def _split_product_backward(
    sizes: tuple[int, ...], residuals: Residuals, dys: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    return _product_backward(residuals, jnp.concatenate(dys, axis=1))


split_product.defvjp(lambda x, kernel, sizes: (split_product(x, kernel, sizes), (x, kernel)), _split_product_backward)


def split(array: jax.Array, sizes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """`array` cut along its last axis into parts of `sizes`."""
    return tuple(jnp.split(array, tuple(itertools.accumulate(sizes))[:-1], axis=-1))


def norm(x_xD: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, epsilon: float, *, centred: bool) -> jax.Array:
    """LayerNorm (Ba et al. 2016), or, not `centred`, RMSNorm (Zhang & Sennrich 2019), over the last axis.

    Sums are float32 whatever the type of `x`, which is also the result's.
    """
    y_NxD = _norm(x_xD.reshape(-1, x_xD.shape[-1]), scale_D, bias_D, epsilon, centred)
    return y_NxD.reshape(x_xD.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _norm(x_NxD: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, epsilon: float, centred: bool) -> jax.Array:
    return _norm_forward(x_NxD, scale_D, bias_D, epsilon, centred)[0]


def _norm_forward(
    x_NxD: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, epsilon: float, centred: bool
) -> tuple[jax.Array, Residuals]:
    wide_NxD = x_NxD.astype(jnp.float32)
    mean_N, square_N = moments(wide_NxD) if centred else (jnp.zeros(len(x_NxD)), mean_square(wide_NxD))
    rstd_N = jax.lax.rsqrt(square_N + epsilon)
    y_NxD = (wide_NxD - mean_N[:, None]) * rstd_N[:, None] * scale_D[None]
    y_NxD = y_NxD if bias_D is None else y_NxD + bias_D[None]
    return y_NxD.astype(x_NxD.dtype), (x_NxD, mean_N, rstd_N, scale_D, bias_D)


def _norm_backward(
    _epsilon: float, centred: bool, residuals: Residuals, dy_NxD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x_NxD, mean_N, rstd_N, scale_D, bias_D = residuals
    wide_NxD = dy_NxD.astype(jnp.float32)
    normed_NxD = (x_NxD.astype(jnp.float32) - mean_N[:, None]) * rstd_N[:, None]
    slope_NxD = wide_NxD * scale_D[None]
    along_N = jnp.mean(slope_NxD * normed_NxD, axis=1)
    shift_N = jnp.mean(slope_NxD, axis=1) if centred else jnp.zeros_like(along_N)
    dx_NxD = (slope_NxD - shift_N[:, None] - normed_NxD * along_N[:, None]) * rstd_N[:, None]
    dscale_D = jnp.sum(wide_NxD * normed_NxD, axis=0).astype(scale_D.dtype)
    dbias_D = None if bias_D is None else jnp.sum(wide_NxD, axis=0).astype(bias_D.dtype)
    return dx_NxD.astype(x_NxD.dtype), dscale_D, dbias_D


_norm.defvjp(_norm_forward, _norm_backward)


def moments(x_NxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row's mean and its mean squared distance from it, [N], of float32 rows.

    A GPU makes both in one pass, where the row itself is made, and keeps them for the gradient, which is what the
    barrier is for: computed anew there, they end a fusion, and the scale's slope is written out in float32. A CPU
    fuses better without.
    """

    def in_two(x_NxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean_N = jnp.mean(x_NxD, axis=1)
        return mean_N, jnp.mean(jnp.square(x_NxD - mean_N[:, None]), axis=1)

    def at_once(x_NxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        alone = (jnp.ones_like(x_NxD), x_NxD, jnp.zeros_like(x_NxD))
        _, *pooled = jax.lax.reduce(alone, (jnp.float32(0),) * 3, _pooled, (1,))
        mean_N, square_N = jax.lax.optimization_barrier(pooled)
        return mean_N, square_N / x_NxD.shape[1]

    found: tuple[jax.Array, jax.Array] = jax.lax.platform_dependent(x_NxD, cpu=in_two, default=at_once)
    return found


Moments = tuple[jax.Array, jax.Array, jax.Array]


def _pooled(a: Moments, b: Moments) -> Moments:
    """Count, mean and summed squared distance from it of two samples together (Chan et al. 1983).

    Unlike a mean of squares less the square of the mean, it loses nothing where the mean is large beside the spread.
    """
    (count_a, mean_a, square_a), (count_b, mean_b, square_b) = a, b
    count = count_a + count_b
    share = jnp.where(count > 0, count_b / count, 0.0)
    apart = mean_b - mean_a
    return count, mean_a + apart * share, square_a + square_b + apart * (apart * (count_a * share))


def mean_square(x_NxD: jax.Array) -> jax.Array:
    """Each row's mean square [N], kept for the gradient as those of `moments` are."""
    square_N = jnp.mean(jnp.square(x_NxD), axis=1)
    found: jax.Array = jax.lax.platform_dependent(
        square_N, cpu=lambda square_N: square_N, default=jax.lax.optimization_barrier
    )
    return found


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Phi(x), by erf in float32.

    `jax.nn.gelu` takes erfc, whose tail is of use to nobody here and which costs twice as much on a CPU.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def log_sum_exp(logits_MxV: jax.Array) -> jax.Array:
    """log sum exp(logits) over the last axis, float32 [M]. Not meant to be differentiated."""
    logits_MxV = logits_MxV.astype(jnp.float32)

    def in_two(logits_MxV: jax.Array) -> jax.Array:
        found: jax.Array = jax.nn.logsumexp(logits_MxV, axis=-1)
        return found

    found: jax.Array = jax.lax.platform_dependent(logits_MxV, cpu=in_two, default=log_sum_exp_at_once)
    return found


def log_sum_exp_at_once(logits_MxV: jax.Array) -> jax.Array:
    """`log_sum_exp` that reads the logits once, with a running maximum (Milakov & Gimelshein 2018).

    In groups first, whose size lets a GPU's threads load several numbers at a time; XLA would cut 50,304 into 128 parts
    of 393 and load one by one.
    """
    groups_MxGxS = logits_MxV.reshape(len(logits_MxV), -1, _group(logits_MxV.shape[1]))
    start = (jnp.float32(FLOAT32_MIN), jnp.float32(0))  # finite, because infinity less itself is no number
    peaks_and_sums = (groups_MxGxS, jnp.ones_like(groups_MxGxS))
    for _ in range(2):
        peaks_and_sums = jax.lax.reduce(peaks_and_sums, start, _joined, (peaks_and_sums[0].ndim - 1,))
    peak_M, sum_M = peaks_and_sums
    return jnp.where(jnp.isposinf(peak_M), peak_M, peak_M + jnp.log(sum_M))


def _group(count: int) -> int:
    """The largest divisor of `count` up to 1,024 that a warp's vector loads divide, or all of it."""
    return next((size for size in range(1024, 0, -128) if count % size == 0), count)


def _joined(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Two sums of exponentials, each divided by exp of its peak, as one."""
    (peak_a, sum_a), (peak_b, sum_b) = a, b
    peak = jnp.maximum(peak_a, peak_b)
    return peak, sum_a * jnp.exp(peak_a - peak) + sum_b * jnp.exp(peak_b - peak)


def bernoulli(keys_B: jax.Array, chance: float, shape: tuple[int, ...]) -> jax.Array:
    """True with probability `chance` in each place of [B, *shape]; a row, of up to 2^32 places, hangs on its key alone.

    Each place's number is hashed twice, with half of the key before and half after: some 20 integer operations, which
    hide behind the memory traffic of what they are fused with. Threefry takes about 80 and would not.
    """
    words_Bx2 = jax.random.key_data(keys_B)
    first, second = (words_Bx2[:, i].reshape(-1, *(1,) * len(shape)) for i in (0, -1))
    places = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(1, *shape)
    drawn: jax.Array = _hashed(_hashed(places ^ first) ^ second) < jnp.uint32(min(round(chance * 2**32), 2**32 - 1))
    return drawn


def _hashed(x: jax.Array) -> jax.Array:
    """A permutation of uint32 with little bias: lowbias32 of Chris Wellons's hash prospector (2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


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
