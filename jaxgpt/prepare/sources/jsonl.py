"""JSON lines: one object per line, its text in one field; plain, gzip or zstd.

Blank lines are not records. A line without the field counts as null, but a field that all of the first lines lack is an
error. Lone surrogates, which JSON can express and UTF-8 cannot, become U+FFFD and are counted as repaired.

Arrow parses blocks of well-formed lines. Where it fails, or might read something else than a line-by-line reader,
Python's own parser reads the block instead and names the line of an error.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.json

from jaxgpt.data.tokenizer import replace_lone_surrogates
from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base
from jaxgpt.prepare.sources.base import Batcher, Estimate, FileGuard, Source, TextBatch, document_too_long_error
from jaxgpt.prepare.sources.streams import Stream, open_stream

BOM = b"\xef\xbb\xbf"
FIRST_LINES = 100  # lines that decide which fields there are
SAMPLE_BYTES = 8_000_000  # that are parsed to estimate the rest of the file
LINE_LIMIT = base.DOCUMENT_LIMIT + (1 << 20)


class Block(NamedTuple):
    """Complete lines. `line` is the number of the first one, from 1; `offset` its position in the unpacked file."""

    data: bytes
    line: int
    offset: int

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yields number, offset and content of each line that is not blank."""
        offset = self.offset
        for number, line in enumerate(self.data.split(b"\n"), self.line):
            if line and not line.isspace():
                yield number, offset, line
            offset += len(line) + 1

    def well_formed_line_count(self) -> int | None:
        """The number of lines if each starts with `{` and ends with `}`, else None.

        Then no value can span two lines: within an object, `{` never follows `}`.
        """
        data = self.data
        lines = data.count(b"\n") + (not data.endswith(b"\n"))
        boundaries = data.count(b"}\n{") + data.count(b"}\r\n{")
        is_enclosed = data.startswith(b"{") and data[-3:].rstrip(b"\r\n").endswith(b"}")
        return lines if is_enclosed and boundaries == lines - 1 else None


def find_text_field(source: Source) -> str:
    """The field that contains the text: `source.text_column`, else `text`, else the only field of strings.

    Raises `DataError` D020 if none of the first lines has it, D037 if one of them cannot be parsed.
    """
    with open_stream(source.local(), source.name) as stream:
        lines = (line for block in _read_blocks(stream, source, 1 << 20) for line in block.lines())
        records = [_parse_object(source, *line) for line in islice(lines, FIRST_LINES)]
    names = dict.fromkeys(name for record in records for name in record)
    types = {name: type(value) for record in reversed(records) for name, value in record.items() if value is not None}
    strings = [name for name in names if types.get(name) is str]
    default = strings[0] if "text" not in names and len(strings) == 1 else "text"
    field = source.text_column or default
    if field in names or not records:
        return field
    fields = [f"{name} ({types[name].__name__ if name in types else 'null'})" for name in names]
    message = f"{source.name}: no field {field!r}; the fields of its first lines: {', '.join(fields) or 'none'}"
    help = f"--text-column {strings[0]}" if strings else "give a file that has a field of strings"
    raise DataError("D020", message, help)


def check(source: Source) -> None:
    """Raises what `find_text_field` raises; a hub's file is not fetched for it."""
    if not source.remote:
        find_text_field(source)


def read(source: Source, start: int = 0) -> Iterator[TextBatch]:
    """Yields the texts from record `start` on. Raises `DataError` D020, D022, D026, D035 or D037 to D039."""
    path = source.local()
    batcher = Batcher(start)
    with FileGuard.watch(path, source.name):
        field = find_text_field(source)
        with open_stream(path, source.name) as stream:
            for block in _skip_records(_read_blocks(stream, source, base.BATCH_BYTES), start):
                texts, repaired = _parse_block(source, block, field)
                yield from batcher.add(texts, repaired=repaired)
    yield from batcher.flush()


def _skip_records(blocks: Iterator[Block], count: int) -> Iterator[Block]:
    """Yields `blocks` without their first `count` records."""
    for block in blocks:
        if count == 0:
            yield block
            continue
        records = block.well_formed_line_count() or sum(1 for _ in block.lines())
        if records <= count:
            count -= records
            continue
        number, offset, _ = next(islice(block.lines(), count, None))
        yield Block(block.data[offset - block.offset :], number, offset)
        count = 0


def _read_blocks(stream: Stream, source: Source, size: int) -> Iterator[Block]:
    """Yields the file in blocks of about `size` bytes, each of which ends with a line."""
    pending = [_read_after_bom(stream)]
    line = 1
    offset = stream.produced - len(pending[0])
    while True:
        data = stream.read(size)
        end = data.rfind(b"\n") + 1
        if data and not end:
            pending.append(data)
            length = sum(map(len, pending))
            if length > LINE_LIMIT:
                raise document_too_long_error(source.name, f", line {line} (byte {offset:,})", length)
            continue
        block = Block(b"".join([*pending, data[:end]]), line, offset)
        if block.data:
            yield block
        if not data:
            return
        pending = [data[end:]]
        line += block.data.count(b"\n")
        offset += len(block.data)


def _read_after_bom(stream: Stream) -> bytes:
    """The first bytes of a file, without its byte-order mark."""
    start = stream.read(len(BOM))
    return b"" if start == BOM else start


def _parse_block(source: Source, block: Block, field: str) -> tuple[pa.LargeStringArray, int]:
    """One text per record, and how many of them had lone surrogates."""
    lines = block.well_formed_line_count()
    texts = _parse_with_arrow(block.data, field) if lines else None
    if texts is not None and len(texts) == lines:
        return texts, 0
    return _parse_by_line(source, block, field)


def _parse_with_arrow(data: bytes, field: str) -> Any:
    """The field of every object, or None if Arrow cannot parse the data."""
    schema = pa.schema([(field, pa.large_string())])
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    parsing = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    file: Any = pa.BufferReader(data)
    try:
        _as_one_text(data).validate(full=True)  # UTF-8 in all fields, not only in this one
        texts = pa.json.read_json(file, reading, parsing).column(field).combine_chunks()
        texts.validate(full=True)
    except pa.ArrowException:
        return None
    return texts


def _as_one_text(data: bytes) -> Any:
    ends = pa.array([0, len(data)], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_string(), 1, [None, ends, pa.py_buffer(data)])


def _parse_by_line(source: Source, block: Block, field: str) -> tuple[pa.LargeStringArray, int]:
    texts: list[str | None] = []
    repaired = 0
    for number, offset, line in block.lines():
        value = _parse_object(source, number, offset, line).get(field)
        if not isinstance(value, str | None):
            raise _line_error(source, number, offset, f"field {field!r} holds {_abbreviate(value)}, not a string")
        text = value and replace_lone_surrogates(value)
        repaired += text != value
        texts.append(text)
    return pa.array(texts, pa.large_string()), repaired


def _parse_object(source: Source, number: int, offset: int, line: bytes) -> dict[str, Any]:
    """The JSON object in a line. Raises `DataError` D022 or D037 with the line and the byte in the file."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        message = f"{source.name}, line {number} (byte {offset + error.start:,}): not UTF-8 ({error.reason})"
        raise DataError("D022", message, "convert the file to UTF-8") from error
    except json.JSONDecodeError as error:
        position = offset + len(error.doc[: error.pos].encode())
        raise _line_error(source, number, position, f"not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise _line_error(source, number, offset, f"JSON that cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise _line_error(source, number, offset, f"{_abbreviate(value)}, not an object")
    return value


def _line_error(source: Source, number: int, offset: int, reason: str) -> DataError:
    message = f"{source.name}, line {number} (byte {offset:,}): {reason}"
    return DataError("D037", message, "fix or remove this line: each must be one JSON object")


def _abbreviate(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def is_json_lines(path: Path, name: str) -> bool:
    """Whether a `.json` file is empty or has a complete object in its first line."""
    with open_stream(path, name) as stream:
        start = _read_after_bom(stream) + stream.read(1 << 20)
    first = start.lstrip().split(b"\n", 1)[0]
    if len(first) == len(start):  # longer than what was read, or the only line
        return not first or first.startswith(b"{")
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def estimate(source: Source) -> Estimate:
    """Exact for small files; extrapolated from the first lines of others."""
    path = source.local()
    field = find_text_field(source)
    with open_stream(path, source.name) as stream:
        sample = next(_read_blocks(stream, source, SAMPLE_BYTES), Block(b"", 1, 0))
        fraction = 1.0
        if stream.read(1):
            fraction = len(sample.data) / stream.produced * stream.consumed / path.stat().st_size
    texts, _ = _parse_block(source, sample, field)
    documents = len(texts.drop_null())
    return Estimate(round(base.text_bytes(texts) / fraction), round(documents / fraction))
