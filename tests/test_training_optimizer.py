"""Learning rates against nanoGPT's formula and the shapes they promise; AdamW against one written apart in numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracle

from jaxgpt.config import Optim
from jaxgpt.training import optimizer as optim

STEPS, PEAK, LOW = 100, 1e-3, 1e-4
KINDS = ("cosine", "linear", "constant", "wsd")


def settings(**changes: Any) -> Optim:
    return Optim(**{"learning_rate": PEAK, "min_lr": LOW, "warmup_steps": 10, **changes})


def rates(count: int = STEPS + 20, **changes: Any) -> np.ndarray:
    """The learning rates of updates 0 to `count` - 1 of a run of 100 steps."""
    return np.asarray(jax.vmap(optim.schedule(settings(**changes), STEPS))(jnp.arange(count)))


def assert_close(found: Any, expected: Any) -> None:
    """To float32's accuracy."""
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6 * PEAK)


@pytest.mark.parametrize(("warmup", "decay_steps"), [(0, None), (1, 100), (10, 60), (99, None), (100, None)])
def test_cosine_is_nanogpts_get_lr(warmup: int, decay_steps: int | None) -> None:
    numbers = {"learning_rate": PEAK, "min_lr": LOW, "warmup_steps": warmup, "decay_steps": decay_steps}
    places = [i for i in range(STEPS + 20) if i != warmup or warmup < STEPS]  # get_lr divides by zero there
    expected = [oracle.cosine(i, numbers, STEPS) for i in places]
    assert_close(rates(warmup_steps=warmup, decay_steps=decay_steps)[places], expected)


def test_linear_falls_evenly_from_the_warmups_end_to_decay_steps() -> None:
    assert_close(rates(schedule="linear")[[10, 55, 100, 119]], [PEAK, (PEAK + LOW) / 2, LOW, LOW])
    assert_close(rates(schedule="linear", decay_steps=50)[[10, 30, 50, 119]], [PEAK, (PEAK + LOW) / 2, LOW, LOW])


def test_constant_holds_the_peak() -> None:
    assert_close(rates(schedule="constant")[10:], np.full(110, PEAK))
    assert_close(rates(schedule="constant", warmup_steps=0), np.full(120, PEAK))


def test_wsd_holds_the_peak_and_falls_over_decay_steps_or_a_fifth() -> None:
    for fall, found in ((20, rates(schedule="wsd")), (50, rates(schedule="wsd", decay_steps=50))):
        assert_close(found[10 : 101 - fall], np.full(91 - fall, PEAK))
        assert_close(found[100 - fall // 2], (PEAK + LOW) / 2)
        assert_close(found[100:], np.full(20, LOW))


def test_wsd_without_room_for_a_hold_falls_at_once() -> None:
    found = rates(schedule="wsd", warmup_steps=10, decay_steps=90)
    assert_close(found, rates(schedule="linear", warmup_steps=10))


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_rises_evenly_and_reaches_the_peak_after_its_last_step(kind: str) -> None:
    assert_close(rates(schedule=kind)[:11], PEAK * np.arange(1, 12) / 11)
    assert_close(rates(schedule=kind, warmup_steps=0)[0], PEAK)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 10, 100])
def test_rates_are_continuous_and_stay_between_bottom_and_peak(kind: str, warmup: int) -> None:
    found = rates(schedule=kind, warmup_steps=warmup)
    steepest = PEAK / 10 if warmup < 100 else PEAK  # a warmup of the whole run leaves one step to fall
    assert np.abs(np.diff(found)).max() < steepest
    assert found.max() <= PEAK * (1 + 1e-6)
    assert found[warmup:].min() >= LOW * (1 - 1e-6)
    assert found[0] > 0


def test_a_peak_of_zero_trains_nothing() -> None:
    for kind in KINDS:
        assert not rates(schedule=kind, learning_rate=0.0, min_lr=0.0).any()


def parameters() -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    shapes = {"matrix": (4, 3), "table": (5, 2), "norm": (4,), "bias": (3,)}
    return {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def five_updates(size: float, **changes: Any) -> tuple[Any, Any]:
    """Parameters after five updates by gradients of about norm 5 `size`: jaxgpt's and the oracle's."""
    chosen = settings(**changes)
    numbers = vars(chosen)
    optimizer, rate = optim.make_optimizer(chosen, STEPS), optim.schedule(chosen, STEPS)
    found, expected = parameters(), float64(parameters())
    state, first, second = optimizer.init(found), *2 * [jax.tree.map(np.zeros_like, expected)]
    for i in range(5):
        grads = jax.tree.map(lambda leaf: size * jnp.cos(7 * (i + 1) * leaf), parameters())  # noqa: B023
        updates, state = optimizer.update(grads, state, found)
        found = jax.tree.map(jnp.add, found, updates)
        expected, first, second = oracle.adamw(expected, float64(grads), first, second, i, float(rate(i)), numbers)
    return found, expected


@pytest.mark.parametrize("size", [3.0, 0.01], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("changes", [{}, {"grad_clip": 0.0}, {"weight_decay": 0.0, "eps": 1e-2}], ids=str)
def test_five_updates_are_adamws(size: float, changes: dict[str, float]) -> None:
    found, expected = five_updates(size, learning_rate=0.1, min_lr=0.01, **changes)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-6), found, expected)


def test_decay_touches_matrices_only() -> None:
    chosen, params = settings(weight_decay=0.5, warmup_steps=0), parameters()
    optimizer = optim.make_optimizer(chosen, STEPS)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for name in ("matrix", "table"):
        assert_close(updates[name], -PEAK * 0.5 * params[name])
    for name in ("norm", "bias"):
        assert not updates[name].any()
