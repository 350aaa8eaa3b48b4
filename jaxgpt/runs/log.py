"""The run's record: one JSON object per line of `log.jsonl`.

Every record has `kind` and `time` (seconds since 1970). Kinds: `start` (what was run, where, on what), `step` (one
optimizer update), `eval`, `save`, `stop` (why the run ended: "done", "early-stop: …", an error's code, or how it was
interrupted; a run that was killed has none). Losses are in nats per token, as exact as they were measured. Lines are
whole or absent: a line that a crash tore is skipped by `read` and ended by the next `RunLog`.
"""

import json
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LONGEST = 65_536  # bytes that hold a log's last record


class RunLog:
    """Appends records. A disk that refuses them costs records and one warning, never the run: `failure` says why."""

    def __init__(self, path: Path) -> None:
        self.path, self.failure, self.reason = path, "", "done"  # `reason`: of an end without an error
        self._file = path.open("ab", buffering=0)
        self._torn = _is_torn(path)

    def write(self, kind: str, **values: Any) -> None:
        """Appends one record, handing it to the system in one piece and at once."""
        finite = {name: _finite(value) for name, value in values.items()}
        line = json.dumps({"kind": kind, "time": round(time.time(), 3)} | finite) + "\n"
        whole = (b"\n" if self._torn else b"") + line.encode()
        try:
            self._torn = self._file.write(whole) != len(whole)
        except OSError as error:
            if not self.failure:
                self.failure = f"{self.path}: {error.strerror}"
                warn(f"the log has gaps from here on: {self.failure}")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.write("stop", reason=self.reason if kind is None else getattr(error, "code", kind.__name__))
        self.close()


def warn(text: str) -> None:
    """Tells the reader of a run what it goes on without."""
    print(f"warning: {text}", file=sys.stderr)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl` in order; lines that are no JSON objects are left out. A device has none."""
    if path.exists() and not path.is_file():
        return []  # it may have no end
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def ending(path: Path) -> str:
    """The reason of the `stop` record that ends the log at `path`; "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST))
            last = json.loads(file.read(LONGEST).splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return ""
    stopped = isinstance(last, dict) and last.get("kind") == "stop"
    return str(last.get("reason")) if stopped else ""


def _is_torn(path: Path) -> bool:
    """Whether the last line has no end; a device or pipe, which has no size, has no last line either."""
    size = path.stat().st_size
    if not size:
        return False
    with path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) != b"\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN: a float that is not finite is written as its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
