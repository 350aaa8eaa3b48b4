"""Training in a process of its own, so that the caller does not load JAX."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from jaxgpt.config import Config
from jaxgpt.config.files import write_config

STDERR = 2
STDERR_TAIL_LINES = 3


class ProcessResult(NamedTuple):
    """The exit status of a training process, and the last lines that it wrote to stderr, joined by spaces."""

    returncode: int
    stderr_tail: str


def train_in_subprocess(config: Config, folder: Path, *options: str, echo: bool = False) -> ProcessResult:
    """Runs `python -m jaxgpt.train` on `config`, which is written to `folder`; `echo` sends its output to stderr.

    Ctrl-C reaches the process too: this waits while it saves, then raises `KeyboardInterrupt`.
    """
    file = write_config(config, folder / "config.py")
    command = [sys.executable, "-m", "jaxgpt.train", "--config", str(file), *options]
    output = STDERR if echo else subprocess.DEVNULL
    with subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True) as process:
        try:
            stderr = process.communicate()[1]
        except KeyboardInterrupt:
            process.communicate()
            raise
    lines = stderr.strip().splitlines() or ["no message"]
    return ProcessResult(process.returncode, " ".join(lines[-STDERR_TAIL_LINES:]))
