"""A slow, obvious GPT and its training, against which the tests hold jaxgpt. It shares no code with jaxgpt.

Everything is float64 and written as in the papers: one sequence at a time (`vmap` does them all), one head at a time,
all logits at once.
A model is a nested dict of arrays, named as jaxgpt names them; `m` is a config's model section as a dict of numbers.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]


def logits(params: Params, m: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of sequences [B, T]."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        return np.asarray(jax.vmap(lambda row: _logits(_float64(params), m, row))(np.int64(tokens)))


def train(params: Params, config: dict[str, dict[str, Any]], batches: Iterable[np.ndarray]) -> tuple[list[float], Any]:
    """The loss before each update by a batch of windows [B, T + 1], and the parameters after the last one."""
    m, o, steps = config["model"], config["optim"], config["run"]["steps"]
    losses = []
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        value_and_grad = jax.jit(jax.value_and_grad(lambda p, windows: _loss(p, m, windows)))
        params = _float64(params)
        first = second = jax.tree.map(np.zeros_like, params)
        for i, windows in enumerate(batches):
            loss, grads = jax.tree.map(np.asarray, value_and_grad(params, np.int64(windows)))
            params, first, second = adamw(params, grads, first, second, i, cosine(i, o, steps), o)
            losses.append(float(loss))
    return losses, params


def gradient(params: Params, m: dict[str, Any], windows: np.ndarray) -> tuple[float, Params]:
    """The loss of windows [B, T + 1], and its slope along every parameter."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        value_and_grad = jax.jit(jax.value_and_grad(lambda p: _loss(p, m, np.int64(windows))))
        loss, grads = value_and_grad(_float64(params))
        return float(loss), jax.tree.map(np.asarray, grads)


def cosine(i: int, o: dict[str, Any], steps: int) -> float:
    """nanoGPT's get_lr, word for word but for its names."""
    learning_rate, min_lr, warmup_iters = o["learning_rate"], o["min_lr"], o["warmup_steps"]
    lr_decay_iters = o["decay_steps"] or steps
    if i < warmup_iters:
        return learning_rate * (i + 1) / (warmup_iters + 1)
    if i > lr_decay_iters:
        return min_lr
    decay_ratio = (i - warmup_iters) / (lr_decay_iters - warmup_iters)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


def adamw(params: Any, grads: Any, first: Any, second: Any, i: int, rate: float, o: dict[str, Any]) -> Any:
    """Update i (from 0): clip by the global norm, Adam (Kingma & Ba 2014), decoupled decay of matrices."""
    norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    clip = min(1.0, o["grad_clip"] / norm) if o["grad_clip"] else 1.0
    b1, b2 = o["beta1"], o["beta2"]
    first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * clip * g, first, grads)
    second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (clip * g) ** 2, second, grads)

    def moved(p: Any, m: Any, v: Any) -> Any:
        decay = o["weight_decay"] if p.ndim >= 2 else 0.0
        return p - rate * (m / (1 - b1 ** (i + 1)) / ((v / (1 - b2 ** (i + 1))) ** 0.5 + o["eps"]) + decay * p)

    return jax.tree.map(moved, params, first, second), first, second


def _loss(params: Params, m: dict[str, Any], windows: jax.Array) -> jax.Array:
    def of_window(window: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(_logits(params, m, window[:-1]))
        return -jnp.mean(log_p[jnp.arange(len(window) - 1), window[1:]])

    return jnp.mean(jax.vmap(of_window)(windows))


def _logits(params: Params, m: dict[str, Any], tokens: jax.Array) -> jax.Array:
    gpt2 = m["architecture"] == "gpt2"
    x = jnp.asarray(params["tokens"]["embedding"])[tokens]
    if gpt2:
        x = x + params["positions"]["embedding"][: len(tokens)]
    for block in params["blocks"].values():
        x = x + _attention(block["attention"], m, _norm(block["attention_norm"], m, x))
        x = x + (_mlp if gpt2 else _swiglu)(block["mlp"], m, _norm(block["mlp_norm"], m, x))
    head = params["tokens"]["embedding"] if m["tie_embeddings"] else params["output"]
    return _norm(params["norm"], m, x) @ head.T


def _attention(p: Params, m: dict[str, Any], x: jax.Array) -> jax.Array:
    heads, kv_heads = m["n_head"], m["n_kv_head"] or m["n_head"]
    size = m["head_dim"] or m["n_embd"] // heads
    columns = _linear(p["qkv"], x)
    column = lambda i: columns[:, i * size : (i + 1) * size]  # noqa: E731
    results = []
    for h in range(heads):
        group = h // (heads // kv_heads)
        q, k, v = column(h), column(heads + group), column(heads + kv_heads + group)
        if m["architecture"] == "modern":
            q, k = _rotate(_norm(p["q_norm"], m, q), m), _rotate(_norm(p["k_norm"], m, k), m)
        scores = jnp.where(jnp.tri(len(x), dtype=bool), q @ k.T / math.sqrt(size), -jnp.inf)
        results.append(jax.nn.softmax(scores, axis=-1) @ v)
    return _linear(p["out"], jnp.concatenate(results, axis=1))


def _rotate(x: jax.Array, m: dict[str, Any]) -> jax.Array:
    """Numbers c and c + C/2 are one complex number, which position t rotates by t / theta^(2c/C)."""
    size = x.shape[1]
    turns = jnp.arange(len(x))[:, None] / m["rope_theta"] ** (jnp.arange(0, size, 2) / size)
    turned = (x[:, : size // 2] + 1j * x[:, size // 2 :]) * jnp.exp(1j * turns)
    return jnp.concatenate([turned.real, turned.imag], axis=1)


def _norm(p: Params, m: dict[str, Any], x: jax.Array) -> jax.Array:
    if m["architecture"] == "modern":
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + (m["norm_eps"] or 1e-6)) * p["scale"]
    normal = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + (m["norm_eps"] or 1e-5))
    return normal * p["scale"] + p.get("bias", 0.0)


def _mlp(p: Params, m: dict[str, Any], x: jax.Array) -> jax.Array:
    h = _linear(p["up"], x)
    if m["activation"] == "gelu":
        h = 0.5 * h * (1 + jax.scipy.special.erf(h / math.sqrt(2)))
    else:
        h = 0.5 * h * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return _linear(p["down"], h)


def _swiglu(p: Params, m: dict[str, Any], x: jax.Array) -> jax.Array:
    gate = _linear(p["gate"], x)
    return _linear(p["down"], gate / (1 + jnp.exp(-gate)) * _linear(p["up"], x))


def _linear(p: Params, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p.get("bias", 0.0)


def _float64(params: Params) -> Params:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
