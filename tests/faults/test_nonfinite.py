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
from jaxgpt.training.loaded_model import resolve_auto
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.recorder import MAX_SKIPS

BAD = 6  # the step whose batch, or whose state before it, has a NaN
ABORT = {"model.n_layer": 1, "run.steps": 12, "run.eval_every": 12}  # with checkpoints at 4, 8 and 12
SKIP = ABORT | {"run.on_nonfinite": "skip"}


@pytest.fixture
def workspace(workspace: Path) -> Path:
    """An epoch of 31 batches: no batch comes twice."""
    write_tokens(workspace / "data", train=4000)
    return workspace


def test_bad_batch_is_skipped_counted_and_logged(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, first_tokens_of_step(workspace, BAD))
    assert errors.run(train.main, arguments(workspace, SKIP)) == 0
    assert capsys.readouterr().err == (
        "warning: the loss of step 6 is not finite (loss nan, norm nan): its update was skipped, 1 so far; "
        "the batch is windows 48 to 55 of the data order\n"
    )
    (skip,) = records(run_folder(workspace), "skip")
    assert (skip["step"], skip["first_window"], skip["windows"], skip["skips"]) == (BAD, 48, 8, 1)
    losses = [record["loss"] for record in records(run_folder(workspace))]
    assert [index for index, loss in enumerate(losses) if loss == "nan"] == [BAD]
    assert int(saved_state(tiny_config(workspace, SKIP)).step) == 12


def test_many_bad_batches_in_a_row_abort(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch)
    assert errors.run(train.main, arguments(workspace, SKIP)) == 5
    assert f"the {MAX_SKIPS}th in a row" in capsys.readouterr().err
    assert len(records(run_folder(workspace), "skip")) == MAX_SKIPS - 1


def test_skipped_step_changes_nothing_but_counters(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    config = tiny_config(workspace, SKIP)
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    config = resolve_auto(config, mesh)
    optimizer = optim.make_optimizer(config)
    state = step.compile_init(config, optimizer, mesh)()
    before = [np.array(leaf) for leaf in jax.tree.leaves(state)]  # the step reuses the memory of the state
    compiled = step.compile_train_step(config, step.model_graphdef(config.model), optimizer, mesh, None)
    after, metrics = compiled(state, np.zeros((2, 4, 17), np.uint16))
    assert np.isnan(metrics.loss)
    for old, new in zip(before, jax.tree.leaves(after), strict=True):
        expected = old + 1 if jnp.issubdtype(old.dtype, jnp.integer) else old
        np.testing.assert_array_equal(new, expected)


def inject_nan(monkeypatch: pytest.MonkeyPatch, workspace: Path, source: str) -> None:
    """Makes the loss or the gradient of the batch of step 6 NaN, or a number of the state before it."""
    match source:
        case "loss":
            poison(monkeypatch, first_tokens_of_step(workspace, BAD))
        case "gradient":
            poison_gradient(monkeypatch, first_tokens_of_step(workspace, BAD))
        case _:
            damage_state(monkeypatch, BAD, source)


@pytest.mark.parametrize(
    ("source", "statuses"),
    [
        ("loss", {"abort": 5, "skip": 0, "rewind": 0}),
        ("gradient", {"abort": 5, "skip": 0, "rewind": 0}),
        ("params", {"abort": 5, "skip": 5, "rewind": 0}),  # no later step is finite
        ("opt_state", {"abort": 5, "skip": 5, "rewind": 0}),
    ],
)
def test_nan_is_never_saved(workspace: Path, source: str, statuses: dict[str, int]) -> None:
    for policy, status in statuses.items():
        changes = ABORT | {"run.on_nonfinite": policy, "run.name": policy, "run.keep_latest": 100}
        with pytest.MonkeyPatch.context() as patch:
            inject_nan(patch, workspace, source)
            assert errors.run(train.main, arguments(workspace, changes)) == status, policy
        steps = saved_steps(run_folder(workspace, policy))
        assert steps[-1] == (4 if status else 12), policy
        config = tiny_config(workspace, changes)
        for number in steps:
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved_state(config, str(number))))


@pytest.mark.parametrize("field", ["params", "opt_state"])
def test_nan_at_the_step_of_a_save_is_not_saved(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    damage_state(monkeypatch, 8, field)
    assert errors.run(train.main, arguments(workspace, ABORT)) == 5
    assert f"error[N001]: {field}." in (err := capsys.readouterr().err)
    assert "is not finite after step 8: it was not saved; the last checkpoint is that of step 4" in err
