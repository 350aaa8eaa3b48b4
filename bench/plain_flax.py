"""The model of a config written as in the documentation of Flax and optax, as a baseline for jaxgpt.

`nnx.MultiHeadAttention` with a causal mask, `nnx.gelu`, logits of all tokens, optax's integer cross-entropy, the
functional counterpart of `nnx.jit` (`jax.jit` over the split state, which its guide recommends for speed), donated
state.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxgpt.config import Config, Model
from jaxgpt.model import backend
from jaxgpt.training import optimizer as optim


class Block(nnx.Module):
    def __init__(self, m: Model, dtype: Any, rngs: nnx.Rngs) -> None:
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs, "use_bias": m.bias}
        self.first, self.second = (nnx.LayerNorm(m.n_embd, **common) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(m.n_head, m.n_embd, decode=False, **common)
        self.up, self.down = nnx.Linear(m.n_embd, m.inner, **common), nnx.Linear(m.inner, m.n_embd, **common)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.first(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.second(x)), approximate=False))


class GPT(nnx.Module):
    def __init__(self, m: Model, dtype: Any, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(m.vocab_size, m.n_embd, dtype=dtype, rngs=rngs)
        self.positions = nnx.Embed(m.block_size, m.n_embd, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(m, dtype, rngs) for _ in range(m.n_layer)])
        self.norm = nnx.LayerNorm(m.n_embd, use_bias=m.bias, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))[None]
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.tokens.attend(self.norm(x)).astype(jnp.float32)


def build(config: Config) -> tuple[Any, Any]:
    """A jitted update of (state, tokens [A, B, W]) -> (state, loss), and the first state."""
    resolved = backend.resolve_auto(config.model, jax.devices()[0].platform)
    network = GPT(resolved, backend.compute_dtype(resolved), nnx.Rngs(config.run.seed))
    optimizer = optim.make_optimizer(config)
    graphdef, params = nnx.split(network, nnx.Param)

    def loss_of(params: Any, tokens: jax.Array) -> jax.Array:
        tokens = tokens.astype(jnp.int32)
        logits = nnx.merge(graphdef, params)(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def update(state: Any, blocks: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = state

        def micro(total: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
            loss, grads = jax.value_and_grad(loss_of)(params, tokens)
            return jax.tree.map(jnp.add, total, grads), loss

        total, losses = jax.lax.scan(micro, jax.tree.map(jnp.zeros_like, params), blocks)
        grads = jax.tree.map(lambda leaf: leaf / len(blocks), total)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), losses.mean()

    return jax.jit(update, donate_argnums=0), (params, optimizer.init(params))
