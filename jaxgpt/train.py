"""`python -m jaxgpt.train --config FILE`: the run, from tokens to a trained model that can be resumed to the bit.

A run is its folder: the same command resumes it from the newest checkpoint, or says that it is done. The batch of a
step, its dropout and its learning rate are functions of (seed, step), so a resumed run is the uninterrupted one.
"""

import platform
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

import jaxgpt
from jaxgpt import errors, sample
from jaxgpt.budget import plan_file, preflight
from jaxgpt.config import Config, Run
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.options import Parser
from jaxgpt.data import dataset
from jaxgpt.data.dataset import TokenDataset
from jaxgpt.diagnose import report
from jaxgpt.diagnose.stopper import MARK
from jaxgpt.diagnose.watch import Watch
from jaxgpt.errors import ConfigError, DataError, Stopped
from jaxgpt.evaluate import Evaluator
from jaxgpt.prepare.pipeline import prepare
from jaxgpt.runs import folder as runfolder
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import RunLog
from jaxgpt.training import batches as data
from jaxgpt.training import console as display
from jaxgpt.training import jax_setup, step
from jaxgpt.training import messages as announce
from jaxgpt.training import optimizer as optim
from jaxgpt.training.checkpoint import Checkpoints, Loaded, resolved
from jaxgpt.training.console import Screen
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.metrics import Recorder, Scores
from jaxgpt.training.step import TrainState
from jaxgpt.utils.signals import GracefulShutdown

DESCRIPTION = (
    "Trains a config. A run is its folder: the same command resumes it from the newest checkpoint, or says that it is "
    "done. The batch of a step, its dropout and its learning rate depend only on the seed and the step, so a resumed "
    "run is bitwise identical to an uninterrupted one."
)


class Fork(NamedTuple):
    """A checkpoint to start from: of which run, and its step or "latest"."""

    run: RunFolder
    step: str = "latest"


def train(config: Config, fork: Fork | None = None) -> RunFolder:
    """Trains until `config.run.steps`, resuming from the run's folder if that holds a checkpoint.

    `fork` is a checkpoint of another run that a new run starts from. Raises `JaxgptError` for what its reader can mend,
    and `Stopped` after a signal, when everything is saved.
    """
    stated, mesh = config, make_mesh(config.mesh, config.data.micro_batch)
    config = resolved(config, mesh)
    folder = RunFolder.of(config)
    with ExitStack() as stack:
        enter = stack.enter_context
        stop = enter(GracefulShutdown())
        folder.check_place()
        folder.check_config(stated)
        preflight.check_memory(config, jax_setup.device_bytes(mesh), mesh.size)
        tokens = open_tokens(config)
        optimizer = optim.make_optimizer(config.optim, config.run.steps)
        template = step.abstract_state(config, optimizer, mesh)
        if fork is not None and not folder.config_file.exists():
            check_fork(config, fork, tokens, template)
        enter(folder.lock())
        folder.check_config(stated)
        folder.check_tokens(tokens.identity)
        checkpoints = enter(Checkpoints(folder.checkpoints, config.run))
        state = restored(template, checkpoints, fork) or step.compile_init(config, optimizer, mesh)()
        first, run = int(state.step), config.run
        if over := announce.over(folder, run, first):
            print(over)
            return folder
        folder.record(stated, tokens.identity, tokens.tokenizer)
        plan_file.write_plan(folder, config, tokens.train.tokens, mesh.devices.flat[0].device_kind)

        graphdef = step.model_graphdef(config.model)
        train_step = step.compile_train_step(config, graphdef, optimizer, mesh)
        enter(report.kept(folder))
        log = enter(RunLog(folder.log_file))
        log.write("start", **about(stated, mesh, first), fork=fork and str(fork.run.path))
        print(announce.opening(config, tokens, list(mesh.devices.flat), folder, first), flush=True)
        screen = enter(display.open_display(config))
        stop.on_abort = screen.close
        record = enter(Recorder(config, log, screen, tokens.train, mesh, folder.tensorboard))
        watch = Watch(folder, shown=screen.live, stopping=run.early_stop)
        between = Between(run, Evaluator(config, tokens, mesh, graphdef), checkpoints, record, stop, watch)
        if first == 0:
            between.evaluate(0, state)
        batches = enter(data.train_batches(config, tokens.train, mesh, first, tokens.vocab_size))
        for done, block in enumerate(batches, start=first + 1):
            state, metrics = train_step(state, block)
            record.step(done - 1, metrics)
            if between.steps(done, state):
                log.reason = MARK + between.advice
                break
        trained = Loaded(config, graphdef, state.params, tokens.tokenizer, mesh, done)
        finish(trained, tokens, folder, between, screen)
    return folder


class Between:
    """What happens between two steps when it is due: evaluating, saving, stopping."""

    def __init__(
        self,
        run: Run,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        record: Recorder,
        stop: GracefulShutdown,
        watch: Watch,
    ) -> None:
        self._run, self._evaluator, self._checkpoints = run, evaluator, checkpoints
        self._record, self._stop, self._watch = record, stop, watch
        self._best = checkpoints.best_loss()
        self.last: Scores | None = None
        self.advice = ""  # why the run should end here, by its own diagnosis

    def steps(self, done: int, state: TrainState) -> bool:
        """After `done` updates: evaluates and saves if due; whether the run ends here by its own advice.

        Raises `Stopped` if a signal asked for that.
        """
        self._stop.enable_save()
        self._checkpoints.check()
        last, stopping = done == self._run.steps, self._stop.exit_status is not None
        scores = self.evaluate(done, state) if last or done % self._run.eval_every == 0 else None
        improved = scores is not None and scores.main.loss < self._best
        if scores is not None:
            self._best = min(self._best, scores.main.loss)
        early = bool(self.advice) and not last
        if last or stopping or improved or early or done % self._run.save_every == 0:
            self._save(done, state, scores)
        if self._stop.exit_status is not None and stopping and not last:
            self._checkpoints.wait()
            message = f"stopped after step {done:,}, saved; the same command goes on from there"
            raise Stopped(message, self._stop.exit_status)
        if early:
            self._checkpoints.wait()
        return early

    def evaluate(self, done: int, state: TrainState) -> Scores:
        with self._record.pause():
            self.last = self._evaluator(state.params)
            self._record.scores(done, self.last)
            if done:
                forecast, self.advice = self._watch.look()
                self._record.forecast(forecast)
        return self.last

    def _save(self, done: int, state: TrainState, scores: Scores | None) -> None:
        with self._record.pause():  # the pause reads the step's loss first: a state that is not finite is never saved
            self._checkpoints.save(done, state, scores.main.loss if scores else None)
            self._record.saved(done)


def open_tokens(config: Config) -> TokenDataset:
    """The config's tokens, prepared first where it names sources for them, every one of them read and checked."""
    try:
        tokens = dataset.open_folder(config.data.path)
    except DataError as error:
        if error.code != "D002" or not config.data.sources:
            raise
        how = config.data
        prepare(
            how.sources,
            how.path,
            tokenizer=how.tokenizer,
            train_tokenizer=how.train_tokenizer,
            val_tokens=how.val_tokens,
        )
        tokens = dataset.open_folder(how.path)
    dataset.check_vocabulary(config.model.vocab_size, tokens)
    for split in (tokens.train, tokens.val):
        if split:
            split.windows(config.model.block_size)
    with display.checking("checking the tokens") as progress:
        tokens.verify(progress)
    return tokens


def check_fork(config: Config, fork: Fork, tokens: TokenDataset, template: TrainState) -> None:
    """Raises a `JaxgptError` if a new run with `config` on `tokens` cannot start where `fork` is."""
    fork.run.check_tokenizer(tokens.identity)
    with Checkpoints(fork.run.checkpoints) as source:
        done = source.find(fork.step)
        source.check_fit(template, done)
    if done >= config.run.steps:
        what = f"run.steps = {config.run.steps}; the run to fork has {done} steps already"
        raise ConfigError("C030", what, f"--run.steps {2 * done}")


def restored(template: TrainState, checkpoints: Checkpoints, fork: Fork | None) -> TrainState | None:
    """The newest checkpoint's state, else that of the checkpoint to fork from, if there is one."""
    latest = checkpoints.latest()
    if latest is not None:
        return checkpoints.restore(template, latest)
    if fork is not None:
        with Checkpoints(fork.run.checkpoints) as source:
            return source.restore(template, source.find(fork.step))
    return None


def about(config: Config, mesh: Mesh, first: int) -> dict[str, Any]:
    """What the log's first record says of the run: its config, versions and devices."""
    devices = list(mesh.devices.flat)
    versions = {"jaxgpt": jaxgpt.__version__, "jax": jax.__version__, "python": platform.python_version()}
    device = {"kind": devices[0].device_kind, "count": len(devices)}
    return {"step": first, "config": config.to_dict(), "versions": versions, "device": device}


def finish(trained: Loaded, tokens: TokenDataset, folder: RunFolder, between: Between, screen: Screen) -> None:
    """Shows a sample, if the config asks for one, the result, and what to do next."""
    screen.close()  # what follows stands below the panel
    run = trained.config.run
    if trained.step < run.steps:
        screen.say(announce.stopped_early(trained.step, run.steps, between.advice))
    if run.sample_prompt:
        text = next(sample.texts(trained, run.sample_prompt, count=run.sample_tokens, seed=run.seed))
        screen.say(f"\nsample:\n{run.sample_prompt}{text}\n")
    if between.last:
        screen.say(announce.closing(between.last, tokens, folder, trained.step))
        screen.say(plan_file.final_comparison(folder))


def main(argv: Sequence[str]) -> None:
    """Trains the config that the command line describes."""
    parser = Parser("train", DESCRIPTION, "[--config FILE] [--SECTION.FIELD VALUE ...]")
    parser.add_argument(
        "--fork",
        metavar="RUN",
        help="a new run starts from the newest checkpoint of this one, or at RUN/checkpoints/STEP",
    )
    config, options = parse_config(parser, argv)
    jax_setup.set_up()
    train(config, Fork(*runfolder.find(options.fork)) if options.fork else None)


if __name__ == "__main__":
    sys.exit(errors.run(main))
