"""Checkpoints of a run: saved in the background, kept by policy, restored exactly.

An Orbax `CheckpointManager` behind one class, so that what follows (digests, quarantine) has one place to go. A save
is on disk only after `wait` or a clean exit from the `with` block, so every way out of a run goes through that block.
"""

import dataclasses
import math
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
from jaxgpt.errors import GENTLER, CheckpointError, NonFiniteError, StorageError
from jaxgpt.model import backend
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training import optimizer as optim
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.step import TrainState, abstract_state, model_graphdef


class Checkpoints:
    """The checkpoints in `folder`. `run` says which are kept: the latest, the best, and each at a multiple."""

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
        handlers = {"state": ocp.StandardCheckpointHandler()}  # a fresh manager could not read what it holds otherwise
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._manager.close()
        except Exception as failure:
            with suppress(Exception):
                self._manager.close()  # the first call ended at the save's error, before the threads did
            if error is None:
                raise _storage_error(self.folder, failure) from failure

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, or will have one when the save that is under way ends; ascending."""
        # Not read from the disk again: Orbax would forget the save under way, and then keep too many.
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def best(self) -> int | None:
        """The step of lowest validation loss among those that were measured."""
        step: int | None = self._manager.best_step()
        return step

    def best_loss(self) -> float:
        """The lowest loss that a kept checkpoint was saved with; infinite if there is none."""
        best = self.best()
        return math.inf if best is None else float(self._manager.metrics(best)["val_loss"])

    def save(self, step: int, state: TrainState, val_loss: float | None) -> None:
        """Copies `state` from the devices and writes it in the background.

        `val_loss` is the loss by which the best checkpoint is chosen, if it was measured at this step. The error of
        an earlier save is raised here, by `check` or by `wait`. Raises `NonFiniteError` rather than saving a state
        that training could not go on from.
        """
        tree = _as_tree(state)
        _check_finite(step, tree)
        metrics = None if val_loss is None or not math.isfinite(val_loss) else {"val_loss": val_loss}
        try:
            items = ocp.args.Composite(state=ocp.args.StandardSave(tree))
            saved = self._manager.save(step, args=items, metrics=metrics, force=True)
        except Exception as error:  # an earlier save's error comes out here as well, and it can be any
            raise _storage_error(self.folder, error) from error
        if not saved:
            raise StorageError(
                "S005", f"{self.folder} refused the checkpoint of step {step}", "choose a new --run.name"
            )

    def check(self) -> None:
        """Raises the error of a save that failed in the background; does not wait for one that is under way."""
        # Orbax's own `check_for_errors` would take the error from the thread that deletes old checkpoints after a good
        # save: it would then delete them after the bad one.
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise _storage_error(self.folder, error) from error

    def find(self, which: str) -> int:
        """The step that "latest", "best" or a number names; raises `CheckpointError` K003 if it has no checkpoint."""
        step = {"latest": self.latest, "best": self.best}.get(which, lambda: int(which) if which.isdigit() else None)()
        if step is None or step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError("K003", f"no checkpoint {which!r} in {self.folder}; there are: {there}")
        return step

    def restore(self, template: TrainState, step: int) -> TrainState:
        """The state of `step` in the shapes, types and shardings of `template`, which holds `ShapeDtypeStruct`s.

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
            raise self._unreadable(step, "it holds no state")
        _check_tree(dict(leaves), _as_tree(template), f"{self.folder}/{step}")

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            with _late_reads_are_quiet():
                yield
        except Exception as error:  # whatever a damaged folder makes Orbax raise
            raise self._unreadable(step, (str(error) or type(error).__name__).splitlines()[0][:200]) from error

    def _unreadable(self, step: int, why: str) -> CheckpointError:
        place = f"{self.folder}/{step}"
        help = f"move {place} elsewhere: the run then goes on from the checkpoint before it"
        return CheckpointError("K003", f"{place} cannot be read: {why}", help)


class Loaded(NamedTuple):
    """A trained model: what it was trained as (`model` resolved for `mesh`), its parameters and its tokenizer."""

    config: Config
    graphdef: Any
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh
    step: int


def load(folder: RunFolder, which: str = "latest") -> Loaded:
    """The model of a run's checkpoint: `which` is a step, "latest" or "best".

    Raises `CheckpointError` where there is none. Needs nothing but the run's folder.
    """
    config = folder.config()
    mesh = make_mesh(dataclasses.replace(config.mesh, device="auto", data_parallel=1), config.data.micro_batch)
    config = resolved(config, mesh)
    with Checkpoints(folder.checkpoints) as checkpoints:
        step = checkpoints.find(which)
        optimizer = optim.make_optimizer(config.optim, config.run.steps)
        state = checkpoints.restore(abstract_state(config, optimizer, mesh), step)
    return Loaded(config, model_graphdef(config.model), state.params, tokenizer.load(folder.tokenizer_file), mesh, step)


def resolved(config: Config, mesh: Mesh) -> Config:
    """`config` with the model's `auto` settings replaced by what suits the devices of `mesh`."""
    device = mesh.devices.flat[0]
    settings = backend.resolve_auto(config.model, device.platform, getattr(device, "compute_capability", ""))
    return dataclasses.replace(config, model=settings)


def _preservation(run: Run) -> Any:
    kept = [policies.LatestN(n=run.keep_latest)]
    if run.keep_best:
        kept.append(
            policies.BestN(
                get_metric_fn=lambda metrics: metrics["val_loss"],
                reverse=True,  # Orbax keeps the largest; a loss is best when it is smallest
                n=run.keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    if run.keep_every:
        kept.append(policies.EveryNSteps(interval_steps=run.keep_every))
    return policies.AnyPreservationPolicy(kept)


def _as_tree(state: TrainState) -> dict[str, Any]:
    """`state` as {"params.blocks.0.attention.kernel": array}: names that do not depend on Python classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _as_state(tree: dict[str, Any], template: TrainState) -> TrainState:
    state: TrainState = jax.tree.unflatten(jax.tree.structure(template), [tree[name] for name in _as_tree(template)])
    return state


@contextmanager
def _late_reads_are_quiet() -> Iterator[None]:
    """Where a restore fails at one array, TensorStore's threads end the others', and say that nobody waits for them."""
    before = sys.unraisablehook

    def hook(event: "sys.UnraisableHookArgs") -> None:
        if str(event.exc_value) != "Event loop is closed":
            before(event)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = before  # not after an error: that is when they come, at any time from then on


def _check_tree(stored: dict[str, Any], wanted: dict[str, Any], place: str) -> None:
    """Raises K004 for the first array that differs: Orbax itself would cast a type silently."""
    for name, leaf in wanted.items():
        found = stored.get(name)
        if found is None:
            raise CheckpointError("K004", f"{place} has no {name}; the config needs it", "resume with the run's config")
        if tuple(found.shape) != tuple(leaf.shape) or found.dtype != leaf.dtype:
            raise CheckpointError(
                "K004",
                f"{place}: {name} is {found.dtype}{list(found.shape)}; the config needs {leaf.dtype}{list(leaf.shape)}",
                "resume with the config that the run was started with",
            )
    extra = sorted(set(stored) - set(wanted))
    if extra:
        raise CheckpointError("K004", f"{place} holds {extra[0]}, which the config has no place for")


def _check_finite(step: int, tree: dict[str, Any]) -> None:
    """Raises `NonFiniteError` N001 for the first array with a NaN or an infinity; one look at the device."""
    finite = jax.device_get(_all_finite(tree))
    broken = next((name for name, fine in finite.items() if not fine), None)
    if broken:
        raise NonFiniteError("N001", f"{broken} is not finite after step {step}: it was not saved", GENTLER)


@jax.jit
def _all_finite(tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in tree.items()}


def _storage_error(folder: Path, error: BaseException) -> StorageError:
    return StorageError("S005", f"a checkpoint could not be written to {folder}: {error}", "free space, then run again")
