"""Orthogonalizes all matrices of a tree, those of equal shape together, so that it takes few kernel launches.

M matrices of one shape   R short side   C long side
"""

import math
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: steep at 0, and within 0.7 to 1.2 for singular values
EPSILON = 1e-7  # added to a norm: a matrix of zeros stays one


def orthogonalize_all(tree: Any, iterations: int, rms: float, dtype: Any) -> Any:
    """Each matrix of `tree` with singular values of about 1, scaled to the root mean square `rms`.

    Equal shapes, transposed ones included, are stacked. The products are computed in `dtype`, the results are float32.
    """
    leaves, structure = jax.tree.flatten(tree)
    groups = defaultdict(list)
    for index, leaf in enumerate(leaves):
        groups[tuple(sorted(leaf.shape))].append(index)
    results = list(leaves)
    for shape, indices in groups.items():
        wide_MxRxC = jnp.stack([_transpose_tall(leaves[index]) for index in indices])
        orthogonal_MxRxC = orthogonalize(wide_MxRxC.astype(dtype), iterations).astype(jnp.float32)
        scaled_MxRxC = rms * math.sqrt(max(shape)) * orthogonal_MxRxC
        for index, matrix_RxC in zip(indices, scaled_MxRxC, strict=True):
            tall = leaves[index].shape[0] > leaves[index].shape[1]
            results[index] = matrix_RxC.T if tall else matrix_RxC
    return jax.tree.unflatten(structure, results)


def orthogonalize(x_MxRxC: jax.Array, iterations: int) -> jax.Array:
    """U Vᵀ of each matrix U S Vᵀ, approximately: Newton-Schulz iterations leave singular values of 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    norms_M = jnp.linalg.norm(x_MxRxC.astype(jnp.float32), axis=(1, 2), keepdims=True)
    x_MxRxC = x_MxRxC / (norms_M + EPSILON).astype(x_MxRxC.dtype)
    for _ in range(iterations):
        gram_MxRxR = jnp.einsum("mrc,msc->mrs", x_MxRxC, x_MxRxC)
        polynomial_MxRxR = b * gram_MxRxR + c * gram_MxRxR @ gram_MxRxR
        x_MxRxC = a * x_MxRxC + polynomial_MxRxR @ x_MxRxC
    return x_MxRxC


def _transpose_tall(x: jax.Array) -> jax.Array:
    return x.T if x.shape[0] > x.shape[1] else x
