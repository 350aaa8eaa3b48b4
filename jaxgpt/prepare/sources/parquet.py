"""Texts of a parquet file's column of strings, as Arrow holds them.

Before a row group is read, its page headers are: they tell what it will become in memory, so that a file made to fill
it, or damaged so that it would, is refused before anything is given to it. Batches are cut by rows so that each holds
about `BATCH_BYTES`, whatever the row groups.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxgpt.data import hub
from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base as common
from jaxgpt.prepare.sources.base import (
    Batcher,
    Estimate,
    Source,
    Texts,
    Unchanged,
    check_expansion,
    text_bytes,
    too_long,
)
from jaxgpt.prepare.sources.parquet_pages import (
    DELTA_PREFIXES,
    PLAIN,
    Chunk,
    Page,
    chunks,
    footer,
    is_encrypted,
    longest_entry,
    pages,
)

MOST_ROWS = 4096  # decoded at a time, so that a few long documents among many short ones do not come all at once
MOST_BYTES = 64_000_000  # that a batch may become if every row is the dictionary's longest
READ_BYTES = 1 << 20
CODECS: dict[int, Literal["", "snappy", "gzip", "brotli", "zstd"]]
CODECS = {0: "", 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd"}  # by the format's number
ENCRYPTED = b"PARE"


@dataclass(frozen=True)
class Column:
    """The text column of an open file. `path` is its name, with dots where it is a field of a struct."""

    source: Source
    file: pq.ParquetFile
    path: str
    chunks: list[Chunk]  # in each row group

    @property
    def name(self) -> str:
        return self.path.split(".")[0] if self.path not in self.file.schema_arrow.names else self.path

    def texts(self, found: pa.RecordBatch) -> Any:
        """The column's rows, one string or null each."""
        array = self.array(found)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        return array.cast(pa.large_string())

    def array(self, found: pa.RecordBatch) -> Any:
        """The column as Arrow gives it; a string within a null struct is null."""
        array = found.column(0)
        return array if self.name == self.path else pc.struct_field(array, self.path.split(".")[1:])


def place(group: int) -> str:
    return f", row group {group}"


@contextmanager
def opened(source: Source, text_column: str | None, remote: bool = False) -> Iterator[Column]:
    """Opens the file and finds its text column; with `remote`, a hub's file is not fetched, but its end is read.

    Raises `DataError` D020 without text column, D021 if the file is damaged, D036 if it is encrypted.
    """
    where: Any = hub.open_remote(source.remote) if remote and source.remote else source.local()
    try:
        file = _reader(where)
        str(file.schema_arrow)  # decodes the columns' names, which may be damaged too
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(source, "", error) from error
    with file:
        path = text_column_of(source, file, text_column)
        found = _chunks(source, where, _leaf(source, file, path))
        yield Column(source, file, path, found)


def _reader(where: Any, **options: Any) -> pq.ParquetFile:
    """Arrow's reader, told to read ahead little, and to check pages that have checksums."""
    options |= {"buffer_size": READ_BYTES, "pre_buffer": False, "page_checksum_verification": True}
    return pq.ParquetFile(where, **options)


def _chunks(source: Source, where: Any, leaf: int) -> list[Chunk]:
    try:
        with where.open("rb") if isinstance(where, Path) else nullcontext(where) as content:
            described = footer(content)
            if is_encrypted(described):
                raise _encrypted(source, "")
            return chunks(described, leaf)
    except (ValueError, OSError) as error:
        raise _damaged(source, "", error) from error


def _leaf(source: Source, file: pq.ParquetFile, path: str) -> int:
    schema = file.metadata.schema
    found = next((index for index in range(len(schema)) if schema.column(index).path == path), None)
    if found is None:
        raise _damaged(source, "", ValueError(f"its schema lists column {path!r}, its columns do not"))
    return found


def _damaged(source: Source, where: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".")
    if "crypt" in reason.lower() or _is_encrypted(source):
        return _encrypted(source, where)
    help = "the copy or download broke off, or it is another kind of file: fetch it again"
    return DataError("D021", f"{source.name}{where and where + ','} is not parquet, or damaged: {reason}", help)


def _encrypted(source: Source, where: str) -> DataError:
    help = "decrypt it with its keys, and give the decrypted file"
    return DataError("D036", f"{source.name}{where and where + ','} is encrypted", help)


def _is_encrypted(source: Source) -> bool:
    try:
        with source.path.open("rb") as file:
            return file.read(4) == ENCRYPTED
    except OSError:
        return False


def text_column_of(source: Source, file: pq.ParquetFile, wanted: str | None) -> str:
    """The column of `file` that holds the text: `wanted`, else `text`, else the only column of strings.

    `a.b` is the string `b` in the struct `a`.
    """
    schema = file.schema_arrow
    columns = {field.name: field.type for field in schema}
    strings = [name for name, kind in columns.items() if _is_text(kind)]
    choice = wanted or ("text" if "text" in columns else strings[0] if len(strings) == 1 else "text")
    if choice in strings or (choice not in columns and _is_text(_inner(schema, choice))):
        return choice
    what = f"column {choice!r} is {columns[choice]}, not text" if choice in columns else f"no column {choice!r}"
    there = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none"
    raise DataError("D020", f"{source.name}: {what}; its columns: {there}", _column_help(choice, columns, strings))


def _inner(schema: pa.Schema, path: str) -> Any:
    """The type of a field in a struct, None if `path` leads nowhere."""
    first, *rest = path.split(".")
    found: Any = schema.field(first).type if first in schema.names else None
    for name in rest:
        inside = found is not None and pa.types.is_struct(found) and found.get_field_index(name) >= 0
        found = found.field(name).type if inside else None
    return found


def _column_help(choice: str, columns: dict[str, Any], strings: list[str]) -> str:
    kind = columns.get(choice)
    if kind is not None and pa.types.is_struct(kind):
        inside = [f"{choice}.{field.name}" for field in kind if _is_text(field.type)]
        strings = inside or strings
    elif kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and not strings:
        return "if its bytes are UTF-8, write the file again with this column as strings"
    return f"--text-column {strings[0]}" if strings else "give a file that has a column of strings"


def _is_text(kind: Any) -> bool:
    if kind is None:
        return False
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def read(source: Source, text_column: str | None, start: int = 0) -> Iterator[Texts]:
    """The texts from row `start` on. Raises `DataError` D020 to D022, D026, D035, D036, D039."""
    batcher = Batcher(start)
    with Unchanged.watch(source.local(), source.name), opened(source, text_column) as column:
        for group, chunk in enumerate(column.chunks):
            if start < chunk.rows:
                for texts in _row_group(column, group, start):
                    yield from batcher.add(texts)
            start = max(0, start - chunk.rows)
    yield from batcher.rest()


def _row_group(column: Column, group: int, start: int = 0) -> Iterator[pa.LargeStringArray]:
    """The rows of a row group from `start` on, checked."""
    chunk, expanded, row = column.chunks[group], 0, 0
    for texts in _decoded(column, group):
        expanded += text_bytes(texts)
        check_expansion(column.source.name, place(group), chunk.packed, expanded)
        _check_text(column, group, row, texts)
        if start < row + len(texts):
            yield texts.slice(max(0, start - row))
        row += len(texts)
    if row != chunk.rows:
        problem = ValueError(f"it has {row:,} rows, its footer says {chunk.rows:,}")
        raise _damaged(column.source, place(group), problem)


def _decoded(column: Column, group: int) -> Iterator[Any]:
    found = _pages(column, group)
    coded = column.name == column.path and all(page.is_dictionary or page.is_indices for page in found)
    try:
        yield from _coded(column, group) if coded else _batches(column, group, found)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(column.source, place(group), error) from error


def _batches(column: Column, group: int, found: list[Page]) -> Iterator[Any]:
    rows = _rows_at_a_time(column, group, found)
    for batch in column.file.iter_batches(rows, row_groups=[group], columns=[column.path], use_threads=False):
        yield column.texts(batch)


def _coded(column: Column, group: int) -> Iterator[Any]:
    """The rows of a chunk that is all dictionary, which many writers make: its texts once, and a number for each row.

    The length of every row is thus known before its text is copied.
    """
    rows = max(1, column.chunks[group].rows)
    with _reader(column.source.local(), metadata=column.file.metadata, read_dictionary=[column.path]) as file:
        for batch in file.iter_batches(rows, row_groups=[group], columns=[column.path], use_threads=False):
            array: Any = batch.column(0)
            ends = np.cumsum(pc.fill_null(common.lengths(array.dictionary).take(array.indices), 0).to_numpy())
            check_expansion(column.source.name, place(group), column.chunks[group].packed, int(ends[-1]))
            for begin, end in _cuts(ends):
                yield _looked_up(array.dictionary, array.indices.slice(begin, end - begin)).cast(pa.large_string())


def _looked_up(dictionary: Any, indices: Any) -> Any:
    """The entries that `indices` name; not copied where they follow each other, as they do if all texts differ."""
    numbers = indices.to_numpy(zero_copy_only=False) if not indices.null_count else np.empty(0)
    if len(numbers) and bool((np.diff(numbers) == 1).all()):
        return dictionary.slice(int(numbers[0]), len(numbers))
    return dictionary.take(indices)


def _cuts(ends: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Cuts rows, which end at the bytes `ends`, into parts of `BATCH_BYTES` and the rest of a row: each is a batch."""
    begin = 0
    while begin < len(ends):
        limit = (ends[begin - 1] if begin else 0) + common.BATCH_BYTES
        end = int(np.searchsorted(ends, limit)) + 1
        yield begin, min(end, len(ends))
        begin = end


def _check_text(column: Column, group: int, row: int, texts: pa.LargeStringArray) -> None:
    try:
        texts.validate(full=True)
    except pa.ArrowException as error:
        bad = next(n for n in range(len(texts)) if not _is_valid(texts.slice(n, 1)))
        where = f"{column.source.name}{place(group)}, row {row + bad:,}, column {column.path!r}"
        raise DataError("D022", f"{where}: a text is not UTF-8", "convert the file's text to UTF-8") from error
    if common.longest(texts) > common.DOCUMENT_LIMIT:
        raise too_long(column.source.name, place(group), common.longest(texts))


def _is_valid(text: pa.LargeStringArray) -> bool:
    try:
        pa.concat_arrays([text]).validate(full=True)
    except pa.ArrowException:
        return False
    return True


def _rows_at_a_time(column: Column, group: int, found: list[Page]) -> int:
    """So many rows that about `BATCH_BYTES` are decoded at a time, and never `MOST_BYTES` from a dictionary."""
    rows = sum(page.values for page in found if not page.is_dictionary)
    mean = max(1, _expected_bytes(found) // max(1, rows))
    wanted = min(MOST_ROWS, common.BATCH_BYTES // mean)
    if DELTA_PREFIXES in column.chunks[group].encodings:
        wanted = min(wanted, MOST_BYTES // max(1, *(page.unpacked for page in found)))
    elif any(page.is_indices for page in found):
        wanted = min(wanted, MOST_BYTES // max(1, _longest_entry(column, group, found)))
    return max(1, wanted)


def _pages(column: Column, group: int) -> list[Page]:
    """The pages of the text in a row group. Raises `DataError` D021, D035, D036, D039 for what cannot be read."""
    chunk, name = column.chunks[group], column.source.name
    begin, end = chunk.begin, chunk.begin + chunk.packed
    found = []
    try:
        with column.source.path.open("rb") as file:
            if not 4 <= begin <= end <= column.source.path.stat().st_size:
                raise ValueError(f"its footer puts it at bytes {begin:,} to {end:,}")
            for page in pages(file, begin, chunk.packed):
                where = f"{place(group)}, page at byte {page.offset:,}"
                check_expansion(name, where, page.packed, page.unpacked)
                if page.unpacked > common.DOCUMENT_LIMIT:
                    raise too_long(name, where, page.unpacked)
                found.append(page)
    except (ValueError, OSError) as error:
        raise _damaged(column.source, place(group), error) from error
    check_expansion(name, place(group), chunk.packed, max(chunk.unpacked, sum(page.unpacked for page in found)))
    return found


def _longest_entry(column: Column, group: int, found: list[Page]) -> int:
    """The length of the longest text in the dictionary, or what it cannot exceed if its codec is an unusual one."""
    page = next(page for page in found if page.is_dictionary)
    codec = CODECS.get(column.chunks[group].codec)
    if codec is None:
        return page.unpacked
    with column.source.path.open("rb") as file:
        file.seek(page.content)
        content = file.read(page.packed)
    try:
        return longest_entry(bytes(pa.decompress(content, page.unpacked, codec)) if codec else content)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(column.source, place(group), error) from error


def _expected_bytes(found: list[Page]) -> int:
    """Bytes of text: plain values are preceded by four bytes of length, indices stand for an average entry."""
    entries = sum(page.values for page in found if page.is_dictionary)
    size = sum(page.unpacked - 4 * page.values for page in found if page.is_dictionary)
    indices = sum(page.values for page in found if page.is_indices)
    coded = max(0, size) * indices // max(1, entries)
    return coded + sum(_page_bytes(page) for page in found if not page.is_dictionary and not page.is_indices)


def _page_bytes(page: Page) -> int:
    return max(0, page.unpacked - 4 * page.values) if page.encoding == PLAIN else page.unpacked


def estimate(source: Source, text_column: str | None) -> Estimate:
    """From the footer and the page headers; of a hub's file that is not here yet, from the footer alone."""
    remote = source.remote is not None and not hub.is_downloaded(source.remote)
    with opened(source, text_column, remote) as column:
        rows = sum(chunk.rows - chunk.nulls for chunk in column.chunks)
        if remote:
            return Estimate(max(0, sum(chunk.unpacked for chunk in column.chunks) - 4 * rows), rows)
        return Estimate(sum(_expected_bytes(_pages(column, group)) for group in range(len(column.chunks))), rows)
