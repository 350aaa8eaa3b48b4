"""Training in a process of its own, so that who asks for it never loads JAX."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from jaxgpt.config import Config
from jaxgpt.config.files import write_config

STDERR = 2
LAST_WORDS = 3  # lines


class Ended(NamedTuple):
    """How the process ended: its exit status, and the last lines that it wrote to stderr."""

    status: int
    words: str


def train(config: Config, place: Path, *options: str, shown: bool = False) -> Ended:
    """Runs `python -m jaxgpt.train` on `config`, which is written to the folder `place`; `shown`: its lines on stderr.

    Ctrl-C reaches the training too: it is waited for while it saves, and then raised here.
    """
    file = write_config(config, place / "config.py")
    command = [sys.executable, "-m", "jaxgpt.train", "--config", str(file), *options]
    output = STDERR if shown else subprocess.DEVNULL
    with subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.communicate()[1]
        except KeyboardInterrupt:
            process.communicate()
            raise
    return Ended(process.returncode, " ".join((said.strip() or "it said nothing").splitlines()[-LAST_WORDS:]))
