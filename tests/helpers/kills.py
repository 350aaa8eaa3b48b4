"""Runs that are killed at random moments and resumed, and what must hold at their end."""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.forked import POLL_SECONDS, ForkedRun, ForkServer
from helpers.training import arguments, leaf_bytes, records, run_folder, saved_state, tiny_config
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import read_log

STEPS = 40
SAVE_EVERY = 3
EVAL_EVERY = 10
CHANGES = {
    "model.n_layer": 1,
    "model.dropout": 0.2,
    "run.steps": STEPS,
    "run.save_every": SAVE_EVERY,
    "run.eval_every": EVAL_EVERY,
}
MOMENTS = ("start", "step", "save", "evaluation", "any")
SECONDS_OF_A_RUN = 4.0


@dataclass
class Kills:
    """Kills by the moment that was aimed at, those with a half-written checkpoint, and the steps that were repeated."""

    aimed: Counter[str] = field(default_factory=Counter)
    inside_save: int = 0
    runs: int = 0
    repeated_steps: int = 0
    most_repeated: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.aimed.total()


def finish(server: ForkServer, workspace: Path, name: str) -> RunFolder:
    """Trains the run `name` to its end; returns its folder."""
    output = workspace / f"{name}.txt"
    status = server.start(arguments(workspace, changes(name)), output).wait()
    assert status == 0, output.read_text()[-3000:]
    return run_folder(workspace, name)


def changes(name: str) -> Mapping[str, Any]:
    return CHANGES | {"run.name": name}


def kill_runs(server: ForkServer, workspace: Path, source: random.Random, count: int, *, each: int = 13) -> Kills:
    """Kills runs `count` times, at most `each` times one run, and compares each with the run "uninterrupted"."""
    kills = Kills()
    while kills.total < count:
        name = f"killed-{kills.runs}"
        goal = min(count, kills.total + each)
        while kills.total < goal and _kill_once(server, workspace, name, source, kills):
            pass
        finish(server, workspace, name)
        kills.runs += 1
        kills.problems += differences(workspace, name, kills)
    return kills


def _kill_once(server: ForkServer, workspace: Path, name: str, source: random.Random, kills: Kills) -> bool:
    """Starts or resumes the run and kills it; False if it ended before that."""
    moment = MOMENTS[kills.total % len(MOMENTS)]
    checkpoints = run_folder(workspace, name).checkpoints
    earlier = _half_written(checkpoints)
    run = server.start(arguments(workspace, changes(name)), workspace / f"{name}.txt")
    _wait_for(moment, run, run_folder(workspace, name), source)
    run.kill()
    if run.wait() != -9:
        return False
    kills.aimed[moment] += 1
    kills.inside_save += bool(_half_written(checkpoints) - earlier)
    return True


def _wait_for(moment: str, run: ForkedRun, folder: RunFolder, source: random.Random) -> None:
    """Returns a random time after the moment has begun, or when the run ends before."""
    delay = source.uniform(0, {"start": 1.0, "any": SECONDS_OF_A_RUN}.get(moment, 0.03))
    lines = _size(folder.log_file)
    due = source.randrange(1, 12)  # the saves or steps that are let pass

    def has_step() -> bool:
        return _size(folder.log_file) > lines + 1500 + 200 * due  # bytes: the start record and some steps

    def is_saving() -> bool:
        return has_step() and bool(list(folder.checkpoints.glob("*tmp*")))

    def is_evaluating() -> bool:
        last = read_log(folder.log_file)[-1:] if has_step() else []
        return bool(last) and last[0]["kind"] == "step" and (last[0]["step"] + 1) % EVAL_EVERY == 0

    begun: dict[str, Callable[[], bool]] = {"step": has_step, "save": is_saving, "evaluation": is_evaluating}
    while run.poll() is None and not begun.get(moment, lambda: True)():
        time.sleep(POLL_SECONDS)
    time.sleep(delay)


def _half_written(checkpoints: Path) -> set[int]:
    """The inodes of the checkpoints that a kill has left half-written."""
    return {path.stat().st_ino for path in checkpoints.glob("*tmp*")}


def _size(path: Path) -> int:
    return os.stat(path).st_size if path.exists() else 0


def differences(workspace: Path, name: str, kills: Kills) -> list[str]:
    """What differs between the run `name`, which was killed, and the run "uninterrupted"."""
    folder, uninterrupted = run_folder(workspace, name), run_folder(workspace, "uninterrupted")
    problems = []
    if leaf_bytes(saved_state(tiny_config(workspace, changes(name)))) != leaf_bytes(
        saved_state(tiny_config(workspace, changes("uninterrupted")))
    ):
        problems.append(f"{name}: the final state differs")
    if exact_losses(folder) != exact_losses(uninterrupted):
        problems.append(f"{name}: the losses differ, or steps are missing")
    if {record["step"]: record["val_loss"] for record in records(folder, "eval")} != {
        record["step"]: record["val_loss"] for record in records(uninterrupted, "eval")
    }:
        problems.append(f"{name}: the evaluations differ")
    return problems + _gaps(name, read_log(folder.log_file), kills)


def exact_losses(folder: RunFolder) -> set[tuple[Any, ...]]:
    """The loss and gradient norm of each step, bit for bit; a step that differs when it is repeated is there twice."""
    return {(record["step"], record["loss"], record["grad_norm"]) for record in records(folder)}


def _gaps(name: str, log: list[dict[str, Any]], kills: Kills) -> list[str]:
    """Steps that are out of order in the log of a run, and resumes that lost more than they may."""
    problems = []
    following = 0
    for record in log:
        if record["kind"] == "start":
            lost = following - record["step"]
            kills.repeated_steps += lost
            kills.most_repeated = max(kills.most_repeated, lost)
            if not 0 <= lost <= 2 * SAVE_EVERY:  # one interval, and the save that was under way
                problems.append(f"{name}: resumed at {record['step']} after {following} steps")
            following = record["step"]
        elif record["kind"] == "step":
            if record["step"] != following:
                problems.append(f"{name}: step {record['step']} follows {following - 1}")
            following = record["step"] + 1
    return problems
