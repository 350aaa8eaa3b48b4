"""A step that does not end: the stacks are written and the run exits with 6. Slow or stopped is not hung."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.training import arguments, records, run_folder, saved_steps

import jaxgpt
from jaxgpt.training.watchdog import Watchdog

TRAINING_THAT_HANGS = """
import sys, threading
from jaxgpt import errors, train
from jaxgpt.training.recorder import Recorder

record = Recorder.step

def step(self, number, metrics):
    record(self, number, metrics)
    if number == 6:
        wait_for_a_device_that_never_answers()

def wait_for_a_device_that_never_answers():
    threading.Semaphore(0).acquire()

Recorder.step = step
sys.exit(errors.run(train.main))
"""

STEPS_IN_PARTS = """
import os, time
from jaxgpt.training.watchdog import Watchdog
with Watchdog(3.0, lambda sentence: os._exit(6)) as watchdog:
    for _ in range(3):
        watchdog.step_done(0.1)
        print("step", flush=True)
        for _ in range(10):  # after a stop, the rest of the step is still to come
            time.sleep(0.1)
"""


def command(code: str, *options: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-c", code, *options], os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}


def hangs(seconds: float, step_seconds: list[float], wait: float) -> list[str]:
    """What a watchdog reports that sees these steps and then waits."""
    reports: list[str] = []
    with Watchdog(seconds, reports.append) as watchdog:
        for step in step_seconds:
            watchdog.step_done(step)
        time.sleep(wait)
    return reports


def test_step_that_does_not_end_is_reported_once() -> None:
    (report,) = hangs(0.2, [0.01, 0.01, 5.0], 1.5)
    assert report == "a step has not ended in 0 s (limit: 0 s)"


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(0.2, [0.2, 0.2, 0.2]), (0.2, []), (0.0, [0.01])],
    ids=["10 times the median", "compilation", "off"],
)
def test_slow_step_or_compilation_is_not_a_hang(seconds: float, steps: list[float]) -> None:
    assert hangs(seconds, steps, 1.0) == []


def test_pause_is_not_a_hang_but_the_step_after_it_may_be() -> None:
    reports: list[str] = []
    with Watchdog(0.2, reports.append) as watchdog:
        watchdog.step_done(0.01)
        with watchdog.paused():
            time.sleep(1)
        assert reports == []
        time.sleep(1)
        assert len(reports) == 1


def test_stopped_process_does_not_hang() -> None:
    line, env = command(STEPS_IN_PARTS)
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.5)  # the watchdog has seen the step begin
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0


def test_hung_run_writes_its_stacks_and_exits_with_6(workspace: Path) -> None:
    line, env = command(TRAINING_THAT_HANGS, *arguments(workspace, {"run.watchdog": 2}))
    run = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300, check=False)
    folder = run_folder(workspace)
    stacks = (folder.path / "stacks.txt").read_text()
    assert run.returncode == 6
    assert "in wait_for_a_device_that_never_answers" in stacks
    assert "in wait_for_a_device_that_never_answers" in run.stderr
    error, help = run.stderr.splitlines()[-2:]
    assert error.startswith("error[H001]: a step has not ended in 2 s (limit: 2 s); ")
    assert help.startswith("  help: the same command resumes from the last checkpoint")
    assert [record["reason"] for record in records(folder, "stop")] == ["H001"]
    assert saved_steps(folder) == [4]
