"""Training in a process of its own, so that the caller does not load JAX."""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from jaxgpt.config import Config
from jaxgpt.config.files import write_config
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import read_log

STDERR_TAIL_LINES = 3
STARTING = "starting and compiling"
POLL_SECONDS = 0.5  # between two looks at the log of the training
LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


class ProcessResult(NamedTuple):
    """The exit status of a training process, and the last lines that it wrote to stderr, joined by spaces."""

    returncode: int
    stderr_tail: str


def train_in_subprocess(config: Config, folder: Path, *options: str, echo: bool = False) -> ProcessResult:
    """Runs `python -m jaxgpt.train` on `config`, which is written to `folder`; `echo` shows its progress on stderr.

    Its output is not shown: what it says about the next steps is not for the user of the caller. Ctrl-C reaches the
    process too: this waits while it saves, then raises `KeyboardInterrupt`.
    """
    command = training_command(config, folder, "--yes", *options)
    progress = TrainingProgress(config) if echo else None
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            stderr = _wait(process, progress)
        except KeyboardInterrupt:
            process.communicate()
            raise
        finally:
            if progress:
                progress.clear()
    lines = stderr.strip().splitlines() or ["no message"]
    return ProcessResult(process.returncode, " ".join(lines[-STDERR_TAIL_LINES:]))


def training_command(config: Config, folder: Path, *options: str) -> list[str]:
    """The command that trains `config`, which is written to `folder`."""
    file = write_config(config, folder / "config.py")
    return [sys.executable, "-m", "jaxgpt.train", "--config", str(file), *options]


def _wait(process: "subprocess.Popen[str]", progress: "TrainingProgress | None") -> str:
    """Waits for the end of the process and returns what it wrote to stderr."""
    while True:
        try:
            return process.communicate(timeout=POLL_SECONDS)[1]
        except subprocess.TimeoutExpired:
            if progress:
                progress.show()


class TrainingProgress:
    """The progress of a training process by its log: one line that changes on a terminal, else an occasional line."""

    def __init__(self, config: Config) -> None:
        self._log = RunFolder.from_config(config).log_file
        self._name = config.run.name
        self._total = config.run.steps
        self._is_terminal = sys.stderr.isatty()
        self._last_shown = -LINE_SECONDS
        self._last_text = ""

    def show(self) -> None:
        """Shows the steps done and the last loss, if they have changed."""
        state = self._state()
        text = f"training {self._name}: {state}"
        interval = POLL_SECONDS if self._is_terminal else LINE_SECONDS
        is_over = state == STARTING and self._last_text
        if is_over or text == self._last_text or time.monotonic() - self._last_shown < interval:
            return
        self._last_text = text
        self._last_shown = time.monotonic()
        start, end = ("\r\x1b[K", "") if self._is_terminal else ("", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Removes the line from the terminal."""
        if self._is_terminal and self._last_text:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _state(self) -> str:
        records = read_log(self._log) if self._log.is_file() else []
        last = records[-1] if records else {}
        if last.get("kind") == "step":
            return f"step {last['step'] + 1:,} of {self._total:,}, loss {last['loss']:.4}"
        if last.get("kind") in ("eval", "save"):
            return f"evaluated and saved after step {last['step']:,} of {self._total:,}"
        return STARTING
