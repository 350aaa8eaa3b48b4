"""The learning-rate schedule: bitwise optax's in float32, and the same numbers for the planner in float64."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.config import Optim
from jaxgpt.config.schedule import final_lr_fraction, learning_rate, learning_rates
from jaxgpt.training import optimizer

STEPS = 100
SCHEDULES = ("cosine", "linear", "constant", "wsd")
CASES = [
    Optim(schedule=schedule, warmup_steps=warmup, decay_steps=decay, learning_rate=peak, min_lr=peak / 7)
    for schedule, warmup, decay, peak in product(SCHEDULES, (0, 1, 10, 100), (None, 30), (6e-4, 0.0))
]


def optax_schedule(optim: Optim, steps: int) -> optax.Schedule:
    """The same schedule composed of optax's own parts."""
    peak, low, warmup = optim.learning_rate, optim.min_lr, optim.warmup_steps
    length = max((optim.decay_steps or steps) - warmup, 1)
    hold = max(steps - (optim.decay_steps or max(steps // 5, 1)) - warmup, 0)
    decays = {
        "cosine": optax.cosine_decay_schedule(peak, length, alpha=low / peak if peak else 0.0),
        "linear": optax.linear_schedule(peak, low, length),
        "wsd": optax.linear_schedule(peak, low, max(steps - warmup - hold, 1), transition_begin=hold),
        "constant": optax.constant_schedule(peak),
    }
    rise = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([rise, decays[optim.schedule]], [warmup])


@pytest.mark.parametrize("optim", CASES, ids=lambda optim: f"{optim.schedule}-{optim.warmup_steps}-{optim.decay_steps}")
def test_schedule_is_bitwise_that_of_optax(optim: Optim) -> None:
    steps = jnp.arange(STEPS + 20)
    expected = jax.jit(jax.vmap(optax_schedule(optim, STEPS)))(steps)
    np.testing.assert_array_equal(jax.jit(jax.vmap(optimizer.schedule(optim, STEPS)))(steps), expected)


@pytest.mark.parametrize("optim", CASES, ids=lambda optim: f"{optim.schedule}-{optim.warmup_steps}-{optim.decay_steps}")
def test_planner_and_optimizer_have_the_same_rates(optim: Optim) -> None:
    rates = learning_rates(optim, STEPS)
    assert rates.dtype == np.float64
    assert rates.shape == (STEPS,)
    assert [learning_rate(optim, STEPS, step) for step in range(STEPS)] == rates.tolist()
    np.testing.assert_allclose(optimizer.schedule(optim, STEPS)(jnp.arange(STEPS)), rates, rtol=2e-6, atol=1e-10)


def test_final_lr_fraction() -> None:
    assert final_lr_fraction(Optim(learning_rate=1e-3, min_lr=1e-4), 20_000) == pytest.approx(0.1, rel=1e-5)
    assert final_lr_fraction(Optim(schedule="constant"), 20_000) == 1.0
    assert final_lr_fraction(Optim(learning_rate=0.0, min_lr=0.0), 20_000) == 1.0
