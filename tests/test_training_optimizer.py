"""Learning rates against nanoGPT's formula and their documented shapes; AdamW against a numpy reference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracle

from jaxgpt.config import Config, Model, Optim, Run
from jaxgpt.training import optimizer as optim

STEPS, PEAK, LOW = 100, 1e-3, 1e-4
KINDS = ("cosine", "linear", "constant", "wsd")


def settings(**changes: Any) -> Optim:
    return Optim(**{"learning_rate": PEAK, "min_lr": LOW, "warmup_steps": 10, **changes})


def make(chosen: Optim, **model: Any) -> Any:
    """The optimizer of a run of 100 steps, for a model with two heads of width 2."""
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 4, "block_size": 8, "vocab_size": 8, **model}
    return optim.make_optimizer(Config(model=Model(**shape), optim=chosen, run=Run(steps=STEPS)))


def rates(count: int = STEPS + 20, **changes: Any) -> np.ndarray:
    """The learning rates of steps 0 to `count` - 1 of a run of 100 steps."""
    return np.asarray(jax.vmap(optim.schedule(settings(**changes), STEPS))(jnp.arange(count)))


def assert_close(actual: Any, expected: Any) -> None:
    """To float32's accuracy."""
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6 * PEAK)


@pytest.mark.parametrize(("warmup", "decay_steps"), [(0, None), (1, 100), (10, 60), (99, None), (100, None)])
def test_cosine_is_nanogpts_get_lr(warmup: int, decay_steps: int | None) -> None:
    numbers = {"learning_rate": PEAK, "min_lr": LOW, "warmup_steps": warmup, "decay_steps": decay_steps}
    steps = [i for i in range(STEPS + 20) if i != warmup or warmup < STEPS]  # get_lr divides by zero there
    expected = [oracle.cosine(i, numbers, STEPS) for i in steps]
    assert_close(rates(warmup_steps=warmup, decay_steps=decay_steps)[steps], expected)


def test_linear_decays_evenly_until_decay_steps() -> None:
    assert_close(rates(schedule="linear")[[10, 55, 100, 119]], [PEAK, (PEAK + LOW) / 2, LOW, LOW])
    assert_close(rates(schedule="linear", decay_steps=50)[[10, 30, 50, 119]], [PEAK, (PEAK + LOW) / 2, LOW, LOW])


def test_constant_keeps_the_peak() -> None:
    assert_close(rates(schedule="constant")[10:], np.full(110, PEAK))
    assert_close(rates(schedule="constant", warmup_steps=0), np.full(120, PEAK))


def test_wsd_decays_over_decay_steps_or_a_fifth() -> None:
    for fall, actual in ((20, rates(schedule="wsd")), (50, rates(schedule="wsd", decay_steps=50))):
        assert_close(actual[10 : 101 - fall], np.full(91 - fall, PEAK))
        assert_close(actual[100 - fall // 2], (PEAK + LOW) / 2)
        assert_close(actual[100:], np.full(20, LOW))


def test_wsd_without_a_stable_phase_decays_after_the_warmup() -> None:
    actual = rates(schedule="wsd", warmup_steps=10, decay_steps=90)
    assert_close(actual, rates(schedule="linear", warmup_steps=10))


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_rises_evenly_to_the_peak(kind: str) -> None:
    assert_close(rates(schedule=kind)[:11], PEAK * np.arange(1, 12) / 11)
    assert_close(rates(schedule=kind, warmup_steps=0)[0], PEAK)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 10, 100])
def test_learning_rates_are_continuous_and_bounded(kind: str, warmup: int) -> None:
    actual = rates(schedule=kind, warmup_steps=warmup)
    steepest = PEAK / 10 if warmup < 100 else PEAK  # a warmup as long as the run leaves one step to decay
    assert np.abs(np.diff(actual)).max() < steepest
    assert actual.max() <= PEAK * (1 + 1e-6)
    assert actual[warmup:].min() >= LOW * (1 - 1e-6)
    assert actual[0] > 0


def test_peak_of_zero_trains_nothing() -> None:
    for kind in KINDS:
        assert not rates(schedule=kind, learning_rate=0.0, min_lr=0.0).any()


def parameters() -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    shapes = {"matrix": (4, 3), "table": (5, 2), "norm": (4,), "bias": (3,)}
    return {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def run_five_steps(size: float, **changes: Any) -> tuple[Any, Any]:
    """Parameters after five steps with gradients of norm about 5 `size`: jaxgpt's and the oracle's."""
    chosen = settings(**changes)
    numbers = vars(chosen)
    optimizer, rate = make(chosen), optim.schedule(chosen, STEPS)
    actual, expected = parameters(), float64(parameters())
    state, first, second = optimizer.init(actual), *2 * [jax.tree.map(np.zeros_like, expected)]
    for i in range(5):
        grads = jax.tree.map(lambda leaf: size * jnp.cos(7 * (i + 1) * leaf), parameters())  # noqa: B023
        updates, state = optimizer.update(grads, state, actual)
        actual = jax.tree.map(jnp.add, actual, updates)
        expected, first, second = oracle.adamw(expected, float64(grads), first, second, i, float(rate(i)), numbers)
    return actual, expected


@pytest.mark.parametrize("size", [3.0, 0.01], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("changes", [{}, {"grad_clip": 0.0}, {"weight_decay": 0.0, "eps": 1e-2}], ids=str)
def test_five_steps_match_a_reference_adamw(size: float, changes: dict[str, float]) -> None:
    actual, expected = run_five_steps(size, learning_rate=0.1, min_lr=0.01, **changes)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-6), actual, expected)


def test_weight_decay_applies_to_matrices_only() -> None:
    chosen, params = settings(weight_decay=0.5, warmup_steps=0), parameters()
    optimizer = make(chosen)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for name in ("matrix", "table"):
        assert_close(updates[name], -PEAK * 0.5 * params[name])
    for name in ("norm", "bias"):
        assert not updates[name].any()
