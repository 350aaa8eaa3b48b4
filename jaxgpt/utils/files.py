"""Files: written in one piece, never over somebody else's, and locked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxgpt.errors import ConfigError

HEAD_BYTES = 1 << 16


@contextmanager
def atomic_writer(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that replaces `path` when the block ends: a reader or a crash sees the old content or the new.

    It is on the disk (fsync) before it takes the name; a link stays a link. An error leaves `path` as it was.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    encoding = None if "b" in mode else "utf-8"
    errors = None if "b" in mode else "backslashreplace"
    try:
        with temporary.open(mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replaces the content of `path` by `text`, atomically."""
    with atomic_writer(path) as file:
        file.write(text)


def check_writable(option: str, path: Path) -> Path:
    """Returns `path`; raises `ConfigError` C041, before any work, if a file cannot be written there."""
    if path.is_dir():
        raise ConfigError("C041", f"{option} '{path}' cannot be written: it is a folder", "choose another path")
    if path.exists() and not path.is_file():
        raise ConfigError("C041", f"{option} '{path}' cannot be written: not a regular file", "choose another path")
    if not path.parent.is_dir():
        message = f"{option} '{path}' cannot be written: there is no folder '{path.parent}'"
        raise ConfigError("C041", message, "choose another path")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError("C041", f"{option} '{path}' cannot be written: no permission", "choose another path")
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
