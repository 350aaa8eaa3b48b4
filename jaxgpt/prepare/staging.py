"""How a folder of token shards comes to be: whole or not at all, and never from the beginning if it need not.

Everything is written into a hidden folder beside the one that is asked for, which gets that name at the end. A site
that keeps a journal can be gone on with after a kill or a full disk; one that does not is cleared and begun again.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.errors import StorageError

JOURNAL = ".journal.json"
OURS = re.compile(
    r"\.?(train|val)(_\d{6})?\.bin(\.tmp)?|\.?manifest\.json(\.tmp)?|\.?tokenizer\.json(\.tmp)?"
    r"|\.aside\.(tokens|index)\.tmp|\.journal\.json(\.tmp)?"
)


@dataclass
class Site:
    """A hidden folder in the making. `journal` is what was noted last, by an earlier process perhaps."""

    folder: Path
    journal: dict[str, Any] | None = None

    def note(self, journal: dict[str, Any]) -> None:
        """Keeps `journal` for whoever goes on: on the disk, and whole, when this returns."""
        temporary = self.folder / f"{JOURNAL}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(journal, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / JOURNAL)
        self.journal = journal

    def clear(self) -> None:
        """Forgets everything; S012 if there is anything that is not ours to remove."""
        paths = sorted(self.folder.iterdir())
        for path in paths:
            if not OURS.fullmatch(path.name):
                raise StorageError("S012", f"'{path}' is not from a preparation", "move it elsewhere")
        for path in paths:
            path.unlink()
        self.journal = None

    def finish(self) -> None:
        """Removes what only an unfinished folder needs."""
        for path in self.folder.glob(".*"):
            path.unlink()


@contextmanager
def building(folder: Path) -> Iterator[Site]:
    """A site for `folder`, held by this process, that gets its name when the block ends without an error.

    When an error ends the block, the site stays if it has a journal, and is removed if it has none. Raises
    `StorageError` S001 if another process is building `folder`, S002 or S012 if it cannot be made.
    """
    folder = folder.resolve()
    hidden = hidden_name(folder)
    handle = _open(folder, hidden)
    try:
        _claim(handle, folder)
        site = Site(hidden, _journal(hidden))
        if site.journal is None:
            site.clear()
        try:
            yield site
            site.finish()
            hidden.rename(folder)
        except BaseException:
            if site.journal is None:
                with suppress(OSError, StorageError):
                    site.clear()
                    hidden.rmdir()
            raise
    finally:
        os.close(handle)


def hidden_name(folder: Path) -> Path:
    """Where `folder` is built."""
    return folder.with_name(f".{folder.name}.preparing")


def _open(folder: Path, hidden: Path) -> int:
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        return os.open(hidden, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        what = f"'{folder}' cannot be made: {error.strerror} ({hidden})"
        raise StorageError("S002", what, "choose another --out") from error


def _journal(hidden: Path) -> dict[str, Any] | None:
    """What was noted last; one that cannot be read was not written by us, who write it in one piece."""
    try:
        found = json.loads((hidden / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _claim(handle: int, folder: Path) -> None:
    """Holds the hidden folder by a lock that the system drops with the process."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        what = f"'{folder}' is being prepared by another process"
        raise StorageError("S001", what, "wait for it, or choose another --out") from error


def check_target(folder: Path) -> None:
    """Raises `StorageError` S002 or S012 if `folder`, which does not exist or is empty, cannot be made."""
    target = folder.resolve()
    if target == Path.cwd() or os.path.ismount(target):
        why = "the current folder" if target == Path.cwd() else "a mount point"
        raise StorageError("S012", f"'{folder}' is {why} and cannot be replaced", f"--out {folder / 'tokens'}")
    above = next(parent for parent in target.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "it cannot be written" if above.is_dir() else "it is a file"
        raise StorageError("S002", f"'{folder}' cannot be made in '{above}': {why}", "choose another --out")


def check_room(place: Path, folder: Path, need: int) -> None:
    """Raises `StorageError` S011 if the disk of `place` has less than `need` bytes free, and a little over."""
    free = shutil.disk_usage(place).free
    if free < need * 1.05:
        what = f"'{folder}' needs about {need / 1e9:,.2f} GB, its disk has {free / 1e9:,.2f} GB free"
        raise StorageError("S011", what, "free some space, or choose an --out on another disk")
