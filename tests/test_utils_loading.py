"""What a command shows while it imports its libraries, and how Ctrl-C ends it there."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.utils.loading import loading
from jaxgpt.utils.signals import NOTHING_LOST

INTERRUPTED_IMPORT = """
import os, signal, sys, time
from jaxgpt.utils.loading import loading
from jaxgpt.utils.signals import EXIT_STATUS, NOTHING_LOST

name = sys.argv[1]
with loading("JAX", EXIT_STATUS, NOTHING_LOST) if sys.argv[2:] else loading("JAX"):
    try:
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(60)
    except KeyboardInterrupt:
        raise ImportError("an extension module failed")
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_loading_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((Terminal(), "loading JAX …\n"), (io.StringIO(), "")):
        monkeypatch.setattr("sys.stderr", stream)
        with loading("JAX"):
            pass
        assert stream.getvalue() == expected


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["SIGINT"], 130, "interrupted\n"),
        (["SIGINT", "train"], 130, f"{NOTHING_LOST}\n"),
        (["SIGTERM", "train"], 75, f"{NOTHING_LOST}\n"),
        (["SIGUSR1", "train"], 75, f"{NOTHING_LOST}\n"),
    ],
)
def test_signal_while_loading_ends_without_a_traceback(arguments: list[str], status: int, text: str) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=30, check=False)
    assert (run.returncode, run.stderr) == (status, text)
