"""The keys and values of past tokens.

B batch   T new tokens   S cached tokens   K key/value heads   C head size
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KVCache(NamedTuple):
    """Keys and values per layer, [B, K, S, C] each, of which the first `length` tokens are filled.

    Heads precede time, because the products of a decoding step need them so: nothing is transposed per token.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    length: jax.Array

    def with_capacity(self, size: int) -> "KVCache":
        """This cache with room for `size` tokens."""
        padding = ((0, 0), (0, 0), (0, size - self.k[0].shape[2]), (0, 0))
        k = tuple(jnp.pad(layer, padding) for layer in self.k)
        v = tuple(jnp.pad(layer, padding) for layer in self.v)
        return KVCache(k, v, self.length)


def heads_first(array_BxSxKxC: jax.Array) -> jax.Array:
    """Keys or values [B, S, K, C] in the cache's layout [B, K, S, C]."""
    return array_BxSxKxC.transpose(0, 2, 1, 3)


def write(cached_BxKxSxC: jax.Array, new_BxTxKxC: jax.Array, position_offset: jax.Array) -> jax.Array:
    """A layer's cached keys or values with new ones written at `position_offset`."""
    return jax.lax.dynamic_update_slice_in_dim(cached_BxKxSxC, heads_first(new_BxTxKxC), position_offset, 2)
