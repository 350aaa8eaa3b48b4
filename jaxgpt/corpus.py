"""Documents from files: parquet, plain text, folders and globs of both, and Python's own standard library.

A corpus is read as a stream, in the order in which its sources were given, and never held in memory. Reading it twice
gives the same documents. Null and empty documents are left out and counted; in text files, bytes that are no UTF-8
become U+FFFD and are counted; in parquet they are an error, because there they mean damage.
"""

import glob
import hashlib
import heapq
import os
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxgpt.errors import DataError
from jaxgpt.manifest import SourceEntry
from jaxgpt.progress import counted

STANDARD_LIBRARY = "python-stdlib"
IN_FOLDERS = (".txt", ".md", ".py")
TEXT = (*IN_FOLDERS, "", ".rst", ".tex", ".html", ".xml", ".css", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".rs", ".go")
NOT_ITS_OWN = ("site-packages", "dist-packages", "__pycache__")
BROKEN_ON_PURPOSE = ("lib2to3", "tests", "data")
ROWS = 64  # read at a time: few, so that a file of long documents does not fill the memory
BUCKET_BITS = 20
SAMPLE_BYTES = 2_000_000


@dataclass(frozen=True)
class Source:
    """Files to read documents from. `kind` is parquet, text (one file, one document) or python; `size` is in bytes."""

    path: Path
    kind: str
    size: int

    @property
    def name(self) -> str:
        return STANDARD_LIBRARY if self.kind == "python" else str(self.path)


@dataclass
class Skipped:
    """What was left out or mended while reading."""

    null: int = 0
    empty: int = 0
    unreadable: int = 0
    mended: int = 0

    def __str__(self) -> str:
        parts = [
            (self.null, "null document", "left out"),
            (self.empty, "empty document", "left out"),
            (self.unreadable, "file", "left out, whose encoding cannot be read"),
            (self.mended, "text file", "with bytes that are not UTF-8, now U+FFFD"),
        ]
        return ", ".join(f"{counted(count, noun)} {what}" for count, noun, what in parts if count)


def find_sources(names: Sequence[str], text_column: str | None = None) -> list[Source]:
    """The files that `names` (files, folders, globs, python-stdlib) stand for, in order; parquet files are opened.

    Raises `DataError` D020 to D023 for what cannot be read, before anything is.
    """
    sources = [source for name in names for source in _find(name)]
    seen: set[Path] = set()
    for source in sources:
        if source.path.resolve() in seen:
            raise DataError("D023", f"{source.name} is given twice", "name each source once")
        seen.add(source.path.resolve())
        if source.kind == "parquet":
            text_column_of(source, _open(source), text_column)
    return sources


def _find(name: str) -> list[Source]:
    path = Path(name).expanduser()
    if name == STANDARD_LIBRARY:
        return [_standard_library()]
    if path.is_dir():
        return [_source(file) for file in _files(path)]
    if path.exists():
        return [_source(path)]
    found = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(name) else []
    if not found:
        what = f"no file matches {name!r}" if glob.has_magic(name) else f"source {name!r} not found"
        raise DataError("D023", what, f"a parquet or text file, a folder or glob of them, or {STANDARD_LIBRARY}")
    return [source for match in found for source in _find(match)]


def _files(folder: Path) -> list[Path]:
    """The parquet files under `folder`, or, where there are none, its text files; hidden ones are left out.

    Text beside parquet files is a README or a licence rather than data.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in NOT_ITS_OWN)
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    parquet = [path for path in found if path.suffix.lower() == ".parquet"]
    wanted = parquet or [path for path in found if path.suffix.lower() in IN_FOLDERS]
    if not wanted:
        raise DataError(
            "D023", f"no .parquet, {', '.join(IN_FOLDERS)} files in '{folder}'", "name other files or globs"
        )
    return wanted


def _source(path: Path) -> Source:
    if not path.is_file():
        raise DataError("D015", f"{path} is not a file", "name the files or folders themselves")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return Source(path, "parquet", path.stat().st_size)
    if suffix in TEXT:
        return Source(path, "text", path.stat().st_size)
    raise DataError("D023", f"{path}: {suffix} files cannot be read", "give .parquet or text files (.txt, .md, .py)")


def _standard_library() -> Source:
    folder = Path(sysconfig.get_path("stdlib"))
    size = sum(path.stat().st_size for path in _library_files(folder))
    if not size:
        raise DataError("D023", f"this Python has no sources of its standard library in '{folder}'", "name files")
    return Source(folder, "python", size)


def _library_files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder).parts
        folders[:] = sorted(set(folders).difference(NOT_ITS_OWN)) if here != BROKEN_ON_PURPOSE else []
        wanted = here[:3] != BROKEN_ON_PURPOSE
        yield from (Path(place, name) for name in sorted(names) if wanted and name.endswith(".py"))


class Document(NamedTuple):
    """A text, its size in bytes of UTF-8, and a hash of it and of nothing else."""

    text: str
    size: int
    key: bytes

    @property
    def bucket(self) -> int:
        """The first bits of the hash: what decides on which side of a split the document falls."""
        return int.from_bytes(self.key[:4], "big") >> (32 - BUCKET_BITS)


def documents(source: Source, text_column: str | None, skipped: Skipped) -> Iterator[Document]:
    """The documents of `source` that are not empty. Raises `DataError` D020 to D022, naming the file and the place."""
    for text in _texts(source, text_column, skipped):
        if text:
            data = text.encode()
            yield Document(text, len(data), hashlib.blake2b(data, digest_size=16).digest())
        elif text is None:
            skipped.null += 1
        else:
            skipped.empty += 1


def _texts(source: Source, text_column: str | None, skipped: Skipped) -> Iterator[str | None]:
    if source.kind == "parquet":
        return _parquet(source, text_column)
    if source.kind == "python":
        return _python(source.path, skipped)
    return _text(source.path, skipped)


def _text(path: Path, skipped: Skipped) -> Iterator[str]:
    data = path.read_bytes()
    try:
        yield data.decode("utf-8-sig")
    except UnicodeDecodeError:
        skipped.mended += 1
        yield data.decode("utf-8-sig", errors="replace")


def _python(folder: Path, skipped: Skipped) -> Iterator[str]:
    """Every module, in the encoding that it declares (PEP 263)."""
    for path in _library_files(folder):
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeError):
            skipped.unreadable += 1  # test data that is broken on purpose
        else:
            yield text


def _open(source: Source) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(source.path)
        str(file.schema_arrow)  # decodes the columns' names, which may be damaged too
        return file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(source, "", error) from error


def _damaged(source: Source, place: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".")
    help = "the copy or download broke off, or it is another kind of file: fetch it again"
    return DataError("D021", f"{source.path}{place} is not parquet, or damaged: {reason}", help)


def text_column_of(source: Source, file: pq.ParquetFile, wanted: str | None) -> str:
    """The column of `file` that holds the text: `wanted`, else `text`, else the only column of strings."""
    columns = {field.name: field.type for field in file.schema_arrow}
    strings = [name for name, kind in columns.items() if _is_text(kind)]
    choice = wanted or ("text" if "text" in columns else strings[0] if len(strings) == 1 else "text")
    if choice in strings:
        return choice
    what = f"column {choice!r} is {columns[choice]}, not text" if choice in columns else f"no column {choice!r}"
    there = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none"
    help = f"--text-column {strings[0]}" if strings else "give a file that has a column of strings"
    raise DataError("D020", f"{source.path}: {what}; its columns: {there}", help)


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _parquet(source: Source, text_column: str | None) -> Iterator[str | None]:
    """The rows of the text column, one row group after another, a few at a time."""
    with _open(source) as file:
        column = text_column_of(source, file, text_column)
        for group in range(file.num_row_groups):
            place = f", row group {group},"
            try:
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column]):
                    yield from batch.column(0).to_pylist()
            except UnicodeDecodeError as error:
                help = "convert the file's text to UTF-8"
                what = f"{source.path}{place} column {column!r}: a text is not UTF-8 ({error.reason})"
                raise DataError("D022", what, help) from error
            except (pa.ArrowException, OSError) as error:
                raise _damaged(source, place, error) from error


class Tally:
    """What was read of one source: documents, bytes of text, and a hash of the texts in their order."""

    def __init__(self, source: Source) -> None:
        self._source, self._documents, self._bytes = source, 0, 0
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, document: Document) -> None:
        self._documents += 1
        self._bytes += document.size
        self._digest.update(document.key)

    def entry(self) -> SourceEntry:
        return SourceEntry(
            name=self._source.name,
            size=self._source.size,
            documents=self._documents,
            bytes=self._bytes,
            texts=self._digest.hexdigest(),
        )


class Census:
    """What one reading of a corpus finds: its size, and how its texts can be divided.

    Any share of the corpus, taken as all documents in buckets below a limit, is the same whatever the order of the
    documents, and equal documents fall on the same side of every limit. The census holds the bytes of each bucket
    (8 MB in all) and the texts of lowest hash, up to `SAMPLE_BYTES`, as a fair sample.
    """

    def __init__(self) -> None:
        self.documents = self.bytes = 0
        self._buckets = np.zeros(1 << BUCKET_BITS, dtype=np.int64)
        self._sample: list[tuple[int, int, str]] = []
        self._sample_bytes = 0

    def add(self, document: Document) -> None:
        self.documents += 1
        self.bytes += document.size
        self._buckets[document.bucket] += document.size
        self._take(-int.from_bytes(document.key, "big"), document)

    def _take(self, order: int, document: Document) -> None:
        """Keeps the texts of lowest hash, at least one: a heap by negative hash has the highest in front."""
        if self._sample_bytes >= SAMPLE_BYTES and order <= self._sample[0][0]:
            return
        heapq.heappush(self._sample, (order, document.size, document.text))
        self._sample_bytes += document.size
        while self._sample_bytes - self._sample[0][1] >= SAMPLE_BYTES:
            self._sample_bytes -= heapq.heappop(self._sample)[1]

    @property
    def sample(self) -> list[str]:
        return [text for _, _, text in sorted(self._sample)]

    def limit(self, size: float) -> int:
        """The lowest limit such that the documents in buckets below it hold `size` bytes, or all there are."""
        reached = int(np.searchsorted(np.cumsum(self._buckets), min(size, self.bytes)))
        return reached + 1 if size > 0 else 0

    def bytes_below(self, limit: int) -> int:
        return int(self._buckets[:limit].sum())
