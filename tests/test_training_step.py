"""The train step: training like the oracle, and invariance to accumulation, devices and dropout layout."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import oracle
from helpers.jaxprs import equations, scan_inputs
from helpers.steps import (
    DROPOUT,
    MODEL,
    MODERN,
    Training,
    assert_close,
    cpu_mesh,
    gradient,
    make_config,
    relative_distance,
    token_block,
)

from jaxgpt.config import Config
from jaxgpt.model import attention, gpt
from jaxgpt.model.ops.dropout import dropout
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.mark.parametrize("changes", [{}, {"bias": True, "activation": "gelu_tanh"}, MODERN], ids=str)
def test_twenty_steps_match_the_float64_oracle(changes: dict[str, Any]) -> None:
    training = Training(make_config(MODEL, **changes))
    start = jax.tree.map(np.array, training.state.params)
    blocks = [token_block(training.config, i) for i in range(training.config.run.steps)]
    losses = [float(training(tokens).loss) for tokens in blocks]
    windows = [tokens.reshape(-1, tokens.shape[-1]) for tokens in blocks]
    expected, _ = oracle.train(start, training.config.to_dict(), windows)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-1] < losses[0] - 1


def test_gradient_accumulation_equals_one_large_batch() -> None:
    many = make_config(accum=8, micro_batch=4, **DROPOUT)
    one = make_config(accum=1, micro_batch=32, **DROPOUT)
    metrics, grads = gradient(many, token_block(many))
    expected, expected_grads = gradient(one, token_block(one))
    assert_close(metrics, expected, rtol=1e-5)
    assert_close(grads, expected_grads, atol=1e-5 * float(expected.grad_norm))


def test_many_steps_compile_once() -> None:
    training = Training(make_config())
    for i in range(4):
        training(token_block(training.config, i))
    assert training.train_step._cache_size() == 1
    assert int(training.state.step) == 4


def test_the_state_is_donated() -> None:
    training = Training(make_config())
    given = jax.tree.leaves(training.state)
    training(token_block(training.config))
    assert all(leaf.is_deleted() for leaf in given)


def scan_over_micro_batches(config: Config) -> tuple[Any, step.TrainState]:
    optimizer = optim.make_optimizer(config)
    state = jax.eval_shape(partial(step.init_state, config, optimizer))
    function = partial(step.train_step, config=config, graphdef=step.model_graphdef(config.model), optimizer=optimizer)
    equations = jax.make_jaxpr(function)(state, token_block(config)).jaxpr.eqns
    return next(equation for equation in equations if equation.primitive.name == "scan"), state


def is_cast_to_bfloat16(equation: Any) -> bool:
    return equation.primitive.name == "convert_element_type" and equation.params["new_dtype"] == jnp.bfloat16


@pytest.mark.parametrize("changes", [{}, MODERN], ids=str)
def test_weights_enter_the_scan_in_bfloat16(changes: dict[str, Any]) -> None:
    config = make_config(dtype="bfloat16", n_embd=24, **changes)
    scan, state = scan_over_micro_batches(config)
    weights = sorted(leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim >= 2)
    constants, carry = scan_inputs(scan)
    matrices = [aval for aval in constants if aval.ndim >= 2]
    assert sorted(aval.shape for aval in matrices if aval.dtype == jnp.bfloat16) == weights
    assert not [aval for aval in matrices if aval.dtype == jnp.float32]
    assert {aval.dtype for aval in carry} == {np.dtype("float32")}


def test_no_weight_is_cast_inside_the_scan() -> None:
    config = make_config(dtype="bfloat16", n_embd=24)
    scan, state = scan_over_micro_batches(config)
    tables = (config.model.vocab_size, config.model.n_embd)  # the table's gradient is a float32 sum, cast at its end
    weights = {leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim >= 2} - {tables}
    cast = {
        equation.invars[0].aval.shape
        for equation in equations(scan.params["jaxpr"].jaxpr)
        if is_cast_to_bfloat16(equation)
    }
    assert cast
    assert not cast & weights


def losses_of_steps(config: Config, tokens_AxBxW: np.ndarray, numbers: Iterable[int]) -> list[float]:
    """The losses of the steps with these numbers, each with the parameters of seed 0."""
    optimizer = optax.sgd(1.0)
    start = step.init_state(config.replace({"run": {"seed": 0}}), optimizer)
    graphdef = step.model_graphdef(config.model)
    function = jax.jit(partial(step.train_step, config=config, graphdef=graphdef, optimizer=optimizer))
    states = (start._replace(step=jnp.int32(number)) for number in numbers)
    return [float(function(state, tokens_AxBxW)[1].loss) for state in states]


def test_dropout_depends_on_seed_step_and_position_in_the_step() -> None:
    config = make_config(accum=1, **DROPOUT)
    tokens = token_block(config)
    first, second, repeated = losses_of_steps(config, tokens, [0, 1, 0])
    (other_seed,) = losses_of_steps(config.replace({"run": {"seed": 7}}), tokens, [0])
    (micro_batch_twice,) = losses_of_steps(config, np.concatenate([tokens, tokens]), [0])
    assert first == repeated
    losses = sorted([first, second, other_seed, micro_batch_twice])
    assert np.diff(losses).min() > 1e-5


@pytest.mark.parametrize("changes", [{}, MODERN], ids=str)
def test_every_dropout_of_every_sequence_has_its_own_key(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(n_layer=2, **DROPOUT, **changes)
    keys: list[tuple[int, ...]] = []

    def record_keys(x: jax.Array, rate: float, rngs_B: jax.Array | None) -> jax.Array:
        assert (rate, len(rngs_B)) == (0.2, 2)
        keys.extend(map(tuple, jax.random.key_data(rngs_B).tolist()))
        return x

    for module in (gpt, attention):
        monkeypatch.setattr(module, "dropout", record_keys)
    gpt.GPT(config.model, rngs=nnx.Rngs(0))(jnp.zeros((2, 8), jnp.int32), rngs_B=jax.random.split(jax.random.key(0)))
    assert len(set(keys)) == len(keys) >= 2 * (1 + 3 * config.model.n_layer)


def test_evaluation_has_no_dropout() -> None:
    dropping, plain = Training(make_config(**DROPOUT)), Training(make_config())
    tokens = token_block(plain.config)
    assert_close(dropping.eval_losses(tokens), plain.eval_losses(tokens), rtol=1e-6)


def test_dropout_zeroes_its_fraction_and_preserves_the_mean() -> None:
    x = dropout(jnp.ones((2, 50_000)), 0.2, jax.random.split(jax.random.key(0)))
    assert set(np.unique(x)) == {0.0, np.float32(1 / 0.8)}
    assert abs(float(jnp.mean(x)) - 1) < 5 * np.sqrt(0.2 / 0.8 / x.size)  # five standard errors


def test_dropout_in_bfloat16_scales_by_the_exact_rate() -> None:
    """Division by the bfloat16 nearest to 0.9 would enlarge every branch by 0.17%."""
    numbers = jnp.linspace(1, 2, 50_001)[None].astype(jnp.bfloat16)
    dropped = np.asarray(dropout(numbers, 0.1, jax.random.split(jax.random.key(0), 1)), np.float64)
    ratio = dropped.sum() / np.asarray(numbers, np.float64)[dropped != 0].sum()
    assert abs(ratio * 0.9 - 1) < 2e-4


def test_dropout_does_not_depend_on_accumulation() -> None:
    many, one = (make_config(accum=a, micro_batch=b, **DROPOUT) for a, b in ((4, 2), (1, 8)))
    tokens = token_block(many)
    (metrics, grads), (expected, expected_grads) = gradient(many, tokens), gradient(one, tokens.reshape(1, 8, -1))
    assert_close(metrics, expected, rtol=1e-5)
    assert_close(grads, expected_grads, atol=1e-5 * float(expected.grad_norm))


def test_devices_exchange_only_gradients_after_the_scan() -> None:
    config = make_config(loss_chunk=20)
    state, optimizer = step.init_state(config, optax.sgd(1.0)), optax.sgd(1.0)
    compiled = step.compile_train_step(config, step.model_graphdef(config.model), optimizer, cpu_mesh(2, config))
    program = compiled.lower(state, token_block(config)).compile().as_text()
    exchange = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
    main = program[program.index("\nENTRY ") :]
    assert set(exchange.findall(program)) == {"all-reduce"}
    assert len(exchange.findall(program)) == len(exchange.findall(main))


def trained(count: int, dtype: Any, optimizer: str) -> tuple[list[float], step.Params]:
    training = Training(make_config(dropout=0.1).replace({"optim": {"optimizer": optimizer}}), count)
    losses = [float(training(token_block(training.config, i).astype(dtype)).loss) for i in range(3)]
    return losses, jax.tree.map(np.asarray, training.state.params)


@pytest.mark.parametrize("optimizer", ["adamw", "normuon"])
def test_device_count_and_token_dtype_change_nothing(optimizer: str) -> None:
    assert_close(trained(2, np.uint32, optimizer), trained(1, np.uint16, optimizer), atol=1e-6)


@pytest.mark.parametrize("changes", [{}, MODERN], ids=str)
def test_evaluation_gives_the_mean_loss_of_each_window(changes: dict[str, Any]) -> None:
    training = Training(make_config(**changes), devices=2)
    tokens = token_block(training.config)
    windows = tokens.reshape(-1, tokens.shape[-1]).astype(int)
    logits = oracle.logits(training.state.params, training.config.to_dict()["model"], windows[:, :-1])
    p_BxTxV = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    p_BxT = np.take_along_axis(p_BxTxV, windows[:, 1:, None], axis=-1)[..., 0]
    expected = -np.log(p_BxT).mean(axis=-1).reshape(tokens.shape[:2])
    assert_close(np.asarray(training.eval_losses(tokens)), expected, rtol=1e-5)


def test_bfloat16_loss_and_gradient_are_close_to_float32() -> None:
    config, exact = make_config(dtype="bfloat16"), make_config()
    metrics, grads = gradient(config, token_block(config))
    expected, expected_grads = gradient(exact, token_block(exact))
    assert_close(metrics.loss, expected.loss, rtol=1e-4)
    assert relative_distance(grads, expected_grads) < 0.01


def test_bfloat16_keeps_the_gradient_of_a_frequent_token() -> None:
    """A sum of equal addends in bfloat16 stops growing at 256 of them."""
    changes = {"block_size": 64, "accum": 1, "micro_batch": 16, "tie_embeddings": False}
    config, exact = make_config(dtype="bfloat16", **changes), make_config(**changes)
    tokens = np.full_like(token_block(config), 7)
    table, expected = (gradient(each, tokens)[1]["tokens"] for each in (config, exact))
    assert relative_distance(table, expected) < 0.01
