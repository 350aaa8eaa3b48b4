"""Signals that stop a run: SIGTERM, SIGINT, SIGHUP and SIGUSR1 during compilation, a step, an evaluation and a save."""

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.training import (
    STEPS,
    after_step,
    arguments,
    leaf_bytes,
    logged_losses,
    records,
    run_folder,
    saved_state,
    saved_steps,
    tiny_config,
)

import jaxgpt
from jaxgpt import errors, train
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training import session
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.evaluator import Evaluator
from jaxgpt.utils import signals

STATUSES = [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75), (signal.SIGUSR1, 75)]
each_signal = pytest.mark.parametrize(("number", "status"), STATUSES, ids=lambda value: getattr(value, "name", ""))

STUCK = """
import threading
from jaxgpt.utils.signals import GracefulShutdown
with GracefulShutdown(lambda: print("terminal in order", flush=True)) as shutdown:
    shutdown.enable_save()
    print("ready", flush=True)
    threading.Semaphore(0).acquire()  # like a full queue that nobody reads
"""


def call_before(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, action: Callable[[], object]
) -> None:
    """Calls `action` before the call number `call`, from 1, of the method `name`."""
    original = getattr(owner, name)
    calls = 0

    def method(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            action()
        return original(*args)

    monkeypatch.setattr(owner, name, method)


def kill(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@each_signal
def test_signal_in_a_compilation_ends_at_once(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    call_before(monkeypatch, session.TrainingSession, "train_step", 1, lambda: kill(number))
    assert errors.run(train.main, arguments(workspace)) == status
    assert capfd.readouterr().err == f"{signals.NOTHING_LOST}\n"
    assert (logged_losses(run_folder(workspace)), saved_steps(run_folder(workspace))) == ({}, [])


@each_signal
def test_signal_in_a_step_saves_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    after_step(monkeypatch, 7, lambda: kill(number))
    assert errors.run(train.main, arguments(workspace)) == status
    assert saved_steps(run_folder(workspace))[-1] == len(records(run_folder(workspace))) == 7


@each_signal
def test_signal_in_an_evaluation_interrupts_it_and_saves_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    call_before(monkeypatch, Evaluator, "_score", 3, lambda: kill(number))  # train and val at step 0, train at 10
    assert errors.run(train.main, arguments(workspace)) == status
    folder = run_folder(workspace)
    assert [record["step"] for record in records(folder, "save")] == [4, 8, 10]
    assert [record["step"] for record in records(folder, "eval")] == [0]
    assert saved_steps(folder)[-1] == len(records(folder)) == 10


@each_signal
def test_signal_in_a_save_trains_no_other_step(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    call_before(monkeypatch, Checkpoints, "save", 2, lambda: kill(number))
    assert errors.run(train.main, arguments(workspace)) == status
    assert [record["step"] for record in records(run_folder(workspace), "save")] == [4, 8]
    assert saved_steps(run_folder(workspace))[-1] == len(records(run_folder(workspace))) == 8


def logged_scores(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    """The losses in the records of a kind."""
    return [{name: record[name] for name in record if "loss" in name} for record in records(folder, kind)]


@pytest.mark.parametrize(("call", "step"), [(3, 10), (5, STEPS)], ids=["middle", "last"])
def test_interrupted_evaluation_is_made_up_for_on_resume(
    finished: Path, monkeypatch: pytest.MonkeyPatch, call: int, step: int
) -> None:
    command = arguments(finished, {"run.name": "b"})
    with monkeypatch.context() as patch:
        call_before(patch, Evaluator, "_score", call, lambda: kill(signal.SIGTERM))
        assert errors.run(train.main, command) == 75
    assert saved_steps(run_folder(finished, "b"))[-1] == step
    assert errors.run(train.main, command) == 0
    assert errors.run(train.main, command) == 0  # it is done: nothing is evaluated again
    resumed, uninterrupted = run_folder(finished, "b"), run_folder(finished)
    for kind in ("eval", "step"):
        assert logged_scores(resumed, kind) == logged_scores(uninterrupted, kind)
    assert leaf_bytes(saved_state(tiny_config(finished, {"run.name": "b"}))) == leaf_bytes(
        saved_state(tiny_config(finished))
    )


@pytest.mark.parametrize(("number", "status"), STATUSES[:2])
def test_signal_delivered_twice_is_one_request(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    def twice() -> None:
        kill(number)
        time.sleep(0.05)
        kill(number)

    after_step(monkeypatch, 7, twice)
    assert errors.run(train.main, arguments(workspace)) == status
    assert saved_steps(run_folder(workspace))[-1] == len(records(run_folder(workspace))) == 7


@each_signal
def test_second_signal_ends_a_stuck_process(number: signal.Signals, status: int) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        time.sleep(signals.GRACE_SECONDS + 0.3)
        assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (128 + number, "terminal in order\n")
    assert err.splitlines() == ["stopping after this step, then saving; once more stops immediately", signals.AT_ONCE]


def test_hangup_is_ignored_under_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.GracefulShutdown() as shutdown:
            kill(signal.SIGHUP)
            assert not shutdown.is_requested()
        assert signal.SIGHUP not in signals.heard_signals()  # which a sweep hears, too
    finally:
        signal.signal(signal.SIGHUP, before)


def test_closed_terminal_saves_and_stops(workspace: Path) -> None:
    """A real terminal that goes away: SIGHUP, and no output that can be written."""
    terminal, inside = pty.openpty()
    name = os.ttyname(inside)
    options = arguments(workspace, {"run.steps": 100_000, "run.save_every": 100_000})
    command = shlex.join([sys.executable, "-m", "jaxgpt.train", *options])
    line = ["sh", "-c", f"exec {command} <{name} >{name} 2>&1"]  # the terminal of a new session is the first it opens
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    with subprocess.Popen(line, start_new_session=True, env=env) as process:
        os.close(inside)
        deadline = time.monotonic() + 120
        log = run_folder(workspace).log_file
        while not (log.is_file() and len(records(run_folder(workspace))) > 3):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.close(terminal)
        assert process.wait(120) == 75
    assert saved_steps(run_folder(workspace)) == [len(records(run_folder(workspace)))]
