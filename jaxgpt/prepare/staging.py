"""Staging folders: a folder of token shards appears complete or not at all, and its preparation can be resumed.

Everything is written into a hidden folder beside the requested one, which is renamed at the end. A staging folder with
a journal can be resumed after a kill or a full disk; one without is cleared.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.errors import StorageError
from jaxgpt.utils.files import read_json, write_text
from jaxgpt.utils.lock import LockedError, lock_file

JOURNAL = ".journal.json"
JOURNAL_FORMAT = 2  # raise it when journals of older versions cannot be resumed
KNOWN_FILES = re.compile(
    r"\.{0,2}(manifest|tokenizer|journal)\.json(\.tmp)?|\.?(train|val)(_\d{6})?\.bin(\.tmp)?"
    r"|\.(holdout|aside)\.(tokens|index)\.tmp"
)


@dataclass
class StagingDir:
    """A hidden folder in preparation. `journal` is what was recorded last, possibly by an earlier process."""

    folder: Path
    journal: dict[str, Any] | None = None

    def write_journal(self, journal: dict[str, Any]) -> None:
        """Replaces the journal atomically; it is on the disk when this returns."""
        self.journal = {"format": JOURNAL_FORMAT, **journal}
        write_text(self.folder / JOURNAL, json.dumps(self.journal))

    def clear(self) -> None:
        """Removes all files. Raises `StorageError` S012 if there are files that are not from a preparation."""
        paths = sorted(self.folder.iterdir())
        for path in paths:
            if not KNOWN_FILES.fullmatch(path.name):
                raise StorageError("S012", f"'{path}' is not from a preparation", "move it elsewhere")
        for path in paths:
            path.unlink()
        self.journal = None

    def remove_temporary_files(self) -> None:
        """Removes what only an unfinished folder needs."""
        for path in self.folder.glob(".*"):
            path.unlink()


@contextmanager
def staging_dir(folder: Path) -> Iterator[StagingDir]:
    """Yields a locked staging folder, which is renamed to `folder` when the block ends without an error.

    After an error it stays if it has a journal, and is removed otherwise. Raises `StorageError` S001 if another
    process is preparing `folder`, S002 or S012 if it cannot be created.
    """
    folder = folder.resolve()
    hidden = staging_path(folder)
    with _locked(folder, hidden):
        staging = StagingDir(hidden, _read_journal(hidden))
        if staging.journal is None:
            staging.clear()
        try:
            yield staging
            staging.remove_temporary_files()
            hidden.rename(folder)
        except BaseException:
            if staging.journal is None:
                with suppress(OSError, StorageError):
                    staging.clear()
                    hidden.rmdir()
            raise


def staging_path(folder: Path) -> Path:
    """The staging folder of `folder`."""
    return folder.with_name(f".{folder.name}.preparing")


@contextmanager
def _locked(folder: Path, hidden: Path) -> Iterator[None]:
    """Creates the hidden folder and locks it by a file beside it, which is removed at the end."""
    lock = hidden.with_name(f"{hidden.name}.lock")
    with ExitStack() as stack:
        try:
            hidden.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(lock))
        except LockedError as error:
            message = f"'{folder}' is being prepared by another process, {error.holder}"
            raise StorageError("S001", message, "wait for it, or choose another --out") from error
        except OSError as error:
            message = f"'{folder}' cannot be made: {error.strerror} ({hidden})"
            raise StorageError("S002", message, "choose another --out") from error
        stack.callback(lock.unlink, missing_ok=True)
        yield


def _read_journal(hidden: Path) -> dict[str, Any] | None:
    """What was recorded last. An unreadable journal counts as none: journals are written atomically."""
    try:
        journal = read_json(hidden / JOURNAL)
    except (OSError, ValueError, RecursionError):
        return None
    return journal if isinstance(journal, dict) else None


def check_target(folder: Path) -> None:
    """Raises `StorageError` S002 or S012 if `folder`, which does not exist or is empty, cannot be created."""
    target = folder.resolve()
    if target == Path.cwd() or os.path.ismount(target):
        reason = "the current folder" if target == Path.cwd() else "a mount point"
        raise StorageError("S012", f"'{folder}' is {reason} and cannot be replaced", f"--out {folder / 'tokens'}")
    parent = next(parent for parent in target.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "it cannot be written" if parent.is_dir() else "it is a file"
        raise StorageError("S002", f"'{folder}' cannot be made in '{parent}': {reason}", "choose another --out")


def check_disk_space(location: Path, folder: Path, required: int) -> None:
    """Raises `StorageError` S011 if the disk of `location` has less than `required` bytes free, plus 5 %."""
    free = shutil.disk_usage(location).free
    if free < required * 1.05:
        message = f"'{folder}' needs about {required / 1e9:,.2f} GB, its disk has {free / 1e9:,.2f} GB free"
        raise StorageError("S011", message, "free some space, or choose an --out on another disk")
