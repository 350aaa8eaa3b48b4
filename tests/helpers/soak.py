"""One run that gets faults again and again until its end, and what must hold at each start and at the end."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from helpers.files import files_of, flip_bit
from helpers.forked import POLL_SECONDS, ForkedRun, ForkServer
from helpers.kills import exact_losses
from helpers.training import arguments, leaf_bytes, records, run_folder, saved_state, tiny_config
from jaxgpt.runs.checkpoint_files import find_damage, steps_in
from jaxgpt.runs.folder import RunFolder

SAVE_EVERY = 5
STEPS_PER_FAULT = 5
SECONDS_STOPPED = 0.3
DISK = "256m"
CHANGES = {
    "model.n_layer": 1,
    "model.dropout": 0.2,
    "run.save_every": SAVE_EVERY,
    "run.eval_every": 100,
    "run.keep_latest": 3,
}


@dataclass
class Soak:
    """Faults by kind, and what they broke: lost steps or checkpoints, states that differ, damage that nothing noticed.

    `most_repeated` is the largest number of steps that a fault has cost.
    """

    faults: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    steps: int = 0
    most_repeated: int = 0
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return [*self.lost, *self.corrupt, *self.silent, *self.crashes]


class FaultyRun:
    """The run "soak", on a disk of its own at `workspace`/runs, whose processes get one fault after the other."""

    def __init__(self, server: ForkServer, workspace: Path, source: random.Random, steps: int) -> None:
        self.soak = Soak(steps=steps)
        self.folder = run_folder(workspace, "soak")
        self._server = server
        self._workspace = workspace
        self._source = source
        self._changes = changes("soak", steps)
        self._output = workspace / "soak.txt"
        self._damaged = ""  # the checkpoint that is damaged
        self._run = self._start()

    def inject(self, kind: str) -> None:
        """Waits for some steps, injects a fault of this kind, and has the run continue after it."""
        self._wait_for_steps(self._source.randrange(2, 2 * SAVE_EVERY))
        time.sleep(self._source.uniform(0, 0.03))
        if self.has_ended():
            return
        self.soak.faults[kind] += 1
        {
            "SIGKILL": partial(self._end_by, signal.SIGKILL, -9),
            "SIGTERM": partial(self._end_by, signal.SIGTERM, 75),
            "SIGSTOP and SIGCONT": self._stop_and_continue,
            "full disk": self._fill_disk,
            "flipped bit": partial(self._damage_checkpoint, self._flip),
            "removed file": partial(self._damage_checkpoint, self._remove),
        }[kind]()

    def has_ended(self) -> bool:
        return self._run.poll() is not None

    def finish(self) -> None:
        """Waits for the end of the run, without other faults."""
        self._expect(0)

    def _start(self) -> ForkedRun:
        """Starts or resumes the run, and checks that it does so at its newest valid checkpoint."""
        done = last_step(self.folder)
        valid = newest_valid(self.folder)
        starts = len(records(self.folder, "start")) if self.folder.log_file.exists() else 0
        run = self._server.start(arguments(self._workspace, self._changes), self._output)
        self.soak.starts += 1
        self._run = run
        if starts:
            self._check_start(done, valid, starts)
        return run

    def _check_start(self, done: int, valid: int, starts: int) -> None:
        while len(records(self.folder, "start")) == starts and not self.has_ended():
            time.sleep(20 * POLL_SECONDS)
        started = records(self.folder, "start")[starts:]
        if not started:
            return  # its status is checked where its end is expected
        step = started[0]["step"]
        allowed = (3 if self._damaged else 2) * SAVE_EVERY  # an interval, the save under way, the damaged checkpoint
        self.soak.most_repeated = max(self.soak.most_repeated, done - step)
        if step != valid or not 0 <= done - step <= allowed:
            self.soak.lost.append(f"started at step {step} after {done} steps; the newest valid checkpoint was {valid}")
        if self._damaged and not (self.folder.quarantine / self._damaged).is_dir():
            self.soak.silent.append(f"the damage of the checkpoint of step {self._damaged} was not noticed")
        self._damaged = ""
        shutil.rmtree(self.folder.quarantine, ignore_errors=True)

    def _wait_for_steps(self, count: int) -> None:
        goal = last_step(self.folder) + count
        while last_step(self.folder) < goal and not self.has_ended():
            time.sleep(POLL_SECONDS)

    def _expect(self, *statuses: int) -> None:
        status = self._run.wait()
        if status not in statuses:
            self.soak.crashes.append(f"exit status {status}, not {statuses}: {self._output.read_text()[-2000:]}")

    def _end_by(self, number: signal.Signals, status: int) -> None:
        self._run.kill(number)
        self._expect(status, 0)  # it may have had no step left
        self._run = self._start()

    def _stop_and_continue(self) -> None:
        self._run.kill(signal.SIGSTOP)
        time.sleep(SECONDS_STOPPED)
        self._run.kill(signal.SIGCONT)

    def _fill_disk(self) -> None:
        """Leaves no free space until the run has ended."""
        filler = self.folder.path.parent / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], capture_output=True, check=False)
        self._expect(7, 0)
        filler.unlink()
        self._run = self._start()

    def _damage_checkpoint(self, damage: Any) -> None:
        """Kills the run and damages its newest checkpoint, if it has another valid one."""
        self._run.kill()
        self._expect(-9, 0)
        steps = steps_in(self.folder.checkpoints)
        if len(steps) > 1:
            self._damaged = str(steps[-1])
            damage(self._source.choice(files_of(self.folder.checkpoints / self._damaged)))
        self._run = self._start()

    def _flip(self, path: Path) -> None:
        flip_bit(path, self._source.randrange(8 * path.stat().st_size))

    def _remove(self, path: Path) -> None:
        path.unlink()


KINDS = ("SIGKILL", "flipped bit", "full disk", "SIGTERM", "removed file", "SIGSTOP and SIGCONT")


def changes(name: str, steps: int) -> Mapping[str, Any]:
    return CHANGES | {"run.name": name, "run.steps": steps}


def last_step(folder: RunFolder) -> int:
    """The steps done according to the end of the log; 0 without one."""
    if not folder.log_file.exists():
        return 0
    with folder.log_file.open("rb") as file:
        file.seek(max(0, folder.log_file.stat().st_size - 20_000))
        lines = file.read().splitlines()
    for line in reversed(lines):
        record = _parse(line)
        if record.get("kind") in ("step", "start"):
            return int(record["step"]) + (record["kind"] == "step")
    return 0


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def newest_valid(folder: RunFolder) -> int:
    """The newest step whose checkpoint has no damage; 0 without one."""
    steps = reversed(steps_in(folder.checkpoints))
    return next((step for step in steps if not find_damage(folder.checkpoints / str(step))), 0)


def soak_run(server: ForkServer, workspace: Path, source: random.Random, count: int, end: float) -> Soak:
    """Injects faults of all kinds in turn, until the run ends, there were `count`, or `time.monotonic()` is `end`.

    Then the run trains to its end, and its final state must be that of the run "undisturbed", bit for bit.
    """
    steps = STEPS_PER_FAULT * count
    alone = server.start(arguments(workspace, changes("undisturbed", steps)), workspace / "undisturbed.txt")
    assert alone.wait() == 0, (workspace / "undisturbed.txt").read_text()[-2000:]
    faulty = FaultyRun(server, workspace, source, steps)
    kinds: list[str] = []
    while faulty.soak.faults.total() < count and time.monotonic() < end and not faulty.has_ended():
        kinds = kinds or source.sample(KINDS, len(KINDS))
        faulty.inject(kinds.pop())
    faulty.finish()
    faulty.soak.corrupt += differences(workspace, steps)
    return faulty.soak


def differences(workspace: Path, steps: int) -> list[str]:
    """What differs between the run "soak" and the undisturbed one. A full disk may cost lines of the log."""
    states = [leaf_bytes(saved_state(tiny_config(workspace, changes(name, steps)))) for name in ("soak", "undisturbed")]
    problems = ["the final state differs"] if states[0] != states[1] else []
    wrong = exact_losses(run_folder(workspace, "soak")) - exact_losses(run_folder(workspace, "undisturbed"))
    differing = sorted({step for step, *_ in wrong})
    return problems + ([f"the losses of the steps {differing} differ"] if differing else [])
