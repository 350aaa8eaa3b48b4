"""The files of an audit: `audit.json` as docs/audit.md describes it, the page and the clusters beside it."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import _loader
from jaxgpt.data import audit_files
from jaxgpt.data.dataset import TokenDataset, translate_loader_errors
from jaxgpt.errors import StorageError
from jaxgpt.utils import files
from jaxgpt.utils.files import read_json

FORMAT = 1
METHOD = 1  # version of the search for duplicates: another version gives another result for the same tokens
TITLE = "Audit of "

Record = dict[str, Any]


@dataclass(frozen=True)
class AuditFiles:
    """The files of an audit. The record is written last: if it exists, the others are complete."""

    record: Path

    @property
    def page(self) -> Path:
        return self.record.with_suffix(".html")

    @property
    def clusters(self) -> Path:
        return audit_files.clusters_path(self.record)

    @property
    def folder(self) -> Path:
        return self.record.parent

    def check(self) -> None:
        """Raises `StorageError` S016 if the files cannot be written, or would replace files that are not an audit's."""
        own_content = {
            self.record: b'"tool": "jaxgpt ',
            self.page: f"<title>{TITLE}".encode(),
            self.clusters: audit_files.CLUSTERS_MAGIC,
        }
        for path, content in own_content.items():
            if os.path.lexists(path) and not (path.is_file() and content in _read_start(path)):
                help = "move it elsewhere, or name another file: --out FILE.json"
                raise StorageError("S016", f"'{path}' is not from an audit, and is not overwritten", help)
        try:
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            message = f"the audit cannot be written into '{self.folder}': {error.strerror}"
            raise StorageError("S016", message, "--out FILE.json writes it elsewhere") from error

    def write(self, record: Record, page: str, audit: _loader.Audit) -> Record:
        """Writes all three files, and returns the record with the clusters' checksum in it."""
        with translate_loader_errors():
            checksum = audit.write_clusters(self.clusters)
        record["clusters"] = {"file": self.clusters.name, "xxh3_128": checksum}
        files.write_text(self.page, page)
        files.write_text(self.record, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return record

    def read(self) -> Record | None:
        """Returns the record; None if a file is missing, or if another version wrote it."""
        if not (self.record.is_file() and self.page.is_file() and self.clusters.is_file()):
            return None
        try:
            record = read_json(self.record)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or not str(record.get("tool", "")).startswith("jaxgpt "):
            return None
        return record if "fingerprint" in record and record.get("format") == FORMAT else None

    def is_newer_than(self, dataset: TokenDataset) -> bool:
        """Whether no token file was modified after the record."""
        written = self.record.stat().st_mtime_ns
        splits = [split for split in (dataset.train, dataset.val) if split]
        return all(path.stat().st_mtime_ns <= written for split in splits for path in split.paths)


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1024)
