"""A loss or gradient that is not finite: the run ends, or the update is skipped, counted and logged."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nonfinite import damage_state, first_tokens_of_step, poison, poison_gradient
from helpers.training import arguments, records, run_folder, saved_state, saved_steps, tiny_config, write_tokens

from jaxgpt import errors, train
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.recorder import MAX_SKIPS

SKIP = {"run.on_nonfinite": "skip", "run.steps": 7, "run.eval_every": 7}  # less than an epoch: no batch comes twice


def test_bad_batch_is_skipped_counted_and_logged(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, first_tokens_of_step(workspace, 5))
    assert errors.run(train.main, arguments(workspace, SKIP)) == 0
    assert capsys.readouterr().err == (
        "warning: the loss of step 5 is not finite (loss nan, norm nan): its update was skipped, 1 so far; "
        "the batch is windows 40 to 47 of the data order\n"
    )
    (skip,) = records(run_folder(workspace), "skip")
    assert (skip["step"], skip["first_window"], skip["windows"], skip["skips"]) == (5, 40, 8, 1)
    losses = [record["loss"] for record in records(run_folder(workspace))]
    assert [index for index, loss in enumerate(losses) if loss == "nan"] == [5]
    assert int(saved_state(tiny_config(workspace, SKIP)).step) == 7


def test_many_bad_batches_in_a_row_abort(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch)
    assert errors.run(train.main, arguments(workspace, {"run.on_nonfinite": "skip"})) == 5
    assert f"the {MAX_SKIPS}th in a row" in capsys.readouterr().err
    assert len(records(run_folder(workspace), "skip")) == MAX_SKIPS - 1


def test_skipped_step_changes_nothing_but_counters(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    config = tiny_config(workspace, SKIP | {"model.dtype": "float32", "model.attention": "xla"})
    optimizer = optim.make_optimizer(config)
    state = step.init_state(config, optimizer)
    tokens = np.zeros((2, 4, 17), np.uint16)
    graphdef = step.model_graphdef(config.model)
    after, metrics = step.train_step(state, tokens, config=config, graphdef=graphdef, optimizer=optimizer)  # type: ignore[arg-type]
    assert np.isnan(metrics.loss)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        expected = old + 1 if jnp.issubdtype(old.dtype, jnp.integer) else old
        np.testing.assert_array_equal(new, expected)


def plant(monkeypatch: pytest.MonkeyPatch, workspace: Path, place: str) -> None:
    """Plants a NaN in the batch of step 6, or in the state before it."""
    match place:
        case "loss":
            poison(monkeypatch, first_tokens_of_step(workspace, 6))
        case "gradient":
            poison_gradient(monkeypatch, first_tokens_of_step(workspace, 6))
        case _:
            damage_state(monkeypatch, 6, place)


@pytest.mark.parametrize(
    ("place", "statuses"),
    [
        ("loss", {"abort": 5, "skip": 0, "rewind": 0}),
        ("gradient", {"abort": 5, "skip": 0, "rewind": 0}),
        ("params", {"abort": 5, "skip": 5, "rewind": 0}),  # no later step is finite
        ("opt_state", {"abort": 5, "skip": 5, "rewind": 0}),
    ],
)
def test_nan_is_never_saved(workspace: Path, place: str, statuses: dict[str, int]) -> None:
    write_tokens(workspace / "data", train=4000)  # no batch comes twice
    for policy, status in statuses.items():
        changes = {"run.on_nonfinite": policy, "run.name": policy, "run.keep_latest": 100}
        with pytest.MonkeyPatch.context() as patch:
            plant(patch, workspace, place)
            assert errors.run(train.main, arguments(workspace, changes)) == status, policy
        steps = saved_steps(run_folder(workspace, policy))
        assert steps[-1] == (4 if status else 20), policy
        config = tiny_config(workspace, changes)
        for number in steps:
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved_state(config, str(number))))


@pytest.mark.parametrize("place", ["params", "opt_state"])
def test_nan_at_the_step_of_a_save_is_not_saved(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    damage_state(monkeypatch, 8, place)
    assert errors.run(train.main, arguments(workspace)) == 5
    assert f"error[N001]: {place}." in (err := capsys.readouterr().err)
    assert "is not finite after step 8: it was not saved; the last checkpoint is that of step 4" in err
