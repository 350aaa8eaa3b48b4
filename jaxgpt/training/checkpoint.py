"""Checkpoints of a run: saved in the background, kept by policy, restored exactly.

`Checkpoints` wraps an Orbax `CheckpointManager`. A save is on disk only after `wait` or a clean exit from its `with`
block, so every way out of a run goes through that block.
"""

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from jaxgpt.config import Config, Run
from jaxgpt.data import tokenizer
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import LOWER_LR_HELP, CheckpointError, NonFiniteError, StorageError
from jaxgpt.model import backend
from jaxgpt.runs.folder import CheckpointRef
from jaxgpt.training import optimizer as optim
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.step import TrainState, abstract_state, model_graphdef


class Checkpoints:
    """The checkpoints in `folder`, which only a reader opens without `run`.

    `run` sets which checkpoints are kept: the latest, the best, and those at multiples of `keep_every`.
    """

    def __init__(self, folder: Path, run: Run | None = None) -> None:
        self.folder = folder
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=1,
            preservation_policy=_preservation(run) if run else None,
            best_fn=lambda metrics: metrics["val_loss"],
            best_mode="min",
            enable_async_checkpointing=True,
            cleanup_tmp_directories=run is not None,
            create=run is not None,
            read_only=run is None,
        )
        handlers = {"state": ocp.StandardCheckpointHandler()}  # without it, a new manager cannot read the folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._manager.close()
        except Exception as failure:
            with suppress(Exception):
                self._manager.close()  # the first call raised a save's error before it had ended the threads
            if error is None:
                raise _storage_error(self.folder, failure) from failure

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, or will have one when the current save ends; ascending."""
        # With read=True, Orbax would forget the current save, and then keep too many checkpoints.
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def best(self) -> int | None:
        """The step with the lowest loss among the checkpoints that were evaluated; None if none was."""
        step: int | None = self._manager.best_step()
        return step

    def best_loss(self) -> float:
        """The loss of the best checkpoint; infinite without one."""
        best = self.best()
        return math.inf if best is None else float(self._manager.metrics(best)["val_loss"])

    def save(self, step: int, state: TrainState, val_loss: float | None) -> None:
        """Copies `state` from the devices and writes it in the background.

        `val_loss`, if the state was evaluated, decides which checkpoint is the best. The error of an earlier save is
        raised here, by `raise_failed_save` or by `wait`. Raises `NonFiniteError` N001 instead of saving a state that is
        not finite.
        """
        _suppress_tensorstore_warnings()
        tree = _as_tree(state)
        _check_finite(step, tree)
        metrics = None if val_loss is None or not math.isfinite(val_loss) else {"val_loss": val_loss}
        try:
            items = ocp.args.Composite(state=ocp.args.StandardSave(tree))
            saved = self._manager.save(step, args=items, metrics=metrics, force=True)
        except Exception as error:  # of any type: an earlier save's error is raised here as well
            raise _storage_error(self.folder, error) from error
        if not saved:
            raise StorageError(
                "S005", f"{self.folder} refused the checkpoint of step {step}", "choose a new --run.name"
            )

    def raise_failed_save(self) -> None:
        """Raises the error of a save that failed in the background; does not wait for a save in progress."""
        # Orbax's `check_for_errors` would take the error away from the thread that deletes old checkpoints after a
        # successful save. That thread would then delete them after the failed one.
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise _storage_error(self.folder, error) from error

    def resolve_step(self, name: str) -> int:
        """The step of the checkpoint `name`: "latest", "best" or a number.

        Raises `CheckpointError` K003 if there is no such checkpoint.
        """
        step = int(name) if name.isdigit() else None
        if name == "latest":
            step = self.latest()
        elif name == "best":
            step = self.best()
        if step is None or step not in self.steps():
            existing = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError("K003", f"no checkpoint {name!r} in {self.folder}; there are: {existing}")
        return step

    def restore(self, template: TrainState, step: int) -> TrainState:
        """The state of `step` with the shapes, types and shardings of `template`, a state of `ShapeDtypeStruct`s.

        Raises `CheckpointError` K004 if the checkpoint was made for another model, K003 if it cannot be read.
        """
        self.check_fit(template, step)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(template)))
        with self._reading(step):
            return _as_state(self._manager.restore(step, args=items)["state"], template)

    def check_fit(self, template: TrainState, step: int) -> None:
        """Raises what `restore` would raise, without reading any array."""
        with self._reading(step):
            stored = self._manager.item_metadata(step)["state"]
            leaves = None if stored is None else stored.tree
        if not leaves:
            raise self._unreadable(step, "it does not hold a state")
        _check_tree(dict(leaves), _as_tree(template), f"{self.folder}/{step}")

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        _suppress_tensorstore_warnings()
        try:
            yield
        except Exception as error:  # a damaged folder makes Orbax raise errors of many types
            reason = str(error) or type(error).__name__
            raise self._unreadable(step, reason.splitlines()[0][:200]) from error

    def _unreadable(self, step: int, reason: str) -> CheckpointError:
        path = f"{self.folder}/{step}"
        help = f"move {path} elsewhere: the run then resumes from the checkpoint before it"
        return CheckpointError("K003", f"{path} cannot be read: {reason}", help)


class LoadedModel(NamedTuple):
    """A trained model after `step` steps: its config, resolved for `mesh`, its parameters and its tokenizer."""

    config: Config
    graphdef: Any
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh
    step: int


def load_model(checkpoint: CheckpointRef) -> LoadedModel:
    """The model of a run's checkpoint, from the run's folder alone, on one device.

    Raises `CheckpointError` if there is no such checkpoint or it cannot be read.
    """
    folder = checkpoint.run
    config = folder.config()
    one_device = dataclasses.replace(config.mesh, device="auto", data_parallel=1)
    mesh = make_mesh(one_device, config.data.micro_batch)
    config = resolve_auto(config, mesh)
    with Checkpoints(folder.checkpoints) as checkpoints:
        step = checkpoints.resolve_step(checkpoint.step)
        optimizer = optim.make_optimizer(config)
        state = checkpoints.restore(abstract_state(config, optimizer, mesh), step)
    graphdef = model_graphdef(config.model)
    return LoadedModel(config, graphdef, state.params, tokenizer.load(folder.tokenizer_file), mesh, step)


def resolve_auto(config: Config, mesh: Mesh) -> Config:
    """`config` with the model's `auto` settings replaced by what suits the devices of `mesh`."""
    device = mesh.devices.flat[0]
    capability = getattr(device, "compute_capability", "")
    return dataclasses.replace(config, model=backend.resolve_auto(config.model, device.platform, capability))


def _preservation(run: Run) -> Any:
    policy = [policies.LatestN(n=run.keep_latest)]
    if run.keep_best:
        policy.append(
            policies.BestN(
                get_metric_fn=lambda metrics: metrics["val_loss"],
                reverse=True,  # Orbax keeps the largest; a loss is best when it is smallest
                n=run.keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    if run.keep_every:
        policy.append(policies.EveryNSteps(interval_steps=run.keep_every))
    return policies.AnyPreservationPolicy(policy)


def _as_tree(state: TrainState) -> dict[str, Any]:
    """`state` as {"params.blocks.0.attention.kernel": array}: names that do not depend on Python classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _as_state(tree: dict[str, Any], template: TrainState) -> TrainState:
    state: TrainState = jax.tree.unflatten(jax.tree.structure(template), [tree[name] for name in _as_tree(template)])
    return state


@functools.cache
def _suppress_tensorstore_warnings() -> None:
    """Silences "Event loop is closed" from TensorStore's threads for the rest of the process; installed once.

    After a failed save or restore they finish the other arrays, at any later time, and report that nobody waits.
    """
    default_hook = sys.unraisablehook

    def hook(event: "sys.UnraisableHookArgs") -> None:
        if str(event.exc_value) != "Event loop is closed":
            default_hook(event)

    sys.unraisablehook = hook


def _check_tree(stored: dict[str, Any], expected: dict[str, Any], path: str) -> None:
    """Raises K004 for the first array that differs; Orbax itself would cast a type silently."""
    for name, leaf in expected.items():
        array = stored.get(name)
        if array is None:
            message = f"{path} does not have {name}; the config needs it"
            raise CheckpointError("K004", message, "resume with the run's config")
        if tuple(array.shape) != tuple(leaf.shape) or array.dtype != leaf.dtype:
            raise CheckpointError(
                "K004",
                f"{path}: {name} is {array.dtype}{list(array.shape)}; the config needs {leaf.dtype}{list(leaf.shape)}",
                "resume with the config that the run was started with",
            )
    extra = sorted(set(stored) - set(expected))
    if extra:
        raise CheckpointError("K004", f"{path} has {extra[0]}, which the config does not need")


def _check_finite(step: int, tree: dict[str, Any]) -> None:
    """Raises `NonFiniteError` N001 for the first array with a NaN or an infinity; one transfer from the device."""
    finite = jax.device_get(_all_finite(tree))
    bad_name = next((name for name, is_finite in finite.items() if not is_finite), None)
    if bad_name:
        raise NonFiniteError("N001", f"{bad_name} is not finite after step {step}: it was not saved", LOWER_LR_HELP)


@jax.jit
def _all_finite(tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in tree.items()}


def _storage_error(folder: Path, error: BaseException) -> StorageError:
    message = f"a checkpoint could not be written to {folder}: {_reason(error)}"
    return StorageError("S005", message, "free space, then run again")


def _reason(error: BaseException) -> str:
    """What the system says, out of the hundreds of characters that TensorStore wraps it in."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    system = re.search(r"([A-Z][\w ]+) \[os_error_code", str(error))
    lines = str(error).splitlines() or [type(error).__name__]
    return system[1] if system else lines[0][:200]
