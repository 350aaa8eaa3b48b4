"""The step: the training it does, what accumulation, dropout, devices and compute types may change, and its cost."""

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import oracle
from jax.sharding import Mesh

from jaxgpt import config
from jaxgpt.config import Config, Data, Model, Optim, Run
from jaxgpt.model import gpt
from jaxgpt.training import mesh, step
from jaxgpt.training import optimizer as optim

TEXT = np.frombuffer(Path(textwrap.__file__).read_bytes(), np.uint8)
MODEL = Model(
    n_layer=4, n_head=2, n_embd=32, block_size=32, vocab_size=256, dtype="float32", attention="xla", loss_chunk=100
)
SMALL = dataclasses.replace(MODEL, n_layer=1, n_head=2, n_embd=16, block_size=16)
MODERN = {"architecture": "modern", "n_head": 4, "n_kv_head": 2, "tie_embeddings": False}
DROPOUT = {"dropout": 0.2, "attention_dropout": 0.2}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """Half the time to compile, and the same computations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def configured(base: Model = SMALL, *, accum: int = 2, micro_batch: int = 4, **changes: Any) -> Config:
    return Config(
        model=dataclasses.replace(base, **changes),
        data=Data(accum=accum, micro_batch=micro_batch),
        optim=Optim(learning_rate=3e-3, min_lr=3e-4, warmup_steps=4),
        run=Run(steps=20),
    )


def block(cfg: Config, number: int = 0) -> np.ndarray:
    """Step `number`'s windows [A, B, W] of a text, one after the other and around its end."""
    shape = (cfg.data.accum, cfg.data.micro_batch, cfg.model.block_size + 1)
    return np.resize(np.roll(TEXT, -number * np.prod(shape)), shape).astype(np.uint16)


def devices(count: int, cfg: Config) -> Mesh:
    return mesh.make_mesh(config.Mesh(data_parallel=count), cfg.data.micro_batch)


class Training:
    """A config's state and its compiled steps."""

    def __init__(self, cfg: Config, count: int = 1, optimizer: Any = None) -> None:
        self.cfg, self.mesh, self.graphdef = cfg, devices(count, cfg), step.graph(cfg.model)
        self.optimizer = optimizer or optim.make(cfg.optim, cfg.run.steps)
        self.state = step.compile_init(cfg, self.optimizer, self.mesh)()
        self.train_step = step.compile_train_step(cfg, self.graphdef, self.optimizer, self.mesh)

    def __call__(self, tokens_AxBxW: np.ndarray) -> step.Metrics:
        tokens_AxBxW = jax.device_put(tokens_AxBxW, mesh.over_batch(self.mesh))
        self.state, metrics = self.train_step(self.state, tokens_AxBxW)
        return metrics

    def losses(self, tokens_AxBxW: np.ndarray) -> jax.Array:
        return step.compile_eval_step(self.cfg, self.graphdef, self.mesh)(self.state.params, tokens_AxBxW)


def relative_distance(tree: Any, other: Any) -> float:
    return float(optax.tree.norm(optax.tree.sub(tree, other)) / optax.tree.norm(other))


def assert_close(tree: Any, other: Any, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol, rtol=rtol), tree, other)


@pytest.mark.parametrize("changes", [{}, {"bias": True, "activation": "gelu_tanh"}, MODERN], ids=str)
def test_twenty_steps_follow_a_training_written_apart_in_float64(changes: dict[str, Any]) -> None:
    training = Training(configured(MODEL, **changes))
    start = jax.tree.map(np.array, training.state.params)
    blocks = [block(training.cfg, i) for i in range(training.cfg.run.steps)]
    losses = [float(training(tokens).loss) for tokens in blocks]
    windows = [tokens.reshape(-1, tokens.shape[-1]) for tokens in blocks]
    expected, _ = oracle.train(start, training.cfg.to_dict(), windows)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-1] < losses[0] - 1


def gradient(cfg: Config, tokens_AxBxW: np.ndarray) -> tuple[step.Metrics, step.Params]:
    """What one update measured, and the gradient that it took, seen through a descent of rate 1."""
    training = Training(cfg, optimizer=optax.sgd(1.0))
    start = jax.tree.map(np.array, training.state.params)
    metrics = training(tokens_AxBxW)
    return metrics, jax.tree.map(lambda before, after: before - np.asarray(after), start, training.state.params)


def test_accumulating_eight_micro_batches_of_four_is_one_batch_of_32_dropout_included() -> None:
    many = configured(accum=8, micro_batch=4, **DROPOUT)
    one = configured(accum=1, micro_batch=32, **DROPOUT)
    metrics, grads = gradient(many, block(many))
    expected, expected_grads = gradient(one, block(one))
    assert_close(metrics, expected, rtol=1e-5)
    assert_close(grads, expected_grads, atol=1e-5 * float(expected.grad_norm))


def test_many_steps_compile_once() -> None:
    training = Training(configured())
    for i in range(4):
        training(block(training.cfg, i))
    assert training.train_step._cache_size() == 1
    assert int(training.state.step) == 4


def test_the_state_given_to_a_step_is_used_up() -> None:
    training = Training(configured())
    given = jax.tree.leaves(training.state)
    training(block(training.cfg))
    assert all(leaf.is_deleted() for leaf in given)


def inner_equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from inner_equations(inner)


def scan_over_micro_batches(cfg: Config) -> tuple[Any, step.TrainState]:
    optimizer = optim.make(cfg.optim, cfg.run.steps)
    state = jax.eval_shape(partial(step.init_state, cfg, optimizer))
    function = partial(step.train_step, cfg=cfg, graphdef=step.graph(cfg.model), optimizer=optimizer)
    equations = jax.make_jaxpr(function)(state, block(cfg)).jaxpr.eqns
    return next(equation for equation in equations if equation.primitive.name == "scan"), state


def is_cast_to_bfloat16(equation: Any) -> bool:
    return equation.primitive.name == "convert_element_type" and equation.params["new_dtype"] == jnp.bfloat16


@pytest.mark.parametrize("changes", [{}, MODERN], ids=str)
def test_weights_become_bfloat16_once_outside_the_scan_and_gradients_add_up_in_float32(changes: dict[str, Any]) -> None:
    cfg = configured(dtype="bfloat16", n_embd=24, **changes)
    scan, state = scan_over_micro_batches(cfg)
    weights = sorted(leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim >= 2)
    constants, count = scan.params["num_consts"], scan.params["num_carry"]
    given = [variable.aval for variable in scan.invars[:constants] if variable.aval.ndim >= 2]
    assert sorted(aval.shape for aval in given if aval.dtype == jnp.bfloat16) == weights
    assert not [aval for aval in given if aval.dtype == jnp.float32]
    assert {variable.aval.dtype for variable in scan.invars[constants : constants + count]} == {np.dtype("float32")}


def test_no_weight_is_cast_inside_the_scan() -> None:
    cfg = configured(dtype="bfloat16", n_embd=24)
    scan, state = scan_over_micro_batches(cfg)
    tables = (cfg.model.vocab_size, cfg.model.n_embd)  # the table's gradient is a float32 sum, cast at its end
    weights = {leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim >= 2} - {tables}
    cast = {
        equation.invars[0].aval.shape
        for equation in inner_equations(scan.params["jaxpr"].jaxpr)
        if is_cast_to_bfloat16(equation)
    }
    assert cast
    assert not cast & weights


def losses_of_steps(cfg: Config, tokens_AxBxW: np.ndarray, numbers: Iterable[int]) -> list[float]:
    """The losses of steps of these numbers, all with the parameters of seed 0."""
    optimizer = optax.sgd(1.0)
    start = step.init_state(cfg.replace({"run": {"seed": 0}}), optimizer)
    function = jax.jit(partial(step.train_step, cfg=cfg, graphdef=step.graph(cfg.model), optimizer=optimizer))
    states = (start._replace(step=jnp.int32(number)) for number in numbers)
    return [float(function(state, tokens_AxBxW)[1].loss) for state in states]


def test_dropout_is_a_function_of_seed_step_and_place_in_the_step() -> None:
    cfg = configured(accum=1, **DROPOUT)
    tokens = block(cfg)
    first, second, again = losses_of_steps(cfg, tokens, [0, 1, 0])
    (other_seed,) = losses_of_steps(cfg.replace({"run": {"seed": 7}}), tokens, [0])
    (micro_batch_twice,) = losses_of_steps(cfg, np.concatenate([tokens, tokens]), [0])
    assert first == again
    losses = sorted([first, second, other_seed, micro_batch_twice])
    assert np.diff(losses).min() > 1e-5


@pytest.mark.parametrize("changes", [{}, MODERN], ids=str)
def test_every_dropout_of_every_sequence_has_its_own_key(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, keys = configured(n_layer=2, **DROPOUT, **changes), []

    def noted(x: jax.Array, rate: float, keys_B: jax.Array | None) -> jax.Array:
        assert (rate, len(keys_B)) == (0.2, 2)
        keys.extend(map(tuple, jax.random.key_data(keys_B).tolist()))
        return x

    monkeypatch.setattr(gpt, "dropout", noted)
    gpt.GPT(cfg.model, rngs=nnx.Rngs(0))(jnp.zeros((2, 8), jnp.int32), keys_B=jax.random.split(jax.random.key(0)))
    assert len(set(keys)) == len(keys) >= 2 * (1 + 3 * cfg.model.n_layer)


def test_evaluation_drops_nothing() -> None:
    dropping, plain = Training(configured(**DROPOUT)), Training(configured())
    tokens = block(plain.cfg)
    assert_close(dropping.losses(tokens), plain.losses(tokens), rtol=1e-6)


def test_dropout_zeroes_its_share_and_preserves_the_mean() -> None:
    x = gpt.dropout(jnp.ones((2, 50_000)), 0.2, jax.random.split(jax.random.key(0)))
    assert set(np.unique(x)) == {0.0, np.float32(1 / 0.8)}
    assert abs(float(jnp.mean(x)) - 1) < 5 * np.sqrt(0.2 / 0.8 / x.size)  # five standard errors


def test_dropout_in_bfloat16_scales_by_the_exact_rate() -> None:
    """Division by bfloat16's nearest number to 0.9 would enlarge every branch by 0.17%."""
    numbers = jnp.linspace(1, 2, 50_001)[None].astype(jnp.bfloat16)
    dropped = np.asarray(gpt.dropout(numbers, 0.1, jax.random.split(jax.random.key(0), 1)), np.float64)
    ratio = dropped.sum() / np.asarray(numbers, np.float64)[dropped != 0].sum()
    assert abs(ratio * 0.9 - 1) < 2e-4


def test_dropout_is_the_same_however_a_step_is_split() -> None:
    many, one = (configured(accum=a, micro_batch=b, **DROPOUT) for a, b in ((4, 2), (1, 8)))
    tokens = block(many)
    (metrics, grads), (expected, expected_grads) = gradient(many, tokens), gradient(one, tokens.reshape(1, 8, -1))
    assert_close(metrics, expected, rtol=1e-5)
    assert_close(grads, expected_grads, atol=1e-5 * float(expected.grad_norm))


def test_devices_exchange_their_gradients_after_the_scan_and_nothing_else() -> None:
    cfg = configured(loss_chunk=20)
    state, optimizer = step.init_state(cfg, optax.sgd(1.0)), optax.sgd(1.0)
    compiled = step.compile_train_step(cfg, step.graph(cfg.model), optimizer, devices(2, cfg))
    program = compiled.lower(state, block(cfg)).compile().as_text()
    exchange = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
    main = program[program.index("\nENTRY ") :]
    assert set(exchange.findall(program)) == {"all-reduce"}
    assert len(exchange.findall(program)) == len(exchange.findall(main))


def trained(count: int, dtype: Any) -> tuple[list[float], step.Params]:
    training = Training(configured(dropout=0.1), count)
    losses = [float(training(block(training.cfg, i).astype(dtype)).loss) for i in range(3)]
    return losses, jax.tree.map(np.asarray, training.state.params)


def test_devices_and_the_type_of_token_ids_change_nothing() -> None:
    assert_close(trained(2, np.uint32), trained(1, np.uint16), atol=1e-6)


@pytest.mark.parametrize("changes", [{}, MODERN], ids=str)
def test_evaluation_gives_each_window_the_mean_of_its_log_softmax_losses(changes: dict[str, Any]) -> None:
    training = Training(configured(**changes), count=2)
    tokens = block(training.cfg)
    windows = tokens.reshape(-1, tokens.shape[-1]).astype(int)
    logits = oracle.logits(training.state.params, training.cfg.to_dict()["model"], windows[:, :-1])
    p_BxTxV = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    p_BxT = np.take_along_axis(p_BxTxV, windows[:, 1:, None], axis=-1)[..., 0]
    expected = -np.log(p_BxT).mean(axis=-1).reshape(tokens.shape[:2])
    assert_close(np.asarray(training.losses(tokens)), expected, rtol=1e-5)


def test_bfloat16_loss_is_within_a_ten_thousandth_of_float32_and_its_gradient_within_a_hundredth() -> None:
    cfg, exact = configured(dtype="bfloat16"), configured()
    metrics, grads = gradient(cfg, block(cfg))
    expected, expected_grads = gradient(exact, block(exact))
    assert_close(metrics.loss, expected.loss, rtol=1e-4)
    assert relative_distance(grads, expected_grads) < 0.01


def test_bfloat16_does_not_lose_the_gradient_of_a_token_that_occurs_a_thousand_times() -> None:
    """A sum of equal addends in bfloat16 stands still at 256 of them."""
    changes = {"block_size": 64, "accum": 1, "micro_batch": 16, "tie_embeddings": False}
    cfg, exact = configured(dtype="bfloat16", **changes), configured(**changes)
    tokens = np.full_like(block(cfg), 7)
    table, expected = (gradient(each, tokens)[1]["tokens"] for each in (cfg, exact))
    assert relative_distance(table, expected) < 0.01
