"""What a command shows while it imports its libraries, and how Ctrl-C ends it there."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.utils.loading import loading

INTERRUPTED_IMPORT = """
import os, signal, time
from jaxgpt.utils.loading import loading

with loading("JAX"):
    try:
        os.kill(os.getpid(), signal.SIGINT)
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


def test_interrupt_while_loading_ends_without_a_traceback() -> None:
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    command = [sys.executable, "-c", INTERRUPTED_IMPORT]
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=30, check=False)
    assert (run.returncode, run.stderr) == (130, "interrupted\n")
