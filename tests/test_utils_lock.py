"""The lock between processes: one holder, named to the others, and free again when it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.utils.lock import LockedError, lock_file

HOLD = """
import sys, time
from pathlib import Path
from jaxgpt.utils.lock import lock_file
with lock_file(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def start_holder(path: Path) -> "subprocess.Popen[str]":
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, env=env)
    assert holder.stdout
    assert holder.stdout.readline() == "locked\n"
    return holder


def test_holder_is_named_and_sigkill_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with start_holder(path) as holder:
        for _ in range(2):  # the first refusal must not erase the name
            with pytest.raises(LockedError) as caught, lock_file(path):
                pass
            assert caught.value.holder == f"pid {holder.pid} on host {os.uname().nodename}"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock_file(path):
        assert path.read_text() == f"pid {os.getpid()} on host {os.uname().nodename}\n"


def test_lock_excludes_a_second_holder_in_one_process(tmp_path: Path) -> None:
    with lock_file(tmp_path / ".lock"), pytest.raises(LockedError), lock_file(tmp_path / ".lock"):
        pass
    with lock_file(tmp_path / ".lock"):
        pass


def test_waiting_ends_when_the_holder_does(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with start_holder(path) as holder:
        threading.Timer(0.3, holder.kill).start()
        start = time.monotonic()
        with lock_file(path, wait=True):
            assert time.monotonic() - start > 0.2
            assert str(os.getpid()) in path.read_text()


def test_lock_that_cannot_be_made_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"), lock_file(tmp_path / "file" / ".lock"):
        pass
