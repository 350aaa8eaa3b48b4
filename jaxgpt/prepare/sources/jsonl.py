"""Texts of JSON lines: one object a line, its text in one field; plain, gzip or zstd.

Blank lines are no records. A field that a line lacks counts as null, but one that all of the first lines lack is an
error. Lone surrogates, which JSON can write and UTF-8 cannot hold, become U+FFFD and are counted as mended.

Blocks of well-formed lines are read by Arrow. Whatever it objects to, and whatever it might read otherwise than line by
line, is read again by Python's own reader, which knows the line and has the last word.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.json

from jaxgpt.data.tokenizer import well_formed
from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base as common
from jaxgpt.prepare.sources.base import Batcher, Estimate, Source, Texts, Unchanged, too_long
from jaxgpt.prepare.sources.streams import Stream, opened

BOM = b"\xef\xbb\xbf"
FIRST_LINES = 100  # that say which fields there are
PROBE_BYTES = 8_000_000  # of a file that are read to judge the rest
LINE_LIMIT = common.DOCUMENT_LIMIT + (1 << 20)


class Block(NamedTuple):
    """Whole lines. `line` is the number of the first one, from 1; `offset` its place in the unpacked file."""

    data: bytes
    line: int
    offset: int

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Number, offset and content of each line that is not blank."""
        offset = self.offset
        for number, line in enumerate(self.data.split(b"\n"), self.line):
            if line and not line.isspace():
                yield number, offset, line
            offset += len(line) + 1

    def tidy(self) -> int | None:
        """How many lines there are, if each of them begins with `{` and ends with `}`; else None.

        No value can then go over the end of a line: within an object, `{` never follows `}`.
        """
        data = self.data
        lines = data.count(b"\n") + (not data.endswith(b"\n"))
        seams = data.count(b"}\n{") + data.count(b"}\r\n{")
        whole = data.startswith(b"{") and data[-3:].rstrip(b"\r\n").endswith(b"}")
        return lines if whole and seams == lines - 1 else None


def field_of(source: Source, wanted: str | None) -> str:
    """The field that holds the text: `wanted`, else `text`, else the only one that holds strings.

    Raises `DataError` D020 if none of the first lines has it, D037 if one of them cannot be read.
    """
    path = source.local()
    with opened(path, source.name) as stream:
        lines = (line for block in _blocks(stream, source, 1 << 20) for line in block.lines())
        first = list(islice(lines, FIRST_LINES))
    objects = [_object(source, *item) for item in first]
    kinds = {name: type(value) for found in reversed(objects) for name, value in found.items() if value is not None}
    names = dict.fromkeys(name for found in objects for name in found)
    strings = [name for name in names if kinds.get(name) is str]
    choice = wanted or (strings[0] if "text" not in names and len(strings) == 1 else "text")
    if choice in names or not objects:
        return choice
    there = ", ".join(f"{name} ({kinds[name].__name__ if name in kinds else 'null'})" for name in names) or "none"
    help = f"--text-column {strings[0]}" if strings else "give a file that has a field of strings"
    raise DataError("D020", f"{source.name}: no field {choice!r}; the fields of its first lines: {there}", help)


def read(source: Source, text_column: str | None, start: int = 0) -> Iterator[Texts]:
    """The texts from record `start` on. Raises `DataError` D020, D022, D026, D035, D037 to D039."""
    path, batcher = source.local(), Batcher(start)
    with Unchanged.watch(path, source.name):
        field = field_of(source, text_column)
        with opened(path, source.name) as stream:
            for block in _after(_blocks(stream, source, common.BATCH_BYTES), start):
                texts, mended = _texts(source, block, field)
                yield from batcher.add(texts, mended=mended)
    yield from batcher.rest()


def _after(blocks: Iterator[Block], start: int) -> Iterator[Block]:
    """`blocks` without their first `start` records."""
    for block in blocks:
        if start == 0:
            yield block
            continue
        lines = block.tidy() or sum(1 for _ in block.lines())
        if lines <= start:
            start -= lines
            continue
        number, offset, _ = next(islice(block.lines(), start, None))
        yield Block(block.data[offset - block.offset :], number, offset)
        start = 0


def _blocks(stream: Stream, source: Source, size: int) -> Iterator[Block]:
    """The file in blocks of about `size` bytes, cut after lines."""
    line, offset, held = 1, 0, [_without_bom(stream)]
    offset = stream.given - len(held[0])
    while True:
        data = stream.read(size)
        cut = data.rfind(b"\n") + 1
        if data and not cut:
            held.append(data)
            if sum(map(len, held)) > LINE_LIMIT:
                raise too_long(source.name, f", line {line} (byte {offset:,})", sum(map(len, held)))
            continue
        block = Block(b"".join([*held, data[:cut]]), line, offset)
        if block.data:
            yield block
        if not data:
            return
        line, offset, held = line + block.data.count(b"\n"), offset + len(block.data), [data[cut:]]


def _without_bom(stream: Stream) -> bytes:
    start = stream.read(len(BOM))
    return b"" if start == BOM else start


def _texts(source: Source, block: Block, field: str) -> tuple[pa.LargeStringArray, int]:
    """One text per record, and how many had lone surrogates."""
    lines = block.tidy()
    fast = _by_arrow(block.data, field) if lines else None
    if fast is not None and len(fast) == lines:
        return fast, 0
    return _by_line(source, block, field)


def _by_arrow(data: bytes, field: str) -> Any:
    """The field of every object, or None if Arrow's reader stumbles."""
    schema = pa.schema([(field, pa.large_string())])
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    parsing = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        _as_text(data).validate(full=True)  # all of it, not the one field alone
        file: Any = pa.BufferReader(data)
        table = pa.json.read_json(file, reading, parsing)
        texts = table.column(field).combine_chunks()
        texts.validate(full=True)
    except pa.ArrowException:
        return None
    return texts


def _as_text(data: bytes) -> Any:
    ends = pa.array([0, len(data)], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_string(), 1, [None, ends, pa.py_buffer(data)])


def _by_line(source: Source, block: Block, field: str) -> tuple[pa.LargeStringArray, int]:
    texts: list[str | None] = []
    mended = 0
    for number, offset, line in block.lines():
        text = _object(source, number, offset, line).get(field)
        if not isinstance(text, str | None):
            raise _bad(source, number, offset, f"field {field!r} holds {_short(text)}, not a string")
        whole = text and well_formed(text)
        mended += whole != text
        texts.append(whole)
    return pa.array(texts, pa.large_string()), mended


def _object(source: Source, number: int, offset: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError as error:
        what = f"{source.name}, line {number} (byte {offset + error.start:,}): not UTF-8 ({error.reason})"
        raise DataError("D022", what, "convert the file to UTF-8") from error
    except json.JSONDecodeError as error:
        at = offset + len(error.doc[: error.pos].encode())
        raise _bad(source, number, at, f"no JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise _bad(source, number, offset, f"JSON that cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise _bad(source, number, offset, f"{_short(found)}, not an object")
    return found


def _bad(source: Source, number: int, offset: int, what: str) -> DataError:
    place = f"{source.name}, line {number} (byte {offset:,})"
    return DataError("D037", f"{place}: {what}", "mend or remove this line: each must be one JSON object")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def is_lines(path: Path, name: str) -> bool:
    """Whether a `.json` file holds lines of objects: one whole object in its first line, or nothing at all."""
    with opened(path, name) as stream:
        start = _without_bom(stream) + stream.read(1 << 20)
    first = start.lstrip().split(b"\n", 1)[0]
    if len(first) == len(start):  # longer than was read, or the only one
        return not first or first.startswith(b"{")
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def estimate(source: Source, text_column: str | None) -> Estimate:
    """Exact for small files; of others, what a part of the file leads one to expect."""
    path = source.local()
    field = field_of(source, text_column)
    with opened(path, source.name) as stream:
        probe = _probe(stream, source)
        whole = not stream.read(1)
        share = 1.0 if whole else len(probe.data) / stream.given * stream.consumed / path.stat().st_size
    texts, _ = _texts(source, probe, field)
    size, count = common.text_bytes(texts), len(texts.drop_null())
    return Estimate(round(size / share), round(count / share), whole)


def _probe(stream: Stream, source: Source) -> Block:
    """The first lines of the file, at least one."""
    blocks = _blocks(stream, source, PROBE_BYTES)
    return next(blocks, Block(b"", 1, 0))
