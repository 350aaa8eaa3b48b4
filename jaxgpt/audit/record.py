"""`audit.json`: what an audit found, in the shape of docs/audit.md, and the two files that stand beside it."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import _loader
from jaxgpt.data.dataset import TokenDataset, translate_loader_errors
from jaxgpt.errors import StorageError
from jaxgpt.utils import html as report

NAME = "audit.json"
FORMAT = 1
METHOD = 1  # of the search for duplicates: another number, another result from the same tokens
TITLE = "Audit of "

Record = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """The files of an audit. The record is written last: where it is, the others are."""

    record: Path

    @property
    def page(self) -> Path:
        return self.record.with_suffix(".html")

    @property
    def clusters(self) -> Path:
        return self.record.with_name(f"{self.record.stem}-clusters.bin")

    @property
    def folder(self) -> Path:
        return self.record.parent

    def check(self) -> None:
        """Raises `StorageError` S016 if the files cannot be written, or stand in the place of somebody's own."""
        for path, ours in ((self.record, _is_record), (self.page, _is_page), (self.clusters, _is_clusters)):
            if os.path.lexists(path) and not (path.is_file() and _looks(path, ours)):
                help = "move it elsewhere, or name another file: --out FILE.json"
                raise StorageError("S016", f"'{path}' is not from an audit, and is not overwritten", help)
        try:
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            what = f"the audit cannot be written into '{self.folder}': {error.strerror}"
            raise StorageError("S016", what, "--out FILE.json writes it elsewhere") from error

    def write(self, record: Record, page: str, audit: _loader.Audit) -> Record:
        """Writes all three, and returns the record with the clusters' checksum in it."""
        with translate_loader_errors():
            checksum = audit.write_clusters(self.clusters)
        record["clusters"] = {"file": self.clusters.name, "xxh3_128": checksum}
        report.write(self.page, page)
        report.write(self.record, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return record

    def read(self) -> Record | None:
        """The record, None if there is none of this version with all its files."""
        if not (self.record.is_file() and self.page.is_file() and self.clusters.is_file()):
            return None
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return None
        return found if _is_ours(found) and found.get("format") == FORMAT else None

    def is_newer(self, data: TokenDataset) -> bool:
        """Whether no token file was written to after the record."""
        written = self.record.stat().st_mtime_ns
        splits = [split for split in (data.train, data.val) if split]
        return all(path.stat().st_mtime_ns <= written for split in splits for path in split.paths)


def _is_ours(found: Any) -> bool:
    return isinstance(found, dict) and str(found.get("tool", "")).startswith("jaxgpt ") and "fingerprint" in found


def _looks(path: Path, ours: Callable[[bytes], bool]) -> bool:
    with path.open("rb") as file:
        return ours(file.read(1024))


def _is_record(start: bytes) -> bool:
    return start.startswith(b"{") and b'"tool": "jaxgpt ' in start


def _is_page(start: bytes) -> bool:
    return f"<title>{TITLE}".encode() in start


def _is_clusters(start: bytes) -> bool:
    return start.startswith(b"jaxgpt-clusters")
