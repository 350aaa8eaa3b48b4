"""`python -m jaxgpt.train --config FILE`: trains a model from a folder of tokens, resuming where it stopped.

A run is its folder: the same command resumes it from its newest checkpoint, or reports that it is done. The batch,
dropout and learning rate of a step are functions of (seed, step), so a resumed run is bitwise identical to an
uninterrupted one.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from jaxgpt import errors
from jaxgpt.config import Config, Model, Run
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.options import Parser, given_values, integer
from jaxgpt.errors import ConfigError, DataError, JaxgptError, NonFiniteError, NoShardsError, Stopped
from jaxgpt.generation.options import SamplingOptions
from jaxgpt.runs.folder import CheckpointRef, RunFolder, find_run
from jaxgpt.runs.log import DONE, StopReason, warn
from jaxgpt.utils.loading import loading
from jaxgpt.utils.output import tolerant_output
from jaxgpt.utils.signals import EXIT_STATUS, NOTHING_LOST, GracefulShutdown, heard_signals

if TYPE_CHECKING:
    from jaxgpt.data.dataset import TokenDataset
    from jaxgpt.diagnose.live import LiveDiagnosis
    from jaxgpt.training.loaded_model import LoadedModel
    from jaxgpt.training.records import Scores
    from jaxgpt.training.session import TrainingSession

DESCRIPTION = (
    "Trains a config. A run is its folder: the same command resumes it from the newest checkpoint, or reports that it "
    "is done. The batch of a step, its dropout and its learning rate depend only on the seed and the step, so a "
    "resumed run is bitwise identical to an uninterrupted one."
)
EXAMPLES = """examples:
  python -m jaxgpt.train --config quickstart
  python -m jaxgpt.train --config mine.py --dry-run
  python -m jaxgpt.train --config fineweb40m --run.name mine --run.steps 2000
"""
SIGNAL = StopReason("signal")


def train(
    config: Config, fork: CheckpointRef | None = None, config_name: str = "", *, confirmed: bool = True
) -> RunFolder:
    """Trains until `config.run.steps`, resuming from the run folder's newest checkpoint if it has one.

    A new run starts from the checkpoint `fork`, if one is given. `config_name` is the config's file or built-in name,
    for the commands that are suggested at the end. A run that is not `confirmed` is refused if it repeats its data too
    often or takes days. Raises a `JaxgptError` for what the user can fix, and
    `Stopped` after a signal, when everything is saved.
    """
    # Imported here because some of these load JAX, which takes seconds: by now the command line is known to be right.
    from jaxgpt.budget import plan_file, preflight
    from jaxgpt.budget.devices import peak_flops
    from jaxgpt.diagnose.live import LiveDiagnosis, report_at_end
    from jaxgpt.training import distributed, messages
    from jaxgpt.training.session import open_run, start_session

    with ExitStack() as stack:
        stack.enter_context(tolerant_output())
        shutdown = stack.enter_context(GracefulShutdown(agree=distributed.agree))

        # Open the run: whatever may refuse it does so here, before its files are written.
        check_cost = None if confirmed else preflight.check_cost
        run = stack.enter_context(open_run(config, fork, preflight.check_memory, check_cost))
        if reason := run.already_stopped():
            run.checkpoints.valid_best()  # warns of a damaged one, which the commands below would not use
            print(messages.already_stopped(reason, config, config_name, run.folder, run.start_step))
            return run.folder

        # Start it: its folder gets the config, the plan and the log, and a report when all that follows has ended.
        if distributed.is_main():  # of several processes, only this one writes to the folder, apart from checkpoints
            run.folder.write_identity(config, run.tokens, run.dataset.tokenizer)
            plan_file.write_plan(run.folder, run.config, run.dataset.train.tokens, run.device_kind, run.mesh.size)
            stack.enter_context(report_at_end(run.folder))
        session = stack.enter_context(start_session(run, shutdown, peak_flops(run.device_kind)))
        diagnosis = LiveDiagnosis(run.folder, forecasting=session.display.live, stopping=config.run.early_stop)

        # Train.
        if run.start_step == 0 or run.lacks_evaluation():
            session.evaluate()
            record_sample(session)  # compiles what samples, before the steps are timed
        elif run.is_resumed and session.display.live:
            forecast = LiveDiagnosis(run.folder, forecasting=True, stopping=False).check().forecast
            session.recorder.forecast(forecast)
        with keeping_last_state(session):
            stop = run_with_rewinds(session, diagnosis, shutdown) if session.step < config.run.steps else DONE
        run.checkpoints.wait()  # nothing is reported as saved before it is on the disk
        if stop is SIGNAL and shutdown.exit_status is not None:
            raise Stopped(messages.stopped_by_signal(session.step, run.folder), shutdown.exit_status)

        # Finish: the result below the display, and what to do next.
        session.log.stop_reason = stop
        finish(session, stop, config_name)
    return run.folder


def dry_run(config: Config) -> None:
    """Prints the plan of a run, its memory and the text of its first batch; trains nothing and writes nothing.

    Raises the `JaxgptError`s that `train` would raise before its first step.
    """
    from jaxgpt.budget import plan_file, preflight  # these load JAX, like those of `train`
    from jaxgpt.training import messages
    from jaxgpt.training.batches import train_batches
    from jaxgpt.training.session import check_run
    from jaxgpt.utils.report import print_report

    run = check_run(config, preflight.check_memory, open_prepared)
    tokens = plan_file.count_tokens(run.config, run.dataset.train.tokens)
    plan = plan_file.plan_of_run(run.config, tokens, run.device_kind, run.mesh.size)
    memory = tuple(section for section in plan.sections if section.title == "Memory")
    print_report(dataclasses.replace(plan, sections=memory))
    with train_batches(run.config, run.dataset.train, run.mesh, 0, run.dataset.vocab_size) as batches:
        print(messages.first_batch(next(iter(batches)), run.dataset.tokenizer))
    print("\ndry run: nothing was trained or written; the same command without --dry-run trains")


def open_prepared(config: Config) -> "TokenDataset":
    """The tokens of `config`. Raises `NoShardsError` D002 if they are still to be prepared."""
    from jaxgpt.data.dataset import open_folder

    try:
        return open_folder(config.data.path)
    except NoShardsError as error:
        if not config.data.sources:
            raise
        raise error.replace(help="the same command without --dry-run prepares them from data.sources") from None


def run_with_rewinds(session: "TrainingSession", diagnosis: "LiveDiagnosis", shutdown: GracefulShutdown) -> StopReason:
    """`run_steps`, again from the newest checkpoint where `run.on_nonfinite` says so. Returns why it ended."""
    while True:
        try:
            return run_steps(session, diagnosis, shutdown)
        except NonFiniteError as error:
            session.rewind(error)


def run_steps(session: "TrainingSession", diagnosis: "LiveDiagnosis", shutdown: GracefulShutdown) -> StopReason:
    """The training loop. Returns why it ended; the state after its last step is then being saved."""
    from jaxgpt.diagnose.live import find_instability
    from jaxgpt.training import distributed
    from jaxgpt.training.profiler import Profiler

    config = session.config.run
    checkpoints = session.run.checkpoints
    profiler = Profiler(config, session.run.folder.profile, session.display.print)
    with session.open_batches() as batches, profiler:
        for batch in distributed.in_step(batches):
            profiler.before_step(session.step)
            metrics = session.train_step(batch)
            step = session.step  # steps done, with this one
            profiler.after_step(step, metrics)
            session.recorder.step(step - 1, metrics)  # records the step before; the device still computes this one
            shutdown.enable_save()
            checkpoints.raise_failed_save()

            is_last = step == config.steps
            is_evaluation = is_last or step % config.eval_every == 0
            scores, stop = evaluate(session, diagnosis, shutdown) if is_evaluation else (None, None)
            stop = SIGNAL if shutdown.is_requested() else stop
            if stop or is_last or session.best.step == step or step % config.save_every == 0:
                checkpoints.unstable_since = distributed.share(lambda: find_instability(session.run.folder))
                session.save(scores)
                stop = SIGNAL if shutdown.is_requested() else stop  # a signal may have arrived during the save
            if stop and not (is_last and scores):
                return stop
    return DONE


def evaluate(
    session: "TrainingSession", diagnosis: "LiveDiagnosis", shutdown: GracefulShutdown
) -> "tuple[Scores | None, StopReason | None]":
    """Evaluates, samples and diagnoses: the scores, None if a signal ended the evaluation, and a reason to stop."""
    from jaxgpt.training import distributed

    scores = None if shutdown.is_requested() else session.evaluate()
    if shutdown.is_requested():
        return scores, SIGNAL
    record_sample(session)
    with session.recorder.pause():
        forecast, stop = diagnosis.check() if distributed.is_main() else (None, None)
        agreed = distributed.agree(stop)
    session.recorder.forecast(forecast)
    return scores, agreed and StopReason(*agreed)


@contextmanager
def keeping_last_state(session: "TrainingSession") -> Iterator[None]:
    """Saves the state where the data fails, and names the last good checkpoint where the state is not finite."""
    checkpoints = session.run.checkpoints
    try:
        yield
    except DataError as error:
        raise error.replace(message=f"{error.message}; {_save_after_error(session)}") from error
    except NonFiniteError as error:
        checkpoints.wait()
        latest, best = checkpoints.latest(), checkpoints.best()
        if latest is None:
            message = f"{error.message}; there is no checkpoint before it"
            raise error.replace(message=message, help="start again with a lower --optim.learning-rate") from error
        others = f", the best one that of step {best:,}" if best not in (None, latest) else ""
        message = f"{error.message}; the last checkpoint is that of step {latest:,}{others}"
        raise error.replace(message=message) from error


def _save_after_error(session: "TrainingSession") -> str:
    """Saves the state if it has steps that no checkpoint has; what came of it."""
    checkpoints = session.run.checkpoints
    if session.step == session.run.start_step:
        return "no step was trained"
    try:
        if session.step not in checkpoints.steps():
            session.save(None)
        checkpoints.wait()
    except JaxgptError as failure:
        return f"the steps since the last checkpoint are lost, because {failure.message}"
    return f"the run is saved after step {session.step:,}"


def generate_sample(model: "LoadedModel", config: Run) -> str | None:
    """The text with which the model continues the prompt of `config`; None, with a warning, if that fails.

    Of several processes, only process 0 generates it.
    """
    from jaxgpt.generation.sampler import generate_texts
    from jaxgpt.training import distributed

    if not distributed.is_main():
        return None
    sampling = SamplingOptions(config.sample_temperature)
    prompt = config.sample_prompt
    try:
        return next(generate_texts(model, prompt, count=config.sample_tokens, sampling=sampling, seed=config.seed))
    except Exception as error:  # the device may have too little memory, the tokenizer may not have the prompt
        warn(f"no sample after step {model.step:,}: {error}")
        return None


def record_sample(session: "TrainingSession") -> None:
    """Writes a sample of the current model to the log, if the config asks for one."""
    config = session.config.run
    if not config.sample_prompt or session.step == config.steps:  # `finish` samples the last model
        return
    with session.recorder.pause():
        text = generate_sample(session.model(), config)
        if text is not None:
            session.recorder.sample(session.step, config.sample_prompt, text)


def finish(session: "TrainingSession", stop: StopReason, config_name: str) -> None:
    """Prints the result, a sample if the config asks for one, and what to do next."""
    from jaxgpt.budget import plan_file  # these load JAX, like those of `train`
    from jaxgpt.training import distributed, messages

    run = session.run
    display = session.display
    config = session.config.run
    display.close()  # what follows is printed below it
    if stop.is_early:
        display.print(messages.stopped_early(session.step, config.steps, stop.detail))
    if session.scores:
        display.print(messages.result(session.scores, session.best, run.dataset, session.step, stop))
        display.print(plan_file.final_comparison(run.folder))
    if config.sample_prompt:
        model = session.best_model() if stop.is_early else session.model()
        text = generate_sample(model, config)
        if text is not None:
            session.recorder.sample(model.step, config.sample_prompt, text)
            display.print(f"\nsample of step {model.step:,}:\n{config.sample_prompt}{text}\n")
    if config.export == "hf":
        model = session.best_model() if stop.is_early else session.model()  # of all processes
        if distributed.is_main():
            display.print(export_model(model, run.folder))
    if stop.is_early:
        display.print(messages.next_commands(run.folder, "best", ""))
    else:
        longer = messages.longer_command(run.user_config, config_name, run.folder, session.step)
        display.print(messages.next_commands(run.folder, "latest", longer))


def export_model(model: "LoadedModel", folder: RunFolder) -> str:
    """Writes `model` into the run's folder as Hugging Face reads it; what was written, or why it was not."""
    from jaxgpt.export.exporter import export_hf

    try:
        return f"exported {export_hf(folder, model, folder.path / 'export' / f'hf-{model.step}')}"
    except Exception as error:  # the run is trained and saved: a full disk or device must not fail it
        return f"not exported: {error}"


def make_parser() -> Parser:
    """The command's own options; `parse_config` adds those of the config."""
    parser = Parser("train", DESCRIPTION, "[--config FILE] [--SECTION.FIELD VALUE ...]", EXAMPLES)
    parser.add_argument(
        "--fork",
        metavar="RUN",
        help="start a new run from the newest checkpoint of this one, or from RUN/checkpoints/STEP",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, the memory and the first batch as text; train nothing and write nothing",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="use the fastest program for the training step that tune has found here; measures first, for about 3 "
        "minutes, if it has not (docs/tune.md)",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="train with other processes (docs/clusters.md): the address of process 0, for all of them; Slurm, "
        "Open MPI and Kubernetes are detected",
    )
    parser.add_argument("--num-processes", metavar="N", type=integer, help="the number of processes of the run")
    parser.add_argument("--process-id", metavar="I", type=integer, help="the number of this process, from 0")
    parser.add_argument(
        "--yes",
        action="store_true",
        help="start the run even if it has more than 20 epochs or takes more than 3 days",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Trains the config that the command line describes."""
    config, options = parse_config(make_parser(), argv)
    fork = find_run(options.fork) if options.fork else None
    if config.run.init_from:
        from jaxgpt.convert.initial import resolve_network  # loads the tokenizers' library

        config = resolve_network(config, given_values(Model, options), fork.run if fork else None)

    with loading("JAX", {number: EXIT_STATUS[number] for number in heard_signals()}, NOTHING_LOST):
        from jaxgpt.training import distributed, jax_setup, session  # noqa: F401 - `session` loads all of a run

    jax_setup.configure_jax()
    launch = distributed.find_launch(options.coordinator, options.num_processes, options.process_id, os.environ)
    if options.tune:
        config = tuned(config, launch, fork, measure=not options.dry_run)
    if options.dry_run:
        dry_run(config)
        return
    with distributed.joined(launch):
        train(config, fork, options.config, confirmed=options.yes)


def tuned(config: Config, launch: object | None, fork: CheckpointRef | None = None, *, measure: bool = True) -> Config:
    """`config` with the fastest program for its step, which is measured, with `measure`, if it is not known.

    Raises `ConfigError` C039 for a run of several processes, and before it measures what `train` would raise after it.
    """
    from jaxgpt.training.session import check_files
    from jaxgpt.tune.command import print_now, tuned_config

    if launch is not None:
        help = "tune on one host, and give its options to all processes"
        raise ConfigError("C039", "--tune measures in one process, and this run has several", help)
    check_files(config, fork)
    return tuned_config(config, print_now, measure=measure)


if __name__ == "__main__":
    sys.exit(errors.run(main))
