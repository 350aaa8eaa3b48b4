"""`python -m jaxgpt.train --config FILE`: trains a model from a folder of tokens, resuming where it stopped.

A run is its folder: the same command resumes it from its newest checkpoint, or reports that it is done. The batch,
dropout and learning rate of a step are functions of (seed, step), so a resumed run is bitwise identical to an
uninterrupted one.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from jaxgpt import errors
from jaxgpt.config import Config
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.options import Parser
from jaxgpt.errors import Stopped
from jaxgpt.generation.options import SamplingOptions
from jaxgpt.runs.folder import CheckpointRef, RunFolder, find_run
from jaxgpt.runs.log import DONE, StopReason
from jaxgpt.utils.signals import GracefulShutdown

if TYPE_CHECKING:
    from jaxgpt.diagnose.live import LiveDiagnosis
    from jaxgpt.training.session import TrainingSession

DESCRIPTION = (
    "Trains a config. A run is its folder: the same command resumes it from the newest checkpoint, or reports that it "
    "is done. The batch of a step, its dropout and its learning rate depend only on the seed and the step, so a "
    "resumed run is bitwise identical to an uninterrupted one."
)
SIGNAL = StopReason("signal")


def train(config: Config, fork: CheckpointRef | None = None) -> RunFolder:
    """Trains until `config.run.steps`, resuming from the run folder's newest checkpoint if it has one.

    A new run starts from the checkpoint `fork`, if one is given. Raises a `JaxgptError` for what the user can fix, and
    `Stopped` after a signal, when everything is saved.
    """
    # Imported here because some of these load JAX, which takes seconds: by now the command line is known to be right.
    from jaxgpt.budget import plan_file, preflight
    from jaxgpt.budget.devices import peak_flops
    from jaxgpt.diagnose.live import LiveDiagnosis, report_at_end
    from jaxgpt.training import messages
    from jaxgpt.training.session import open_run, start_session

    with ExitStack() as stack:
        shutdown = stack.enter_context(GracefulShutdown())

        # Open the run: whatever may refuse it does so here, before its files are written.
        run = stack.enter_context(open_run(config, fork, preflight.check_memory))
        if reason := run.already_stopped():
            print(messages.already_stopped(reason, run.folder, run.start_step, run.config.run.steps))
            return run.folder

        # Start it: its folder gets the config, the plan and the log, and a report when all that follows has ended.
        run.folder.write_identity(config, run.dataset.identity, run.dataset.tokenizer)
        plan_file.write_plan(run.folder, run.config, run.dataset.train.tokens, run.device_kind)
        stack.enter_context(report_at_end(run.folder))
        session = stack.enter_context(start_session(run, shutdown, peak_flops(run.device_kind)))
        diagnosis = LiveDiagnosis(run.folder, forecasting=session.display.live, stopping=config.run.early_stop)

        # Train.
        if run.start_step == 0:
            session.evaluate()
        stop = run_steps(session, diagnosis, shutdown)
        if stop is not DONE:
            run.checkpoints.wait()  # nothing is reported as saved before it is on the disk
        if stop is SIGNAL and shutdown.exit_status is not None:
            raise Stopped(messages.stopped_by_signal(session.step), shutdown.exit_status)

        # Finish: the result below the display, and what to do next.
        session.log.stop_reason = stop
        finish(session, stop)
    return run.folder


def run_steps(session: "TrainingSession", diagnosis: "LiveDiagnosis", shutdown: GracefulShutdown) -> StopReason:
    """The training loop. Returns why it ended; the state after its last step is then being saved."""
    config = session.config.run
    checkpoints = session.run.checkpoints
    best_loss = checkpoints.best_loss()
    with session.open_batches() as batches:
        for batch in batches:
            metrics = session.train_step(batch)
            step = session.step  # steps done, with this one
            session.recorder.step(step - 1, metrics)  # records the step before; the device still computes this one
            shutdown.enable_save()
            checkpoints.raise_failed_save()

            is_last = step == config.steps
            stop = SIGNAL if shutdown.exit_status is not None else None
            scores = None
            is_best = False
            if is_last or step % config.eval_every == 0:
                scores = session.evaluate()
                is_best = scores.main.loss < best_loss
                best_loss = min(best_loss, scores.main.loss)
                outlook = diagnosis.check()
                session.recorder.forecast(outlook.forecast)
                stop = stop or outlook.stop
            if stop or is_last or is_best or step % config.save_every == 0:
                session.save(scores)
            if stop and not is_last:
                return stop
    return DONE


def finish(session: "TrainingSession", stop: StopReason) -> None:
    """Prints a sample, if the config asks for one, then the result and what to do next."""
    from jaxgpt.budget import plan_file  # some of these load JAX, like those of `train`
    from jaxgpt.generation.sampler import generate_texts
    from jaxgpt.training import messages

    display = session.display
    folder = session.run.folder
    config = session.config.run
    display.close()  # what follows is printed below it
    if stop.is_early:
        display.print(messages.stopped_early(session.step, config.steps, stop.detail))
    if config.sample_prompt:
        sampling = SamplingOptions(config.sample_temperature)
        (text,) = generate_texts(
            session.model(), config.sample_prompt, count=config.sample_tokens, sampling=sampling, seed=config.seed
        )
        display.print(f"\nsample:\n{config.sample_prompt}{text}\n")
    if session.scores:
        display.print(messages.summary(session.scores, session.run.dataset, folder, session.step))
        display.print(plan_file.final_comparison(folder))


def main(argv: Sequence[str]) -> None:
    """Trains the config that the command line describes."""
    parser = Parser("train", DESCRIPTION, "[--config FILE] [--SECTION.FIELD VALUE ...]")
    parser.add_argument(
        "--fork",
        metavar="RUN",
        help="start a new run from the newest checkpoint of this one, or from RUN/checkpoints/STEP",
    )
    config, options = parse_config(parser, argv)
    fork = find_run(options.fork) if options.fork else None

    from jaxgpt.training import jax_setup  # loads JAX

    jax_setup.configure_jax()
    train(config, fork)


if __name__ == "__main__":
    sys.exit(errors.run(main))
