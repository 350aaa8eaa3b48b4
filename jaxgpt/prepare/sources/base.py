"""What every kind of source has in common: its description, the batches of text that it gives, and its limits."""

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

BATCH_BYTES = 8_000_000  # text that is handed on at a time
DOCUMENT_LIMIT = 1 << 30  # bytes of one document
BOMB_BYTES, BOMB_RATIO = 256_000_000, 200  # what expands beyond both is refused


@dataclass(frozen=True)
class Source:
    """A file to read documents from.

    `kind` is parquet, jsonl, text (one file, one document) or python (a folder of modules). `size` is in bytes on
    disk, compressed if the file is. `name` is what messages and the manifest call it, `group` the index of the
    argument that it came from. A file of a hub has `remote`, and is at `path` once `local` was called.
    """

    path: Path
    kind: str
    size: int
    name: str
    group: int = 0
    remote: hub.HubFile | None = None

    def local(self) -> Path:
        """The file on this disk. A hub's file is fetched now, from where an interrupted download stopped."""
        return hub.fetch(self.remote) if self.remote else self.path


@dataclass
class Skipped:
    """What was left out or mended while reading."""

    null: int = 0
    empty: int = 0
    unreadable: int = 0
    mended: int = 0

    def add(self, other: "Skipped") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        parts = [
            (self.null, "null document", "left out"),
            (self.empty, "empty document", "left out"),
            (self.unreadable, "file", "left out, whose encoding cannot be read"),
            (self.mended, "text", "with bytes or surrogates that are not UTF-8, now U+FFFD"),
        ]
        return ", ".join(f"{pluralize(count, noun)} {what}" for count, noun, what in parts if count)


class Texts(NamedTuple):
    """Some documents of a source, one after another.

    `texts` has no nulls, no empty ones, and is valid UTF-8: about `BATCH_BYTES`, and at least one document; only the
    last batch of a source that ends with null or empty records may have none. `records` counts the source's records
    up to the end of this batch, null and empty ones included: reading from there on gives the rest. `skipped` counts
    this batch alone.
    """

    texts: pa.LargeStringArray
    records: int
    skipped: Skipped


class Estimate(NamedTuple):
    """Bytes of text and number of documents to expect; `exact` if both are known to the last one."""

    text_bytes: int
    documents: int
    exact: bool = False


class Batcher:
    """Collects arrays of texts into batches of about `BATCH_BYTES`: short ones are joined, long ones cut."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._clear()

    def _clear(self) -> None:
        self._arrays: list[pa.LargeStringArray] = []
        self._bytes, self._skipped = 0, Skipped()

    def add(self, texts: pa.LargeStringArray, mended: int = 0, unreadable: int = 0) -> Iterator[Texts]:
        """Takes one text per record, null or empty ones included."""
        self._skipped.add(Skipped(mended=mended, unreadable=unreadable))
        self._records += unreadable
        size = text_bytes(texts)
        step = max(1, len(texts) * BATCH_BYTES // size) if size > 2 * BATCH_BYTES else max(1, len(texts))
        for start in range(0, len(texts), step):
            self._take(texts.slice(start, step))
            if self._bytes >= BATCH_BYTES:
                yield self._batch()

    def _take(self, part: pa.LargeStringArray) -> None:
        self._records += len(part)
        self._skipped.null += part.null_count
        full = is_full(part)
        kept = part if full.true_count == len(part) else part.filter(full)
        self._skipped.empty += len(part) - part.null_count - len(kept)
        self._arrays.append(kept)
        self._bytes += text_bytes(kept)

    def rest(self) -> Iterator[Texts]:
        """What is left at the end of the source."""
        if any(map(len, self._arrays)) or str(self._skipped):
            yield self._batch()

    def _batch(self) -> Texts:
        texts = self._arrays[0] if len(self._arrays) == 1 else pa.concat_arrays([empty(), *self._arrays])
        batch = Texts(texts, self._records, self._skipped)
        self._clear()
        return batch


def empty() -> pa.LargeStringArray:
    return pa.array([], pa.large_string())


def is_full(texts: Any) -> Any:
    """For each text whether it is neither null nor empty."""
    return pc.fill_null(pc.greater(lengths(texts), pa.scalar(0)), False)


def lengths(texts: Any) -> Any:
    """The bytes of each text."""
    return pc.binary_length(texts)


def text_bytes(texts: Any) -> int:
    """Bytes of UTF-8 in `texts`."""
    return int(pc.sum(lengths(texts)).as_py() or 0)


def longest(texts: Any) -> int:
    """The bytes of the longest of `texts`, 0 if there is none."""
    return int(pc.max(lengths(texts)).as_py() or 0)


def clipped(text: str, size: int) -> str:
    """`text`, or as many of its first characters as fill `size` bytes at most."""
    return text if len(text) <= size // 4 else text.encode()[:size].decode(errors="ignore")


class Unchanged:
    """A file as it was when it was opened. `check` raises `DataError` D026 if it was written to or replaced since."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._before = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    @classmethod
    @contextmanager
    def watch(cls, path: Path, name: str) -> Iterator[Self]:
        """Checks at the end, and when an error is raised: a file that changes under its reader looks damaged."""
        file = cls(path, name)
        try:
            yield file
        except (OSError, JaxgptError, pa.ArrowException):
            file.check()
            raise
        file.check()

    def check(self) -> None:
        if self._state() != self._before:
            raise changed(self._name)


def changed(name: str) -> DataError:
    return DataError("D026", f"{name} changed while it was read", "run again when nothing writes to it")


def bomb(name: str, place: str, packed: int, unpacked: int) -> DataError:
    what = f"{name}{place}: {format_bytes(packed)} expand to {format_bytes(unpacked)} or more"
    limit = f"more than {BOMB_RATIO} times and {format_bytes(BOMB_BYTES)}"
    return DataError("D035", f"{what}, {limit}", "leave it out, or unpack it yourself if you trust it")


def check_expansion(name: str, place: str, packed: int, unpacked: int) -> None:
    """Raises `DataError` D035 for what no text expands to: that is damage, or made to fill the memory."""
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
        raise bomb(name, place, packed, unpacked)


def too_long(name: str, place: str, size: int) -> DataError:
    what = f"{name}{place}: a document of {format_bytes(size)}; the limit is {format_bytes(DOCUMENT_LIMIT)}"
    return DataError("D039", what, "cut it into documents, one a row or a line")
