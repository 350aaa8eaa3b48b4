"""Runs the trials, each in a process of its own: some at a time, stopped early where it is hopeless, resumable."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from jaxgpt.diagnose.live import CONFIRMATIONS
from jaxgpt.errors import Stopped
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.training_process import POLL_SECONDS, TrainingProgress, training_command
from jaxgpt.sweep.early_stop import find_hopeless
from jaxgpt.sweep.folder import SweepFolder
from jaxgpt.sweep.grid import Trial
from jaxgpt.sweep.results import Outcome, read_outcome
from jaxgpt.utils.formatting import format_rough_duration, pluralize
from jaxgpt.utils.lock import LockedError, lock_file
from jaxgpt.utils.signals import EXIT_STATUS, heard_signals, signal_handler

EVALUATION = b'"kind": "eval"'
Say = Callable[[str], None]


class Runner:
    """Trains what is left of `trials`, `workers` at a time; `outcomes` has those that have ended, by name.

    `seconds` are the expected ones of each trial by name (empty: unknown). `say` shows a line to the user.
    """

    def __init__(
        self, folder: SweepFolder, trials: Sequence[Trial], seconds: Mapping[str, float], workers: int, say: Say
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._folder = folder
        self._trials = trials
        self._seconds = seconds
        self._workers = workers
        self._say = say
        self._running: list[Job] = []
        self._measured: list[tuple[float, float]] = []  # seconds that trials took, and that were expected
        self._signal: signal.Signals | None = None

    def read_outcomes(self, *, early_stop: bool) -> None:
        """Reads how earlier processes left the trials, and waits for a trial that one of them still trains.

        Without `early_stop`, a trial that the sweep stopped counts as one with steps left.
        """
        for trial in self._trials:
            folder = RunFolder.from_config(trial.config).path
            _wait_for_trainer(folder, self._say)
            stopped = self._folder.stopped.get(trial.name) if early_stop and folder.exists() else None
            outcome = read_outcome(trial) or stopped
            if outcome:
                self.outcomes[trial.name] = outcome

    def announce(self, name: str) -> None:
        """Says how many trials the sweep has, and the expected time of those that are left."""
        left = [trial for trial in self._trials if trial.name not in self.outcomes]
        done = f", {len(self.outcomes)} of them done" if self.outcomes else ""
        parallel = f", {self._workers} at a time" if self._workers > 1 else ""
        seconds = sum(self._seconds.get(trial.name, 0.0) for trial in left)
        expected = f"; about {format_rough_duration(seconds)}, by the plan" if seconds else ""
        self._say(f"sweep {name}: {pluralize(len(self._trials), 'trial')}{done}{parallel}{expected}")

    def run(self, *, early_stop: bool, options: Sequence[str]) -> None:
        """Trains the trials, each with the `options` of `train`; a failed one becomes an outcome.

        Raises `Stopped` after a signal, when the trials in progress are saved.
        """
        pending = deque(trial for trial in self._trials if trial.name not in self.outcomes)
        with signal_handler(self._forward, *heard_signals()):
            while self._running or (pending and not self._signal):
                while pending and not self._signal and self._may_start():
                    job = Job(pending.popleft(), self._free_slot(), self._workers, options)
                    self._running.append(job)
                    if self._signal:  # it arrived before the job was among those that are running
                        job.process.send_signal(self._signal)
                time.sleep(POLL_SECONDS)
                for job in list(self._running):
                    self._look_at(job, early_stop=early_stop)
                if self._running:
                    self._running[0].progress.show()
        if self._signal and len(self.outcomes) < len(self._trials):
            done = f"{len(self.outcomes)} of {pluralize(len(self._trials), 'trial')} ended"
            raise Stopped(
                f"stopped: {done}, the others are saved; the same command continues", EXIT_STATUS[self._signal]
            )

    def _may_start(self) -> bool:
        """Whether a slot is free. Nothing else starts before the first trial has its data, which it may prepare."""
        has_data = not self._running or any(job.log.is_file() for job in self._running)
        return has_data and len(self._running) < self._workers

    def _free_slot(self) -> int:
        return min(set(range(self._workers)) - {job.slot for job in self._running})

    def _forward(self, number: int, _: FrameType | None) -> None:
        """Passes a signal to the trials, which are in process groups of their own: at the first one they save."""
        self._signal = signal.Signals(number)
        for job in self._running:
            job.process.send_signal(number)

    def _look_at(self, job: "Job", *, early_stop: bool) -> None:
        if job.process.poll() is None:
            if early_stop and not job.hopeless and job.has_new_evaluation():
                self._stop_if_hopeless(job)
            return
        self._running.remove(job)
        job.progress.clear()
        outcome = read_outcome(job.trial) or job.hopeless
        if outcome is None and self._signal and job.process.returncode:
            return  # it was interrupted
        if outcome and outcome is job.hopeless:
            self._folder.stopped[job.trial.name] = outcome
            self._folder.write()
        self._report(job, outcome or Outcome(note=job.error()))

    def _stop_if_hopeless(self, job: "Job") -> None:
        losses = {name: outcome.loss for name, outcome in self.outcomes.items() if outcome.loss is not None}
        if not losses:
            return
        best = min(losses, key=losses.__getitem__)
        trial = next(trial for trial in self._trials if trial.name == best)
        outcome = find_hopeless(job.trial, trial, losses[best])
        job.hopeless_evaluations = job.hopeless_evaluations + 1 if outcome else 0
        if job.hopeless_evaluations == CONFIRMATIONS:
            job.hopeless = outcome
            job.process.send_signal(signal.SIGTERM)

    def _report(self, job: "Job", outcome: Outcome) -> None:
        self.outcomes[job.trial.name] = outcome
        seconds = time.monotonic() - job.started
        if outcome.loss is not None and job.trial.name in self._seconds:
            self._measured.append((seconds, self._seconds[job.trial.name]))
        answer = outcome.note if outcome.loss is None else f"loss {outcome.loss:.4f}"
        count = f"{len(self.outcomes)} of {len(self._trials)}"
        self._say(f"[{count}] {answer}: {job.trial.name} ({format_rough_duration(seconds)}{self._time_left()})")

    def _time_left(self) -> str:
        """The time of the trials that are left, at the speed of those that are done; empty where it is unknown."""
        left = sum(self._seconds.get(trial.name, 0.0) for trial in self._trials if trial.name not in self.outcomes)
        if not self._measured or not left:
            return ""
        measured, expected = (sum(column) for column in zip(*self._measured))
        return f"; about {format_rough_duration(left * measured / expected / self._workers)} left"


class Job:
    """The process of a trial. Its output is `output.txt` in the trial's folder."""

    def __init__(self, trial: Trial, slot: int, workers: int, options: Sequence[str]) -> None:
        folder = RunFolder.from_config(trial.config)
        folder.path.mkdir(parents=True, exist_ok=True)
        self.trial = trial
        self.slot = slot
        self.log = folder.log_file
        self.hopeless: Outcome | None = None  # how it ends because the sweep stops it
        self.hopeless_evaluations = 0  # in a row
        self.progress = TrainingProgress(trial.config)
        self.started = time.monotonic()
        self._read = self.log.stat().st_size if self.log.is_file() else 0  # bytes of the log
        self._output = folder.path / "output.txt"
        command = training_command(trial.config, folder.path, *options)
        with self._output.open("w") as output, _cores(slot, workers):
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
            )

    def has_new_evaluation(self) -> bool:
        """Whether the log has got an evaluation since the last call."""
        if not self.log.is_file():
            return False
        with self.log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        return EVALUATION in new

    def error(self) -> str:
        """What the process said at its end: its error without the help, else its last line."""
        lines = self._output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error[")]
        last = (errors or lines or ["no message"])[-1]
        return f"failed with status {self.process.returncode}: {last}"


@contextmanager
def _cores(slot: int, workers: int) -> Iterator[None]:
    """Gives processes that start in the block their share of this process's cores, where the system can."""
    if workers == 1 or sys.platform != "linux":
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[slot::workers])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _wait_for_trainer(folder: Path, say: Say) -> None:
    """Waits while the process of a sweep that was killed still trains the trial."""
    if not (folder / ".lock").exists():
        return
    try:
        with lock_file(folder / ".lock"):
            return
    except LockedError as error:
        say(f"waiting for {folder.name}, which {error.holder} still trains")
    with lock_file(folder / ".lock", wait=True):
        pass
