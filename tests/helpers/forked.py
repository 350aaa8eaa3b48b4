"""Training in forks of one process that has imported JAX: a run starts in a fraction of the time of a new process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import jaxgpt

SERVER = """
import json, os, sys
import jax
from jaxgpt import errors, train
from jaxgpt.budget import plan_file, preflight
from jaxgpt.diagnose import live
from jaxgpt.generation import sampler
from jaxgpt.training import jax_setup, session

configure = jax_setup.configure_jax

def configure_jax():
    configure()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

jax_setup.configure_jax = configure_jax
live.write_run_report = lambda folder: None  # its figures take as long as the run
print("ready", flush=True)
child = 0
for line in sys.stdin:
    order = json.loads(line)
    if order is None:
        pid, status = os.waitpid(child, os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if pid else "running", flush=True)
        continue
    child = os.fork()
    if not child:
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = errors.run(train.main, order["arguments"])
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
"""
POLL_SECONDS = 0.002


class ForkedRun:
    """A run in a fork. The server collects it only in `poll`, so until that has a status, the pid is the run's."""

    def __init__(self, pid: int, server: "ForkServer") -> None:
        self.pid = pid
        self._server = server
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status, or the negative number of the signal that ended the run; None while it runs."""
        if self._status is None:
            answer = self._server.ask(None)
            self._status = None if answer == "running" else int(answer)
        return self._status

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 280) -> int:
        end = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < end, "the run does not end"
            time.sleep(POLL_SECONDS)
        return status


class ForkServer:
    """Runs `train` in forks, one at a time. JAX has no threads yet when it forks: its backend starts in the fork."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers
        assert answers.readline() == "ready\n"

    def ask(self, order: object) -> str:
        print(json.dumps(order), file=self._orders, flush=True)
        return self._answers.readline().strip()

    def start(self, arguments: Sequence[str], output: Path) -> ForkedRun:
        """Starts a run, whose stdout and stderr are appended to `output`."""
        return ForkedRun(int(self.ask({"arguments": list(arguments), "output": str(output)})), self)


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """A server for the block."""
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdin
        assert process.stdout
        yield ForkServer(process.stdin, process.stdout)
        process.stdin.close()
