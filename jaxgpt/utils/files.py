"""Files: written atomically, and never over somebody else's."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

from jaxgpt.errors import ConfigError

HEAD_BYTES = 1 << 16


def write_text(path: Path, text: str) -> None:
    """Replaces the content of `path` by `text`, atomically: a reader or a crash sees the old content or the new.

    The new content is on the disk (fsync) before it takes the name; a link stays a link. An error leaves `path` as it
    was.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is reported without a name
        raise


def read_text(path: Path) -> str:
    """The text of the file `path`. Raises `OSError` if it is a pipe, socket or device: reading it may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises `OSError` as `read_text`, `ValueError` if it is not JSON that can be read."""
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def sync(path: Path) -> None:
    """Returns when the file or folder `path` is on the disk as it is now (fsync)."""
    if sys.platform == "win32":
        if path.is_dir():
            return  # it has no such call
        descriptor = os.open(path, os.O_RDWR)  # which the call needs there
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(option: str, path: Path) -> Path:
    """Returns `path`; raises `ConfigError` C041, before any work, if a file cannot be written there."""
    problems = {
        "it is a folder": path.is_dir(),
        "not a regular file": path.exists() and not path.is_file(),
        f"there is no folder '{path.parent}'": not path.parent.is_dir(),
        "no permission": not os.access(path if path.exists() else path.parent, os.W_OK),
    }
    for problem, exists in problems.items():
        if exists:
            raise ConfigError("C041", f"{option} '{path}' cannot be written: {problem}", "choose another path")
    return path


def check_report_path(option: str, path: Path) -> Path:
    """Like `check_writable`, and raises `ConfigError` C041 if `path` holds anything but an older report."""
    from jaxgpt.utils.report.html_renderer import is_report  # loads rich: only commands that write a report need it

    check_writable(option, path)
    if not path.is_file():
        return path
    with path.open("rb") as file:
        start = file.read(HEAD_BYTES)
    if start and not is_report(start):
        raise ConfigError("C041", f"'{path}' exists and is not a report of jaxgpt", "choose another path")
    return path


def compilation_cache_dir() -> Path:
    """The folder of XLA's compiled programs: `$JAX_COMPILATION_CACHE_DIR`, by default in the user's cache."""
    user_cache = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(user_cache) / "jaxgpt" / "xla")


def file_id(path: Path) -> tuple[int, int] | None:
    """What distinguishes a file or folder from another one that takes its name; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
