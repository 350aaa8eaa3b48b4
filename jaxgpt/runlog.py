"""The run's record: one JSON object per line of `log.jsonl`.

Every record has `kind` and `time` (seconds since 1970). Kinds: `start` (what was run, where, on what), `step` (one
optimizer update), `eval`, `save`, `stop`. Losses are in nats per token. Lines are whole or absent: a line that a
crash tore is skipped by `read` and ended by the next `RunLog`.
"""

import json
import math
import time
from pathlib import Path
from typing import Any, Self


class RunLog:
    """Appends records. A disk that refuses them costs the record, never the run: `failure` then says why."""

    def __init__(self, path: Path) -> None:
        self.path, self.failure = path, ""
        self._file = path.open("a+", encoding="utf-8")
        if _is_torn(path):
            self._file.write("\n")

    def write(self, kind: str, **values: Any) -> None:
        """Appends one record and hands it to the system at once."""
        record = {"kind": kind, "time": round(time.time(), 3)} | {
            name: _finite(value) for name, value in values.items()
        }
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            self.failure = self.failure or f"{self.path}: {error.strerror}"

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.failure = self.failure or f"{self.path}: {error.strerror}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl` in order; lines that are no JSON objects are left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 1, 0))
        return size > 0 and file.read(1) != b"\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN: a float that is not finite is written as its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
