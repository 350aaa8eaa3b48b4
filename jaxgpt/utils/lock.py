"""A lock between processes: one holder at a time, released by the system when the holder ends, even by SIGKILL."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_HOLDER_CHARACTERS = 200


class LockedError(Exception):
    """Another process holds the lock. `holder` names it, such as "pid 7 on host a"."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is locked by {holder}")
        self.holder = holder


@contextmanager
def lock_file(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock on the file `path`, which is made if it is missing and names its holder.

    Raises `LockedError` if another process holds it, or waits for that process with `wait`. Raises `OSError` where the
    file cannot be written or the file system has no locks.
    """
    from filelock import FileLock, Timeout  # 50 ms to import, for commands that lock nothing

    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockedError(path, _read_holder(path)) from error
    try:
        path.write_text(f"pid {os.getpid()} on host {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def _read_holder(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # released and removed in the meantime
        text = ""
    return text[:MAX_HOLDER_CHARACTERS].strip() or "another process"
