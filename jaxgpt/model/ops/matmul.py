"""Matrix products of activations and weights, with a custom VJP.

N tokens   I inputs   O outputs
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Residuals = tuple[jax.Array, jax.Array]


def dot_general(x_xI: jax.Array, kernel_IxO: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`x @ kernel` over the last axis of x, with the signature of the `dot_general` argument of `nnx.Linear`."""
    y_NxO = matmul(x_xI.reshape(-1, x_xI.shape[-1]), kernel_IxO)
    return y_NxO.reshape(*x_xI.shape[:-1], -1)


@jax.custom_vjp
def matmul(x_NxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """`x @ kernel`, whose gradients are two matrix products without a copy of an operand."""
    return x_NxI @ kernel_IxO


def _matmul_backward(residuals: Residuals, dy_NxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_NxI, kernel_IxO = residuals
    return dy_NxO @ kernel_IxO.T, weight_grad(x_NxI, dy_NxO, kernel_IxO.dtype)


matmul.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _matmul_backward)


def weight_grad(x_NxI: jax.Array, dy_NxO: jax.Array, dtype: Any) -> jax.Array:
    """The gradient of a weight matrix, `x^T dy` [I, O], in `dtype`.

    XLA's CPU backend copies the left operand transposed, so there the narrower operand is the left one. The barrier
    keeps the simplifier from swapping the product back. Other backends have no such preference and get no barrier.
    """

    def direct(x_NxI: jax.Array, dy_NxO: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x_NxI, dy_NxO, (((0,), (0,)), ((), ())), preferred_element_type=dtype)

    def transposed(x_NxI: jax.Array, dy_NxO: jax.Array) -> jax.Array:
        grad_OxI: jax.Array = jax.lax.optimization_barrier(direct(dy_NxO, x_NxI))
        return grad_OxI.T

    if x_NxI.shape[1] <= dy_NxO.shape[1]:
        return direct(x_NxI, dy_NxO)
    grad_IxO: jax.Array = jax.lax.platform_dependent(x_NxI, dy_NxO, cpu=transposed, default=direct)
    return grad_IxO


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul_split(x_NxI: jax.Array, kernel_IxO: jax.Array, sizes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """`x @ kernel`, split along its last axis into arrays of `sizes` columns.

    With many rows, a GPU computes one product per part: a library kernel that takes a part would otherwise be given a
    copy of it. One wide product is faster on a CPU and for few rows.
    """

    def separate_products(x_NxI: jax.Array, kernel_IxO: jax.Array) -> tuple[jax.Array, ...]:
        # Behind the barrier XLA does not see that the operands are equal, and does not merge the products.
        operands = jax.lax.optimization_barrier((x_NxI,) * len(sizes))
        return tuple(x @ columns_IxO for x, columns_IxO in zip(operands, split(kernel_IxO, sizes), strict=True))

    def one_product(x_NxI: jax.Array, kernel_IxO: jax.Array) -> tuple[jax.Array, ...]:
        return split(x_NxI @ kernel_IxO, sizes)

    if len(x_NxI) < kernel_IxO.shape[1]:
        return one_product(x_NxI, kernel_IxO)
    outputs: tuple[jax.Array, ...] = jax.lax.platform_dependent(
        x_NxI, kernel_IxO, cpu=one_product, default=separate_products
    )
    return outputs


def _matmul_split_backward(
    sizes: tuple[int, ...], residuals: Residuals, dys: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    return _matmul_backward(residuals, jnp.concatenate(dys, axis=1))


matmul_split.defvjp(lambda x, kernel, sizes: (matmul_split(x, kernel, sizes), (x, kernel)), _matmul_split_backward)


def split(array: jax.Array, sizes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """`array` split along its last axis into arrays of `sizes`."""
    return tuple(jnp.split(array, tuple(itertools.accumulate(sizes))[:-1], axis=-1))
