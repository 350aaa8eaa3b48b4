"""Signals before the first step: a busy compiler is ended, a main thread that is cleaning up is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.utils.signals import deferred_interrupt

BUSY = """
import hashlib, threading
from jaxgpt.utils.signals import GracefulShutdown
with GracefulShutdown(lambda: print("terminal in order", flush=True)):
    threading.Timer(0.3, lambda: print("ready", flush=True)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # like a compiler: runs no Python before it is done
"""

SLOW_CLEANUP = """
import sys, time
from jaxgpt import errors
from jaxgpt.utils.signals import GracefulShutdown

def main(argv):
    with GracefulShutdown(lambda: print("aborted", flush=True)):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            time.sleep(2)
            print("cleaned up", flush=True)

sys.exit(errors.run(main))
"""

SWALLOWED = """
import gc, os, signal, sys, time
from contextlib import nullcontext
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
from jaxgpt import errors
from jaxgpt.utils.signals import GracefulShutdown

def interrupt_once(phase, info):
    gc.callbacks.clear()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)

def main(argv):
    with GracefulShutdown() if argv else nullcontext():
        gc.callbacks.append(interrupt_once)
        gc.collect()
        time.sleep(60)

sys.exit(errors.run(main))
"""

STATUSES = [(signal.SIGINT, 130), (signal.SIGTERM, 75)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}


def run_until_signal(code: str, number: signal.Signals) -> tuple[int, str, str, float]:
    """Sends the signal to a process of `code` once it prints "ready": its status, stdout, stderr, and seconds."""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        process.send_signal(number)
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    return process.returncode, out, err, time.monotonic() - start


@pytest.mark.parametrize(("number", "status"), STATUSES)
def test_signal_ends_a_process_whose_compiler_is_busy(number: signal.Signals, status: int) -> None:
    *result, seconds = run_until_signal(BUSY, number)
    assert result == [status, "terminal in order\n", "stopped before the first step; nothing is lost\n"]
    assert seconds < 3


@pytest.mark.parametrize(("number", "status"), STATUSES)
def test_signal_leaves_a_running_cleanup_alone(number: signal.Signals, status: int) -> None:
    *result, _ = run_until_signal(SLOW_CLEANUP, number)
    assert result == [status, "cleaned up\n", "stopped before the first step; nothing is lost\n"]


def test_deferred_interrupt_raises_at_the_next_check_or_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as raise_if_pending:
        raise_if_pending()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            raise_if_pending()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "interrupted\n"), (["graceful"], "stopped before the first step; nothing is lost\n")],
)
def test_signal_in_a_garbage_collector_callback_still_stops(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-c", SWALLOWED, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=20, check=False)
    assert (run.returncode, run.stderr) == (130, message)
