"""Muon and NorMuon against plain numpy, one matrix at a time; stacking, separated queries, keys and values; sizes."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import Config, Model, Optim, Run
from jaxgpt.optimizers import OPTIMIZERS
from jaxgpt.optimizers.orthogonalize import orthogonalize_all
from jaxgpt.training import optimizer, step

RATE, DECAY, MOMENTUM, BETA2 = 0.1, 0.1, 0.9, 0.98
SHAPE: dict[str, Any] = {"n_head": 2, "n_embd": 8, "block_size": 8, "vocab_size": 16, "dtype": "float32"}


def make_config(name: str, architecture: str = "modern", layers: int = 2, **optim: Any) -> Config:
    rates = {"learning_rate": RATE, "min_lr": RATE, "schedule": "constant", "warmup_steps": 0, "weight_decay": DECAY}
    settings = {"optimizer": name, "momentum": MOMENTUM, "beta2": BETA2, "grad_clip": 0.0, **rates, **optim}
    model = Model(architecture=architecture, n_layer=layers, n_kv_head=1 if architecture == "modern" else None, **SHAPE)
    return Config(model=model, optim=Optim(**settings), run=Run(steps=10))


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Five of Jordan's quintic Newton-Schulz iterations, with the root mean square of an AdamW update."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return 0.2 * np.sqrt(max(x.shape)) * x


class Reference:
    """Muon or NorMuon of one matrix [inputs, outputs]."""

    def __init__(self, name: str, shape: tuple[int, int]) -> None:
        self.name = name
        self.momentum = np.zeros(shape)
        self.mean_square = np.zeros(shape[1])

    def update(self, grad: np.ndarray, momentum: float = MOMENTUM) -> np.ndarray:
        self.momentum = momentum * self.momentum + grad
        update = orthogonalized(momentum * self.momentum + grad)
        if self.name == "normuon":
            self.mean_square = BETA2 * self.mean_square + (1 - BETA2) * (update**2).mean(axis=0)
            update = update / (np.sqrt(self.mean_square) + 1e-8)
            update = 0.2 * update / np.sqrt((update**2).mean())
        return update


def gradients(params: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.cos(7 * (number + 1) * leaf + leaf.size), params)


@cache
def three_steps(config: Config) -> tuple[tuple[Any, ...], Any]:
    """Parameters before each of three steps, and after them."""
    rule = optimizer.make_optimizer(config)
    update = jax.jit(rule.update)
    state = step.init_state(config, rule)
    params, opt_state, before = state.params, state.opt_state, []
    for number in range(3):
        before.append(params)
        updates, opt_state = update(gradients(params, number), opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return tuple(before), params


def expected_matrix(config: Config, before: Sequence[Any], path: tuple[Any, ...], columns: slice) -> np.ndarray:
    """Some columns of one matrix after the steps, from numpy, given the gradients of the same parameters."""
    kernel = np.asarray(_at(before[0], path), np.float64)[:, columns]
    reference = Reference(config.optim.optimizer, kernel.shape)
    for number, params in enumerate(before):
        grad = np.asarray(_at(gradients(params, number), path), np.float64)[:, columns]
        kernel = kernel - RATE * (reference.update(grad) + DECAY * kernel)
    return kernel


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("name", ["muon", "normuon"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("part", ["gate", "down"])
def test_matrices_of_blocks_match_numpy(name: str, layer: int, part: str) -> None:
    config = make_config(name)
    before, params = three_steps(config)
    path = ("blocks", layer, "mlp", part, "kernel")
    expected = expected_matrix(config, before, path, slice(None))
    np.testing.assert_allclose(_at(params, path), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["muon", "normuon"])
@pytest.mark.parametrize("columns", [slice(0, 8), slice(8, 12), slice(12, 16)], ids=["q", "k", "v"])
def test_queries_keys_and_values_are_three_matrices(name: str, columns: slice) -> None:
    config = make_config(name)
    before, params = three_steps(config)
    path = ("blocks", 1, "attention", "qkv", "kernel")
    expected = expected_matrix(config, before, path, columns)
    np.testing.assert_allclose(_at(params, path)[:, columns], expected, atol=2e-5)


@pytest.mark.parametrize("name", ["muon", "normuon"])
@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_all_other_parameters_have_adamw(name: str, architecture: str) -> None:
    _, params = three_steps(make_config(name, architecture))
    _, expected = three_steps(make_config("adamw", architecture))
    for key in set(params) - {"blocks"}:
        jax.tree.map(np.testing.assert_array_equal, params[key], expected[key])
    for norm in ("attention_norm", "mlp_norm"):
        jax.tree.map(np.testing.assert_array_equal, params["blocks"][0][norm], expected["blocks"][0][norm])


def test_adamw_has_its_own_learning_rate_beside_muon() -> None:
    _, params = three_steps(make_config("muon", adamw_lr=RATE / 4, weight_decay=0.0))
    _, expected = three_steps(make_config("adamw", learning_rate=RATE / 4, min_lr=RATE / 4, weight_decay=0.0))
    np.testing.assert_allclose(params["tokens"]["embedding"], expected["tokens"]["embedding"], rtol=1e-6)
    _, same = three_steps(make_config("muon", weight_decay=0.0))
    assert np.abs(params["tokens"]["embedding"] - same["tokens"]["embedding"]).max() > RATE / 4


def test_momentum_rises_in_its_warmup() -> None:
    rule = OPTIMIZERS["muon"].make_update(Optim(momentum=0.95, momentum_warmup=2), jnp.float32)
    grads = [np.random.default_rng(number).normal(size=(4, 3)) for number in range(4)]
    state, reference = rule.init({"w": jnp.zeros((4, 3))}), Reference("muon", (4, 3))
    for grad, momentum in zip(grads, (0.85, 0.9, 0.95, 0.95), strict=True):
        updates, state = rule.update({"w": jnp.asarray(grad)}, state)
        np.testing.assert_allclose(updates["w"].T, reference.update(grad, momentum).T, atol=2e-5)


def test_matrices_of_one_shape_are_multiplied_together() -> None:
    def products(layers: int) -> int:
        config = make_config("muon", layers=layers)
        rule = optimizer.make_optimizer(config)
        state = step.init_state(config, rule)
        return str(jax.make_jaxpr(rule.update)(state.params, state.opt_state, state.params)).count("dot_general")

    assert products(6) == products(2) == 3 * 3 * 5  # shapes, products of an iteration, iterations


def test_a_stack_of_tall_and_wide_matrices_keeps_each() -> None:
    random = np.random.default_rng(1)
    shapes = [(4, 3), (3, 4), (4, 4), (4, 3)]
    tree = [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]
    results = orthogonalize_all(tree, 5, 0.2, jnp.float32)
    for matrix, result in zip(tree, results, strict=True):
        wide = np.asarray(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T, np.float64)
        expected = orthogonalized(wide)
        np.testing.assert_allclose(result if result.shape == wide.shape else result.T, expected, atol=2e-5)


def test_bfloat16_products_stay_near_float32() -> None:
    matrix = [jnp.asarray(np.random.default_rng(2).normal(size=(64, 32)), jnp.float32)]
    exact, rounded = (orthogonalize_all(matrix, 5, 0.2, dtype)[0] for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    assert float(jnp.linalg.norm(exact - rounded) / jnp.linalg.norm(exact)) < 0.1


def test_a_matrix_without_gradient_is_not_updated() -> None:
    zeros = [jnp.zeros((4, 3))]
    assert not np.any(orthogonalize_all(zeros, 5, 0.2, jnp.float32)[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_size_is_that_of_the_state(name: str) -> None:
    rule = OPTIMIZERS[name].make_update(Optim(), jnp.float32)
    leaves = jax.tree.leaves(rule.init({"kernel": jnp.zeros((5, 3))}))
    assert OPTIMIZERS[name].state_size(5, 3) == sum(leaf.size for leaf in leaves if leaf.dtype == jnp.float32)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_flops_are_those_of_the_program(name: str) -> None:
    rule = OPTIMIZERS[name].make_update(Optim(), jnp.float32)
    params = {"kernel": jnp.ones((256, 128))}
    program = jax.jit(rule.update).lower(params, rule.init(params), params).compile()
    counted = program.cost_analysis()["flops"]
    elementwise = 60 * params["kernel"].size  # at most
    assert 0 <= counted - OPTIMIZERS[name].update_flops(256, 128) < elementwise
