"""A sweep's folder: `sweep.json` with its settings and the trials that it stopped, a run folder for each trial."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxgpt.config import Config
from jaxgpt.errors import CheckpointError, StorageError
from jaxgpt.runs.folder import RunFolder, changed_fields
from jaxgpt.sweep.grid import LEARNING_RATE, Varied
from jaxgpt.sweep.results import Outcome
from jaxgpt.utils.files import check_report_path, read_json, write_text

NEW_NAME = "--name NEW starts another sweep"


class SweepFolder:
    """The folder `path` of a sweep over `varied` fields of the config `base`, with so many seeds."""

    def __init__(self, path: Path, base: Config, varied: Sequence[Varied], seeds: int) -> None:
        self.path = path
        self.state_file = path / "sweep.json"
        self.report_file = path / "sweep.html"
        self.stopped: dict[str, Outcome] = {}  # by the name of the trial
        self._base = base
        self._varied = {field.label: field.values for field in varied}
        self._seeds = seeds

    @contextmanager
    def open(self) -> Iterator[None]:
        """Locks the folder, reads what an earlier process has stopped and writes the settings.

        Raises `CheckpointError` K006 if the folder is not this sweep's, `StorageError` S001 if another process has it.
        """
        self.check()
        try:
            with RunFolder(self.path).lock():
                self.check()  # another process may have started the sweep before the lock
                self.write()
                yield
        except StorageError as error:
            raise error.replace(help=NEW_NAME) from error

    def check(self) -> None:
        """Raises `CheckpointError` K006 unless the folder is new, or this sweep's: it may have got values and seeds."""
        if not self.state_file.is_file():
            others = [file.name for file in self.path.glob("*") if not file.name.startswith(".")]
            if others:
                message = f"'{self.path}' has other files: it is not a sweep's folder ({sorted(others)[0]}, …)"
                raise CheckpointError("K006", message, NEW_NAME)
            return
        try:
            stored = read_json(self.state_file)
            changes = self._changes(stored)
            self.stopped = {name: Outcome(**outcome) for name, outcome in stored["stopped"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{self.state_file} cannot be read: {type(error).__name__}: {error}"
            raise CheckpointError("K006", message, NEW_NAME) from error
        if changes:
            message = f"'{self.path}' was started with other settings: {', '.join(changes)}"
            raise CheckpointError("K006", message, NEW_NAME)
        check_report_path("the report", self.report_file)

    def _changes(self, stored: dict[str, Any]) -> list[str]:
        """What differs from the settings in `sweep.json` so that its trials are not among those of this sweep."""
        varied = {label: tuple(_hashable(value) for value in values) for label, values in stored["varied"].items()}
        if list(varied) != list(self._varied):
            return [f"it varies {', '.join(varied)}"]
        base = Config.from_dict(stored["base"])
        free = tuple(f"{label} " for label in varied if label != LEARNING_RATE)  # whose value in the base is not used
        changes = [text for text in changed_fields(base, self._base) if not text.startswith(free)]
        for label, values in varied.items():
            missing = [value for value in values if value not in self._varied[label]]
            changes += [f"it has {label} {value}" for value in missing]
        seeds = stored["seeds"]
        return changes + ([f"it has {seeds} seeds"] if seeds > self._seeds else [])

    def write(self) -> None:
        """Writes `sweep.json`, atomically."""
        values = {
            "version": 1,
            "base": self._base.to_dict(),
            "varied": self._varied,
            "seeds": self._seeds,
            "stopped": {name: outcome._asdict() for name, outcome in self.stopped.items()},
        }
        write_text(self.state_file, json.dumps(values, indent=2) + "\n")


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
