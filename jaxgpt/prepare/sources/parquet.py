"""The text column of a parquet file, as Arrow strings.

Page headers are read before a row group is: they say how large it becomes in memory, so that a damaged or malicious
file is refused before anything is allocated for it. Rows are decoded in slices of about `BATCH_BYTES`, however large
the row groups are.
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
from jaxgpt.prepare.sources import base, parquet_pages
from jaxgpt.prepare.sources.base import (
    Batcher,
    Estimate,
    FileGuard,
    Source,
    TextBatch,
    check_expansion,
    document_too_long_error,
)
from jaxgpt.prepare.sources.columns import column_texts, find_text_column, invalid_text_error, is_valid, top_level_name
from jaxgpt.prepare.sources.parquet_pages import Chunk, Page

MAX_ROWS = 4096  # per decoded slice, in case some long documents follow many short ones
MAX_DECODED_BYTES = 64_000_000  # of a slice if every row were the longest entry of the dictionary
READ_BYTES = 1 << 20
CODECS: dict[int, Literal["", "snappy", "gzip", "brotli", "zstd"]]
CODECS = {0: "", 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd"}  # by their numbers in the format
ENCRYPTED_MAGIC = b"PARE"


@dataclass(frozen=True)
class Column:
    """The text column of an open file. `path` is its name, with dots where it is a field of a struct."""

    source: Source
    file: pq.ParquetFile
    path: str
    chunks: list[Chunk]  # one per row group

    @property
    def name(self) -> str:
        """The top-level column that contains the text."""
        return top_level_name(self.file.schema_arrow, self.path)


def row_group_label(group: int) -> str:
    return f", row group {group}"


@contextmanager
def open_column(source: Source, remote: bool = False) -> Iterator[Column]:
    """Opens the file and finds its text column. With `remote`, reads only the end of a hub's file, over the network.

    Raises `DataError` D020 if there is no text column, D021 if the file is damaged, D036 if it is encrypted.
    """
    location: Any = hub.open_remote(source.remote) if remote and source.remote else source.local()
    try:
        file = _open_reader(location)
        str(file.schema_arrow)  # decodes the names of the columns, which may be damaged too
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged_error(source, "", error) from error
    with file:
        path = find_text_column(source, file.schema_arrow)
        yield Column(source, file, path, _read_chunks(source, location, _leaf_index(source, file, path)))


def _open_reader(location: Any, **options: Any) -> pq.ParquetFile:
    """Opens a file with little read-ahead, and with verification of those pages that have checksums."""
    options |= {"buffer_size": READ_BYTES, "pre_buffer": False, "page_checksum_verification": True}
    return pq.ParquetFile(location, **options)


def _read_chunks(source: Source, location: Any, leaf: int) -> list[Chunk]:
    try:
        with location.open("rb") if isinstance(location, Path) else nullcontext(location) as content:
            footer = parquet_pages.read_footer(content)
            if parquet_pages.is_encrypted(footer):
                raise _encrypted_error(source, "")
            return parquet_pages.column_chunks(footer, leaf)
    except (ValueError, OSError) as error:
        raise _damaged_error(source, "", error) from error


def _leaf_index(source: Source, file: pq.ParquetFile, path: str) -> int:
    schema = file.metadata.schema
    for index in range(len(schema)):
        if schema.column(index).path == path:
            return index
    raise _damaged_error(source, "", ValueError(f"its schema lists column {path!r}, its columns do not"))


def _damaged_error(source: Source, location: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".")
    if "crypt" in reason.lower() or _has_encrypted_magic(source):
        return _encrypted_error(source, location)
    help = "the copy or download broke off, or it is another kind of file: fetch it again"
    where = location and f"{location},"
    return DataError("D021", f"{source.name}{where} is not parquet, or damaged: {reason}", help)


def _encrypted_error(source: Source, location: str) -> DataError:
    where = location and f"{location},"
    help = "decrypt it with its keys, and give the decrypted file"
    return DataError("D036", f"{source.name}{where} is encrypted", help)


def _has_encrypted_magic(source: Source) -> bool:
    try:
        with source.path.open("rb") as file:
            return file.read(4) == ENCRYPTED_MAGIC
    except OSError:
        return False


def check(source: Source) -> None:
    """Raises what `open_column` raises; of a hub's file, only the end is read."""
    with open_column(source, remote=source.remote is not None):
        pass


def read(source: Source, start: int = 0) -> Iterator[TextBatch]:
    """Yields the texts from row `start` on. Raises `DataError` D020 to D022, D026, D035, D036 or D039."""
    batcher = Batcher(start)
    with FileGuard.watch(source.local(), source.name), open_column(source) as column:
        for group, chunk in enumerate(column.chunks):
            if start < chunk.rows:
                for texts in _read_row_group(column, group, start):
                    yield from batcher.add(texts)
            start = max(0, start - chunk.rows)
    yield from batcher.flush()


def _read_row_group(column: Column, group: int, start: int = 0) -> Iterator[pa.LargeStringArray]:
    """Yields the rows of a row group from `start` on, validated."""
    chunk = column.chunks[group]
    row = decoded_bytes = 0
    for texts in _decode(column, group):
        decoded_bytes += base.text_bytes(texts)
        check_expansion(column.source.name, row_group_label(group), chunk.packed, decoded_bytes)
        _check_texts(column, group, row, texts)
        if start < row + len(texts):
            yield texts.slice(max(0, start - row))
        row += len(texts)
    if row != chunk.rows:
        error = ValueError(f"it has {row:,} rows, its footer says {chunk.rows:,}")
        raise _damaged_error(column.source, row_group_label(group), error)


def _decode(column: Column, group: int) -> Iterator[Any]:
    pages = _read_pages(column, group)
    only_dictionary = column.name == column.path and all(page.is_dictionary or page.is_indices for page in pages)
    try:
        yield from _decode_dictionary(column, group) if only_dictionary else _decode_slices(column, group, pages)
    except (pa.ArrowException, OSError) as error:
        raise _damaged_error(column.source, row_group_label(group), error) from error


def _decode_slices(column: Column, group: int, pages: list[Page]) -> Iterator[Any]:
    rows = _rows_per_slice(column, group, pages)
    for batch in column.file.iter_batches(rows, row_groups=[group], columns=[column.path], use_threads=False):
        yield column_texts(batch.column(0), column.path)


def _decode_dictionary(column: Column, group: int) -> Iterator[Any]:
    """Yields the rows of a chunk that is all dictionary, as many writers make them: unique texts, and indices.

    So the length of every row is known before its text is copied.
    """
    chunk = column.chunks[group]
    rows = max(1, chunk.rows)
    metadata = column.file.metadata
    with _open_reader(column.source.local(), metadata=metadata, read_dictionary=[column.path]) as file:
        for batch in file.iter_batches(rows, row_groups=[group], columns=[column.path], use_threads=False):
            array: Any = batch.column(0)
            lengths = base.byte_lengths(array.dictionary).take(array.indices)
            ends = np.cumsum(pc.fill_null(lengths, 0).to_numpy())
            check_expansion(column.source.name, row_group_label(group), chunk.packed, int(ends[-1]))
            for begin, end in _slice_bounds(ends):
                yield _look_up(array.dictionary, array.indices.slice(begin, end - begin)).cast(pa.large_string())


def _look_up(dictionary: Any, indices: Any) -> Any:
    """The entries at `indices`; a view if these are consecutive, as they are when all texts differ."""
    numbers = indices.to_numpy(zero_copy_only=False) if not indices.null_count else np.empty(0)
    if len(numbers) and bool((np.diff(numbers) == 1).all()):
        return dictionary.slice(int(numbers[0]), len(numbers))
    return dictionary.take(indices)


def _slice_bounds(ends: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Bounds of slices of rows that end at the bytes `ends`; each ends with the row that reaches `BATCH_BYTES`."""
    begin = 0
    while begin < len(ends):
        limit = (ends[begin - 1] if begin else 0) + base.BATCH_BYTES
        end = min(int(np.searchsorted(ends, limit)) + 1, len(ends))
        yield begin, end
        begin = end


def _check_texts(column: Column, group: int, row: int, texts: pa.LargeStringArray) -> None:
    """Raises `DataError` D022 for a text that is not UTF-8, D039 for one that is too long."""
    if not is_valid(texts):
        bad = next(n for n in range(len(texts)) if not is_valid(pa.concat_arrays([texts.slice(n, 1)])))
        location = f"{column.source.name}{row_group_label(group)}, row {row + bad:,}, column {column.path!r}"
        raise invalid_text_error(location)
    longest = base.max_text_bytes(texts)
    if longest > base.DOCUMENT_LIMIT:
        raise document_too_long_error(column.source.name, row_group_label(group), longest)


def _rows_per_slice(column: Column, group: int, pages: list[Page]) -> int:
    """Rows that decode to about `BATCH_BYTES`, and never to more than `MAX_DECODED_BYTES` from a dictionary."""
    rows = sum(page.values for page in pages if not page.is_dictionary)
    mean_bytes = max(1, _expected_text_bytes(pages) // max(1, rows))
    count = min(MAX_ROWS, base.BATCH_BYTES // mean_bytes)
    if parquet_pages.DELTA_BYTE_ARRAY in column.chunks[group].encodings:
        count = min(count, MAX_DECODED_BYTES // max(1, *(page.unpacked for page in pages)))
    elif any(page.is_indices for page in pages):
        count = min(count, MAX_DECODED_BYTES // max(1, _longest_entry(column, group, pages)))
    return max(1, count)


def _read_pages(column: Column, group: int) -> list[Page]:
    """The headers of the column's pages in a row group. Raises `DataError` D021, D035, D036 or D039."""
    name = column.source.name
    chunk = column.chunks[group]
    begin, end = chunk.begin, chunk.begin + chunk.packed
    pages = []
    try:
        with column.source.path.open("rb") as file:
            if not 4 <= begin <= end <= column.source.path.stat().st_size:
                raise ValueError(f"its footer puts it at bytes {begin:,} to {end:,}")
            for page in parquet_pages.read_pages(file, begin, chunk.packed):
                location = f"{row_group_label(group)}, page at byte {page.offset:,}"
                check_expansion(name, location, page.packed, page.unpacked)
                if page.unpacked > base.DOCUMENT_LIMIT:
                    raise document_too_long_error(name, location, page.unpacked)
                pages.append(page)
    except (ValueError, OSError) as error:
        raise _damaged_error(column.source, row_group_label(group), error) from error
    unpacked = max(chunk.unpacked, sum(page.unpacked for page in pages))
    check_expansion(name, row_group_label(group), chunk.packed, unpacked)
    return pages


def _longest_entry(column: Column, group: int, pages: list[Page]) -> int:
    """Bytes of the longest text in the dictionary; an upper bound if its codec is an unusual one."""
    page = next(page for page in pages if page.is_dictionary)
    codec = CODECS.get(column.chunks[group].codec)
    if codec is None:
        return page.unpacked
    with column.source.path.open("rb") as file:
        file.seek(page.content)
        content = file.read(page.packed)
    try:
        unpacked = bytes(pa.decompress(content, page.unpacked, codec)) if codec else content
    except (pa.ArrowException, OSError) as error:
        raise _damaged_error(column.source, row_group_label(group), error) from error
    return parquet_pages.longest_entry(unpacked)


def _expected_text_bytes(pages: list[Page]) -> int:
    """Bytes of text: each plain value has a length of 4 bytes in front, each index stands for an average entry."""
    dictionary = [page for page in pages if page.is_dictionary]
    entries = sum(page.values for page in dictionary)
    entry_bytes = max(0, sum(page.unpacked - 4 * page.values for page in dictionary))
    indices = sum(page.values for page in pages if page.is_indices)
    total = entry_bytes * indices // max(1, entries)
    for page in pages:
        if not page.is_dictionary and not page.is_indices:
            is_plain = page.encoding == parquet_pages.PLAIN
            total += max(0, page.unpacked - 4 * page.values) if is_plain else page.unpacked
    return total


def estimate(source: Source) -> Estimate:
    """From the footer and the page headers; of a hub's file that is not on this disk, from the footer alone."""
    remote = source.remote is not None and not hub.is_downloaded(source.remote)
    with open_column(source, remote) as column:
        rows = sum(chunk.rows - chunk.nulls for chunk in column.chunks)
        if remote:
            size = max(0, sum(chunk.unpacked for chunk in column.chunks) - 4 * rows)
        else:
            size = sum(_expected_text_bytes(_read_pages(column, group)) for group in range(len(column.chunks)))
        return Estimate(size, rows)
