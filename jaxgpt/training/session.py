"""A run, first opened and then in training: what `jaxgpt.train` puts together."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

import jaxgpt
from jaxgpt.config import Config
from jaxgpt.data import dataset as datasets
from jaxgpt.data.dataset import Split, TokenDataset
from jaxgpt.errors import ConfigError, DataError, NonFiniteError, NoShardsError, printable
from jaxgpt.prepare.pipeline import prepare
from jaxgpt.runs.folder import CheckpointRef, RunFolder
from jaxgpt.runs.log import DONE, STEP_KINDS, RunLog, StopReason, read_log, read_stop_reason, warn
from jaxgpt.runs.rewinds import MAX_REWINDS, Rewinds
from jaxgpt.training import batches, console, disk_space, distributed, jax_setup, messages, step
from jaxgpt.training import optimizer as optim
from jaxgpt.training.batches import Batches
from jaxgpt.training.checkpoint import Checkpoints, restore_fork
from jaxgpt.training.evaluator import Evaluator, Interrupted
from jaxgpt.training.initial_weights import replace_params
from jaxgpt.training.loaded_model import LoadedModel, resolve_auto
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.recorder import Recorder
from jaxgpt.training.records import BestEvaluation, Display, Scores
from jaxgpt.training.step import Metrics, TrainState
from jaxgpt.training.tracker import Tracker, open_trackers
from jaxgpt.training.tracker_backends import TrackedRun, check_installed
from jaxgpt.training.watchdog import Watchdog, end_hung_run
from jaxgpt.utils.signals import GracefulShutdown

MemoryCheck = Callable[[Config, int | None, int], None]
CostCheck = Callable[[Config, int, str, int], None]


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """A run whose config, devices, folder and tokens fit together; nothing is written yet.

    `user_config` may have `auto` settings, which `config` has resolved for the devices of `mesh`. `tokens`
    identifies the tokens of `dataset`, with a checksum of every byte.
    """

    user_config: Config
    config: Config
    mesh: Mesh
    folder: RunFolder
    dataset: TokenDataset
    tokens: dict[str, Any]

    @property
    def device_kind(self) -> str:
        kind: str = self.mesh.devices.flat[0].device_kind
        return kind


@dataclass(frozen=True, kw_only=True)
class OpenRun(CheckedRun):
    """A run that may train: all that could refuse it has been checked, and its folder is locked by this process.

    `state` is the state after `start_step` steps; `is_resumed` if it is from a checkpoint of the run itself. `restore`
    returns the newest state that is saved, which is the one to start from while there is no checkpoint.
    """

    fork: CheckpointRef | None
    optimizer: optax.GradientTransformation
    checkpoints: Checkpoints
    state: TrainState
    start_step: int
    is_resumed: bool
    rewinds: Rewinds
    restore: Callable[[], TrainState]

    def already_stopped(self) -> StopReason | None:
        """Why an earlier process ended the run; None if there are steps left to train, or the last to evaluate."""
        if self.start_step >= self.config.run.steps:
            return None if self.lacks_evaluation() else DONE
        if not self.config.run.early_stop or not self.start_step:
            return None
        reason = read_stop_reason(self.folder.log_file)
        return reason if reason and reason.is_early else None

    def lacks_evaluation(self) -> bool:
        """Whether a signal ended the evaluation after the last step before this resume."""
        if not self.is_resumed:
            return False
        last = [record for record in _earlier_records(self) if record["kind"] in ("eval", "step")][-1:]
        is_due = self.start_step % self.config.run.eval_every == 0 or self.start_step == self.config.run.steps
        return bool(last) and is_due and last[0]["kind"] == "step"


@contextmanager
def open_run(
    config: Config, fork: CheckpointRef | None, check_memory: MemoryCheck, check_cost: CostCheck | None = None
) -> Iterator[OpenRun]:
    """Opens the run of `config` for training. May prepare its data; creates its folder, lock and `checkpoints/`.

    A new run starts from the checkpoint `fork`, if one is given. `check_memory` is called with the config, the bytes
    that JAX may use of each device (None if unknown) and the number of devices; `check_cost`, for a new run, with the
    config, the training tokens, the kind of device and the number of devices. Raises a `JaxgptError` for whatever
    the user has to fix before the run can train.
    """
    with ExitStack() as stack:
        with distributed.main_first():
            run = check_run(config, check_memory, _open_or_prepare)
            folder = run.folder
            if check_cost is not None and fork is None and not folder.config_file.exists():
                check_cost(run.config, run.dataset.train.tokens, run.device_kind, run.mesh.size)
            optimizer = optim.make_optimizer(run.config)
        distributed.check_same_config(run.config)
        template = step.abstract_state(run.config, optimizer, run.mesh)
        if fork is not None and not folder.config_file.exists():
            check_fork(run.config, fork, run.dataset, template)
        with distributed.main_first():
            stack.enter_context(distributed.locked(folder))
            folder.check_config(config)  # another process may have started the run before the lock
            folder.check_tokens(run.tokens)
        distributed.check_same_tokens(run.tokens)
        identity = {"config": config.to_dict(), "tokens": run.tokens}
        checkpoints = stack.enter_context(Checkpoints(folder.checkpoints, run.config.run, identity))
        restore = partial(restore_state, run, fork, optimizer, template, checkpoints)
        state = restore()
        disk_space.check_before_run(folder.checkpoints, template, run.config.run)
        is_resumed = checkpoints.latest() is not None
        if is_resumed and distributed.is_main() and (problem := folder.log_problem()):
            warn(f"{folder.log_file}: {problem}; the run resumes all the same")
        checkpoints.rewinds = read_rewinds(run, fork, int(state.step), is_resumed=is_resumed)
        yield OpenRun(
            **vars(run),
            fork=fork,
            optimizer=optimizer,
            checkpoints=checkpoints,
            state=state,
            start_step=int(state.step),
            is_resumed=is_resumed,
            rewinds=checkpoints.rewinds,
            restore=restore,
        )


def check_run(config: Config, check_memory: MemoryCheck, open_tokens: Callable[[Config], TokenDataset]) -> CheckedRun:
    """Checks the trackers, devices, folder, memory and tokens of a run; for the arguments see `open_run`.

    `open_tokens` opens the config's tokens, of which every one is then read and verified.
    """
    check_installed(config)
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    resolved = resolve_auto(config, mesh)
    folder = RunFolder.from_config(resolved)
    folder.check_writable()
    folder.check_config(config)
    check_memory(resolved, jax_setup.device_memory_bytes(mesh), mesh.size)
    dataset = open_tokens(resolved)
    tokens = dataset.identity | {"tokens_xxh3_128": _verify(resolved, dataset)}
    return CheckedRun(user_config=config, config=resolved, mesh=mesh, folder=folder, dataset=dataset, tokens=tokens)


def check_files(config: Config, fork: CheckpointRef | None) -> None:
    """Checks what needs no device: the trackers, the folder, the fork, and the tokens if they are prepared."""
    check_installed(config)
    RunFolder.from_config(config).check_writable()
    if fork is not None:
        fork.run.check_model(config)
    try:
        dataset = datasets.open_folder(config.data.path)
    except NoShardsError:
        if not config.data.sources:
            raise
        return
    datasets.check_vocabulary(config.model.vocab_size, dataset)


def _verify(config: Config, dataset: TokenDataset) -> str:
    """Reads every token, and returns a checksum of them.

    Raises a `JaxgptError` if the model of `config` cannot train on these tokens.
    """
    datasets.check_vocabulary(config.model.vocab_size, dataset)
    batches.document_token(config, dataset)  # raises if it needs one and has none
    dataset.train.windows(config.model.block_size)  # raises if it has not a single window
    if dataset.val:
        _check_validation(config, dataset.val)
    with console.progress_bar("checking the tokens") as progress:
        return dataset.verify(progress)


def _check_validation(config: Config, val: Split) -> None:
    """Raises `DataError` D013 if the validation split has not a single window."""
    try:
        val.windows(config.model.block_size)
    except DataError as error:
        raise error.replace(message=f"validation has {error.message}") from error


def _open_or_prepare(config: Config) -> TokenDataset:
    """The config's tokens, prepared first if it names sources for them."""
    settings = config.data
    try:
        return datasets.open_folder(settings.path)
    except NoShardsError:
        if not settings.sources:
            raise
    prepare(
        settings.sources,
        settings.path,
        tokenizer=settings.tokenizer,
        train_tokenizer=settings.train_tokenizer,
        val_tokens=settings.val_tokens,
        suggest=False,
    )
    return datasets.open_folder(settings.path)


def check_fork(config: Config, fork: CheckpointRef, dataset: TokenDataset, template: TrainState) -> None:
    """Raises a `JaxgptError` if a new run of `config` on `dataset` cannot start from the checkpoint `fork`."""
    fork.run.check_files()
    fork.run.check_init_from(config)
    fork.run.check_tokenizer(dataset.identity)
    fork.run.check_model(config)
    with Checkpoints(fork.run.checkpoints) as source:
        fork_step = source.resolve_step(fork.step)
        source.check_fit(template, fork_step)
    if fork_step >= config.run.steps:
        message = f"run.steps = {config.run.steps}; the run to fork has {fork_step} steps already"
        raise ConfigError("C030", message, f"--run.steps {2 * fork_step}")


def restore_state(
    run: CheckedRun,
    fork: CheckpointRef | None,
    optimizer: optax.GradientTransformation,
    template: TrainState,
    checkpoints: Checkpoints,
) -> TrainState:
    """The state of the newest valid checkpoint; without one, that of the fork, or the state before the first step."""
    state = checkpoints.restore_newest(template)
    if state is None:
        run.folder.check_checkpoints_exist()
        state = restore_fork(template, fork)
    if state is not None:
        return state
    state = step.compile_init(run.config, optimizer, run.mesh)()
    return replace_params(state, run.config, run.dataset.tokenizer) if run.config.run.init_from else state


def read_rewinds(run: CheckedRun, fork: CheckpointRef | None, start_step: int, *, is_resumed: bool) -> Rewinds:
    """The rewinds of the run; those of the run that it forks leave out the same batches, if both read the same."""
    own = Rewinds.read(run.folder, start_step)
    if fork is None or is_resumed or not fork.run.has_same_batches(run.user_config, run.tokens):
        return own
    return Rewinds([*own.skipped, *Rewinds.read(fork.run, start_step).skipped], own.counts.elements())


class TrainingSession:
    """A run in training: its state after `step` steps, and what records it."""

    def __init__(
        self, run: OpenRun, log: RunLog, display: Display, recorder: Recorder, shutdown: GracefulShutdown
    ) -> None:
        self.run = run
        self.config = run.config
        self.step = run.start_step
        self.state = run.state
        self.log = log
        self.display = display
        self.recorder = recorder
        self.scores: Scores | None = None  # of the latest evaluation
        self.best = self._best_saved()
        self._files = run.dataset.file_ids()
        self._graphdef = step.model_graphdef(run.config.model)
        eot = batches.document_token(run.config, run.dataset)
        self._train_step = step.compile_train_step(run.config, self._graphdef, run.optimizer, run.mesh, eot)
        self._evaluator = Evaluator(run.config, run.dataset, run.mesh, self._graphdef, shutdown.is_requested)

    def open_batches(self) -> Batches:
        """The token blocks of all steps that are left."""
        run = self.run
        vocab_size = run.dataset.vocab_size
        return batches.train_batches(run.config, run.dataset.train, run.mesh, self.step, vocab_size, run.rewinds)

    def train_step(self, batch: jax.Array) -> Metrics:
        """Dispatches one optimizer step; the device may still be computing when this returns."""
        self.state, metrics = self._train_step(self.state, batch)
        self.step += 1
        return metrics

    def evaluate(self) -> Scores | None:
        """Evaluates the state and records its scores; None if a signal ended the evaluation."""
        with self.recorder.pause():
            try:
                self.scores = self._evaluator(self.state.params)
            except Interrupted:
                return None
            self.recorder.scores(self.step, self.scores)
        if self.step and self.scores.main.loss < self.best.loss:
            self.best = BestEvaluation(self.step, self.scores.main.loss)
        return self.scores

    def save(self, scores: Scores | None) -> None:
        """Saves the state in the background; `scores`, if it was evaluated, decide which checkpoint is the best."""
        with self.recorder.pause():  # reads the step's loss first: a state that is not finite is never saved
            self.run.checkpoints.save(self.step, self.state, scores.main.loss if scores else None)
            self.recorder.saved(self.step)
        self._warn_of_replaced_files()

    def _warn_of_replaced_files(self) -> None:
        """Warns once of each token file that was removed, or replaced by another one, since the run has opened it."""
        now = self.run.dataset.file_ids()
        for path, before in self._files.items():
            if now[path] != before:
                warn(
                    f"{path} was removed or replaced during the run, which continues to read the file it has opened; "
                    "it can be resumed only with the same tokens"
                )
        self._files = now

    def rewind(self, error: NonFiniteError) -> None:
        """Goes back to the newest checkpoint after a step that failed with `error`; its batch is left out from then on.

        Raises `error` if `run.on_nonfinite` does not say so, or after `MAX_REWINDS` rewinds to that checkpoint.
        """
        if self.config.run.on_nonfinite != "rewind" or error.step is None:
            raise error
        run = self.run
        run.checkpoints.wait()
        jax.tree.map(lambda leaf: leaf.delete(), self.state)  # there may be no memory for two states
        self.recorder.forget_step()
        with self.recorder.pause():
            self.state = run.restore()
        restored = int(self.state.step)
        if run.rewinds.counts[restored] == MAX_REWINDS:
            message = f"{error.message}, after {MAX_REWINDS} rewinds to step {restored:,}"
            raise error.replace(message=message)
        self.recorder.rewind(error.message, error.step, restored)
        self.step = restored
        self.best = self._best_saved()

    def _best_saved(self) -> BestEvaluation:
        return BestEvaluation(self.run.checkpoints.best() or 0, self.run.checkpoints.best_loss())

    def model(self) -> LoadedModel:
        """The model as it is now, for sampling."""
        run = self.run
        params = distributed.local_copy(self.state.params, run.mesh)
        return LoadedModel(run.config, self._graphdef, params, run.dataset.tokenizer, run.mesh, self.step)

    def best_model(self) -> LoadedModel:
        """The model of the best checkpoint that is not damaged, or that of now without one."""
        self.run.checkpoints.wait()
        best = distributed.share(self.run.checkpoints.valid_best)
        if best is None or best == self.step:
            return self.model()
        run = self.run
        template = step.abstract_state(run.config, run.optimizer, run.mesh)
        params = distributed.local_copy(run.checkpoints.restore(template, best).params, run.mesh)
        return self.model()._replace(params=params, step=best)


@contextmanager
def start_session(run: OpenRun, shutdown: GracefulShutdown, peak_flops: float | None) -> Iterator[TrainingSession]:
    """Starts the log, the display and the recorder of `run`. `peak_flops` is one device's peak, for the MFU."""
    windows = run.dataset.train.windows(run.config.model.block_size)
    all_devices_flops = peak_flops and peak_flops * run.mesh.size
    earlier_records = _earlier_records(run) if run.is_resumed else []
    with RunLog(run.folder.log_file if distributed.is_main() else Path(os.devnull)) as log:
        log.write("start", **_start_record(run))
        print(
            printable(messages.startup_banner(run.config, run.dataset, run.mesh, run.folder, _origin(run))), flush=True
        )
        with (
            console.open_display(run.config) as display,
            Watchdog(
                run.config.run.watchdog,
                lambda sentence: end_hung_run(sentence, run.folder.path, log, display.close),
            ) as watchdog,
            Recorder(
                run.config,
                log,
                display,
                epoch_windows=windows,
                peak_flops=all_devices_flops,
                watchdog=watchdog,
                rewinds=run.rewinds,
                trackers=_trackers(run),
            ) as recorder,
        ):
            display.restore(earlier_records)
            shutdown.on_abort = display.close
            shutdown.notify = display.notify
            yield TrainingSession(run, log, display, recorder, shutdown)


def _trackers(run: OpenRun) -> list[Tracker]:
    """Open trackers, in the process that writes."""
    if not distributed.is_main():
        return []
    return open_trackers(run.config.run.trackers, TrackedRun(run.folder, run.config))


def _origin(run: OpenRun) -> str:
    """What the run starts from, in a few words."""
    if run.is_resumed:
        return f"resumed at step {run.start_step:,}"
    if run.fork is not None:
        return f"forked from {run.fork.run.path} at step {run.start_step:,}"
    if run.config.run.init_from:
        return f"new, with the weights of {run.config.run.init_from}"
    return "new"


def _earlier_records(run: OpenRun) -> list[dict[str, Any]]:
    """The log's records of the steps before `start_step`, without those after it that a crash made obsolete."""
    records = read_log(run.folder.log_file) if run.folder.log_file.is_file() else []
    known = [record for record in records if record.get("kind") in (*STEP_KINDS, "stop")]
    return [record for record in known if record.get("step", 0) + (record["kind"] == "step") <= run.start_step]


def _start_record(run: OpenRun) -> dict[str, Any]:
    """The values of the log's `start` record: the step, config, versions, devices and fork of the run."""
    versions = {"jaxgpt": jaxgpt.__version__, "jax": jax.__version__, "python": platform.python_version()}
    device = {"kind": run.device_kind, "count": run.mesh.devices.size}
    return {
        "step": run.start_step,
        "config": run.user_config.to_dict(),
        "versions": versions,
        "device": device,
        "fork": run.fork and str(run.fork.run.path),
    }
