"""What all kinds of sources share: their description, the batches of text that they yield, and limits on sizes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from jaxgpt.data import hub
from jaxgpt.errors import DataError, JaxgptError
from jaxgpt.utils.formatting import format_bytes, pluralize

BATCH_BYTES = 8_000_000  # text per batch
DOCUMENT_LIMIT = 1 << 30  # bytes of one document
BOMB_BYTES, BOMB_RATIO = 256_000_000, 200  # data that expands beyond both limits is refused


@dataclass(frozen=True)
class Source:
    """A file to read documents from.

    `kind` is parquet, jsonl, text or python (a folder of modules). `size` is in bytes on disk, compressed if the file
    is. `name` identifies it in messages and in the manifest; `group` is the index of the command-line argument that it
    came from. A file of a hub has `remote`; after `local()` it exists at `path`. `text_column` is the column or field
    of the text, None to find it; `separator` is what separates the documents of a text file, "" if it has only one.
    """

    path: Path
    kind: str
    size: int
    name: str
    group: int = 0
    remote: hub.HubFile | None = None
    text_column: str | None = None
    separator: str = ""

    def local(self) -> Path:
        """Returns the path on this disk. Downloads a hub's file first, or what is missing of it."""
        return hub.fetch(self.remote) if self.remote else self.path


@dataclass
class Skipped:
    """Counts of records that were left out, and of texts that were repaired, while reading."""

    null: int = 0
    empty: int = 0
    unreadable: int = 0
    repaired: int = 0

    def add(self, other: "Skipped") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        parts = [
            (self.null, "null document", "left out"),
            (self.empty, "empty document", "left out"),
            (self.unreadable, "file", "left out, whose encoding cannot be read"),
            (self.repaired, "text", "with bytes or surrogates that are not UTF-8, now U+FFFD"),
        ]
        return ", ".join(f"{pluralize(count, noun)} {state}" for count, noun, state in parts if count)


class TextBatch(NamedTuple):
    """Consecutive documents of a source.

    `texts` has no null and no empty text, and is valid UTF-8: about `BATCH_BYTES`, and at least one document. Only the
    last batch of a source that ends with null or empty records may be without documents. `records` counts the source's
    records up to the end of this batch, null and empty ones included: reading continues from there. `skipped` counts
    this batch alone.
    """

    texts: pa.LargeStringArray
    records: int
    skipped: Skipped


class Estimate(NamedTuple):
    """Expected bytes of text and number of documents."""

    text_bytes: int
    documents: int


class Batcher:
    """Collects arrays of texts into batches of about `BATCH_BYTES`: joins short arrays and cuts long ones."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._clear()

    def _clear(self) -> None:
        self._arrays: list[pa.LargeStringArray] = []
        self._bytes = 0
        self._skipped = Skipped()

    def add(self, texts: pa.LargeStringArray, repaired: int = 0, unreadable: int = 0) -> Iterator[TextBatch]:
        """Takes one text per record, null or empty ones included, and yields the batches that are full."""
        self._skipped.add(Skipped(repaired=repaired, unreadable=unreadable))
        self._records += unreadable
        size = text_bytes(texts)
        rows = max(1, len(texts))
        if size > 2 * BATCH_BYTES:
            rows = max(1, len(texts) * BATCH_BYTES // size)
        for start in range(0, len(texts), rows):
            self._append(texts.slice(start, rows))
            if self._bytes >= BATCH_BYTES:
                yield self._batch()

    def _append(self, texts: pa.LargeStringArray) -> None:
        self._records += len(texts)
        self._skipped.null += texts.null_count
        mask = is_nonempty(texts)
        documents = texts if mask.true_count == len(texts) else texts.filter(mask)
        self._skipped.empty += len(texts) - texts.null_count - len(documents)
        self._arrays.append(documents)
        self._bytes += text_bytes(documents)

    def flush(self) -> Iterator[TextBatch]:
        """Yields the texts that are left at the end of the source."""
        if any(map(len, self._arrays)) or str(self._skipped):
            yield self._batch()

    def _batch(self) -> TextBatch:
        if len(self._arrays) == 1:
            texts = self._arrays[0]
        else:
            texts = pa.concat_arrays([pa.array([], pa.large_string()), *self._arrays])
        batch = TextBatch(texts, self._records, self._skipped)
        self._clear()
        return batch


def is_nonempty(texts: Any) -> Any:
    """Whether each text is neither null nor empty, as an Arrow array of booleans."""
    return pc.fill_null(pc.greater(byte_lengths(texts), pa.scalar(0)), False)


def byte_lengths(texts: Any) -> Any:
    """The length of each text in bytes of UTF-8."""
    return pc.binary_length(texts)


def text_bytes(texts: Any) -> int:
    """Bytes of UTF-8 in all `texts`."""
    return int(pc.sum(byte_lengths(texts)).as_py() or 0)


def max_text_bytes(texts: Any) -> int:
    """Bytes of the longest of `texts`, 0 if there are none."""
    return int(pc.max(byte_lengths(texts)).as_py() or 0)


def truncate(text: str, size: int) -> str:
    """`text`, or its longest prefix of at most `size` bytes."""
    return text if len(text) <= size // 4 else text.encode()[:size].decode(errors="ignore")


class FileGuard:
    """Remembers a file's size, time and inode. `check` raises `DataError` D026 if they changed since."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._before = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns, status.st_ino

    @classmethod
    @contextmanager
    def watch(cls, path: Path, name: str) -> Iterator[Self]:
        """Checks at the end of the block, and when it raises: a file that changes while it is read looks damaged."""
        guard = cls(path, name)
        try:
            yield guard
        except (OSError, JaxgptError, pa.ArrowException):
            guard.check()
            raise
        guard.check()

    def check(self) -> None:
        if self._state() != self._before:
            raise file_changed_error(self._name)


def file_changed_error(name: str) -> DataError:
    return DataError("D026", f"{name} changed while it was read", "run again when nothing writes to it")


def check_expansion(name: str, location: str, packed: int, unpacked: int) -> None:
    """Raises `DataError` D035 if `packed` bytes expand further than text does: damage, or a decompression bomb."""
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
        limit = f"more than {BOMB_RATIO} times and {format_bytes(BOMB_BYTES)}"
        raise DataError(
            "D035",
            f"{name}{location}: {format_bytes(packed)} expand to {format_bytes(unpacked)} or more, {limit}",
            "leave it out, or unpack it yourself if you trust it",
        )


def document_too_long_error(name: str, location: str, size: int) -> DataError:
    limit = format_bytes(DOCUMENT_LIMIT)
    message = f"{name}{location}: a document of {format_bytes(size)}; the limit is {limit}"
    return DataError("D039", message, "cut it into documents, one per row or line")
