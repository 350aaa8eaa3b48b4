"""Checkpoints of a run: saved in the background, kept by policy, restored exactly.

`Checkpoints` wraps an Orbax `CheckpointManager`. A save is on disk only after `wait` or a clean exit from its `with`
block, so every way out of a run goes through that block.
"""

import functools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orbax.checkpoint as ocp

from jaxgpt.config import Run
from jaxgpt.errors import CheckpointError, StorageError
from jaxgpt.runs.checkpoint_files import (
    Manifest,
    find_damage,
    find_manifest_damage,
    has_manifest,
    move_to_quarantine,
    read_val_loss,
    steps_in,
    write_manifest,
)
from jaxgpt.runs.folder import CheckpointRef, RunFolder
from jaxgpt.runs.log import warn
from jaxgpt.runs.retention import Policy
from jaxgpt.runs.rewinds import Rewinds
from jaxgpt.training import disk_space, distributed
from jaxgpt.training.sealed_path import sealed_path_class
from jaxgpt.training.state_tree import as_state, as_tree, check_finite, check_tree
from jaxgpt.training.step import TrainState
from jaxgpt.utils.files import file_id


class Checkpoints:
    """The checkpoints in `folder`, the `checkpoints/` of a run, which only a reader opens without `run`.

    `run` sets which checkpoints are kept (`jaxgpt/runs/retention.py`). `identity` is the config and the tokens of the
    run, which every manifest gets.
    """

    def __init__(self, folder: Path, run: Run | None = None, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self._run = run
        self._run_folder = RunFolder(folder.parent)
        self._identity = identity or {}
        if run:
            folder.mkdir(parents=True, exist_ok=True)
            self._inode = file_id(folder)
        self._damaged: set[int] = set()  # steps that could not be moved away
        self._verified: set[int] = set()
        self._losses = {step: read_val_loss(folder / str(step)) for step in steps_in(folder)}
        self.rewinds = Rewinds()  # of the run, for the manifests
        self.unstable_since: int | None = None  # the step of a divergence, for the retention

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's manager, which writes. It is made for the first save, when damaged checkpoints are out of its way."""
        run = self._run
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=1,
            preservation_policy=Policy(run, self._losses, lambda: self.unstable_since) if run else None,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # or it reads metrics of old checkpoints, which may be damaged
            temporary_path_class=sealed_path_class(self._write_manifest),
        )
        handlers = {"state": ocp.StandardCheckpointHandler()}
        return ocp.CheckpointManager(self.folder.absolute(), options=options, item_handlers=handlers)

    @property
    def _has_saved(self) -> bool:
        return "_manager" in vars(self)

    def _write_manifest(self, path: Path, step: int) -> None:
        loss = self._losses.get(step, math.inf)
        batches = {"loader_step": self.rewinds.batch(step), "skipped_batches": self.rewinds.skipped}
        write_manifest(path, step, loss if math.isfinite(loss) else None, {**self._identity, **batches})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._has_saved:
            return
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
        steps = self._manager.all_steps() if self._has_saved else steps_in(self.folder)
        return sorted(set(steps) - self._damaged)

    def latest(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def best(self) -> int | None:
        """The step with the lowest loss among the checkpoints that were evaluated; None if none was."""
        step = min(self.steps(), key=self._loss, default=None)
        return None if step is None or math.isinf(self._loss(step)) else step

    def best_loss(self) -> float:
        """The loss of the best checkpoint; infinite without one."""
        best = self.best()
        return math.inf if best is None else self._loss(best)

    def _loss(self, step: int) -> float:
        return self._losses.get(step, math.inf)

    def save(self, step: int, state: TrainState, val_loss: float | None) -> None:
        """Copies `state` from the devices and writes it in the background.

        `val_loss`, if the state was evaluated, decides which checkpoint is the best. The error of an earlier save is
        raised here, by `raise_failed_save` or by `wait`. Raises `NonFiniteError` N001 instead of saving a state that is
        not finite.
        """
        self._check_folder()
        _suppress_tensorstore_warnings()
        tree = as_tree(state)
        check_finite(step, tree)
        disk_space.check(self.folder, disk_space.state_bytes(tree))
        self._losses[step] = val_loss if val_loss is not None and math.isfinite(val_loss) else math.inf
        try:
            items = ocp.args.Composite(state=ocp.args.StandardSave(tree))
            saved = self._manager.save(step, args=items, force=True)
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
        self._check_folder()
        if self._has_saved and not self._manager.is_saving_in_progress():
            self.wait()

    def _check_folder(self) -> None:
        """Raises `StorageError` S018 if the folder is not the one that this process has opened."""
        if self._run and file_id(self.folder) != self._inode:
            message = f"'{self.folder}' was removed or replaced while the run used it"
            raise StorageError("S018", message, "the run ends here; put the folder back, or start a new run")

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        if not self._has_saved:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise _storage_error(self.folder, error) from error

    def _forget_manager(self) -> None:
        """Waits for Orbax's manager and closes it: it would not notice that a checkpoint is moved to `quarantine/`."""
        self.wait()
        if self._has_saved:
            self._manager.close()
            del self._manager

    def resolve_step(self, name: str) -> int:
        """The step of the checkpoint `name`: "latest", "best" or a number. Every byte of it has been verified.

        A damaged checkpoint is moved to `quarantine/`, and the next one is taken. Raises `CheckpointError` K003 if
        there is no such checkpoint, or if the one with that number is damaged.
        """
        step = int(name) if name.isdecimal() else None
        if name == "latest":
            step = self._first_valid(self.latest)
        if name == "best":
            step = self.valid_best()
        if step is None or step not in self.steps():
            existing = ", ".join(map(str, self.steps())) or "none"
            help = "take one of these, latest or best" if self.steps() else "train the run first"
            raise CheckpointError("K003", f"no checkpoint {name!r} in {self.folder}; there are: {existing}", help)
        self.verify(step)
        return step

    def valid_best(self) -> int | None:
        """The best checkpoint that is not damaged; None if there is none.

        A damaged one is moved to `quarantine/`, as is every one whose manifest, which has its loss, is damaged.
        """
        self._verified.clear()
        for step in self.steps():
            damage = find_manifest_damage(self.folder / str(step))
            if damage and not self._run_folder.is_old_checkpoint(step):
                self._set_aside(step, self._unreadable(step, damage))
        return self._first_valid(self.best)

    def _first_valid(self, choose: Callable[[], int | None]) -> int | None:
        """The step that `choose` returns, once it is a valid one."""
        while (step := choose()) is not None:
            try:
                self.verify(step)
            except DamagedCheckpointError as error:
                self._set_aside(step, error)
            else:
                return step
        return None

    def verify(self, step: int) -> None:
        """Raises `DamagedCheckpointError` K003 if any file of the checkpoint differs from what was saved."""
        path = self.folder / str(step)
        if step in self._verified:
            return
        if self._run_folder.is_old_checkpoint(step):
            warn(f"{path} was saved before checkpoints had manifests: its files cannot be verified")
        elif damage := find_damage(path):
            raise self._unreadable(step, damage)
        self._verified.add(step)

    def _set_aside(self, step: int, error: CheckpointError) -> None:
        """Moves a damaged checkpoint to `quarantine/`, unless another process uses the run, and says so."""
        path = self.folder / str(step)
        outcome = "it is skipped"
        try:
            if self._run and not distributed.is_main():
                raise StorageError("S001", f"process 0 uses '{self.folder}'")
            with nullcontext() if self._run else self._run_folder.lock():
                outcome = f"moved to {move_to_quarantine(path, self._run_folder.quarantine)}"
        except (OSError, StorageError):
            self._damaged.add(step)
        self._losses.pop(step, None)
        warn(f"{error.message}; {outcome}")

    def restore_newest(self, template: TrainState) -> TrainState | None:
        """The state of the newest valid checkpoint; None if there is none. Damaged ones are moved to `quarantine/`.

        Raises `CheckpointError` K004 if it was made for another model, K005 if it belongs to another run.
        """
        self._forget_manager()
        while (step := distributed.share(lambda: self._first_valid(self.latest))) is not None:
            self._verified.add(step)
            try:
                return self.restore(template, step)
            except DamagedCheckpointError as error:
                if has_manifest(self.folder / str(step)):
                    raise  # its bytes are right: something else failed, such as memory
                self._set_aside(step, error)
        return None

    def restore(self, template: TrainState, step: int) -> TrainState:
        """The state of `step` with the shapes, types and shardings of `template`, a state of `ShapeDtypeStruct`s.

        Raises `CheckpointError` K004 if the checkpoint was made for another model, K005 if it belongs to another run,
        and `DamagedCheckpointError` K003 if it cannot be read.
        """
        self.verify(step)
        self.check_fit(template, step)
        with self._reading(step) as checkpointer:
            tree = checkpointer.restore(self._state(step), args=ocp.args.StandardRestore(as_tree(template)))
            return as_state(tree, template)

    def check_fit(self, template: TrainState, step: int) -> None:
        """Raises what `restore` would raise, without reading any array."""
        path = self.folder / str(step)
        if has_manifest(path) and self._run_folder.config_file.exists():
            self._run_folder.check_manifest(Manifest.read(path))
        with self._reading(step) as checkpointer:
            leaves = checkpointer.metadata(self._state(step)).item_metadata
        if not leaves:
            raise self._unreadable(step, "it does not hold a state")
        check_tree(dict(leaves.tree), as_tree(template), f"{self.folder}/{step}")

    def _state(self, step: int) -> Path:
        return self.folder.absolute() / str(step) / "state"

    @contextmanager
    def _reading(self, step: int) -> Iterator[ocp.Checkpointer]:
        _suppress_tensorstore_warnings()
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                yield checkpointer
        except Exception as error:  # a damaged folder makes Orbax raise errors of many types
            reason = str(error) or type(error).__name__
            raise self._unreadable(step, reason.splitlines()[0][:200]) from error

    def _unreadable(self, step: int, reason: str) -> "DamagedCheckpointError":
        path = f"{self.folder}/{step}"
        help = "without --step, the newest valid checkpoint is used, and this one is moved to quarantine/"
        return DamagedCheckpointError("K003", f"{path} cannot be read: {reason}", help)


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is not as it was saved (K003)."""


def restore_fork(template: TrainState, fork: CheckpointRef | None) -> TrainState | None:
    """The state of the checkpoint `fork`; None without one."""
    if fork is None:
        return None
    with Checkpoints(fork.run.checkpoints) as source:
        return source.restore(template, source.resolve_step(fork.step))


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
