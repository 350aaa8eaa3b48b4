"""The lines of a log file: encodings, line ends, colors, and progress bars that redraw their line.

A line is what an editor numbers: it ends with a line feed or, in a file without any, with a carriage return. A text in
memory becomes a tuple of lines; a large file is read as a stream, and its lines are looked up on demand.
"""

import codecs
import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, overload

MAX_IN_MEMORY = 32 << 20  # bytes; larger files are read as a stream
MAX_LINE_BYTES = 1 << 16  # the rest of a longer line is ignored
INDEX_EVERY = 256  # lines between two indexed offsets
CHUNK_BYTES = 1 << 20
BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0e-\x1f\x7f]")


def split_lines(text: str) -> tuple[str, ...]:
    """The lines of a text in memory."""
    text = text.removeprefix("\ufeff")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return tuple(lines[:-1] if lines[-1] == "" else lines)


def read_lines(path: Path) -> Sequence[str]:
    """The lines of a file; bytes that are not text are replaced. Raises `OSError`."""
    with path.open("rb") as file:
        data = file.read(MAX_IN_MEMORY + 1)
    encoding = detect_encoding(data)
    fits_in_memory = len(data) <= MAX_IN_MEMORY
    if not fits_in_memory and encoding == "utf-8" and b"\n" in data:
        return FileLines(path)
    if not fits_in_memory:
        data = path.read_bytes()
    return split_lines(data.decode(encoding, "replace"))


def detect_encoding(data: bytes) -> str:
    """The encoding by the byte order mark, UTF-16 if every second byte is zero, else UTF-8."""
    for mark, name in BOMS:
        if data.startswith(mark):
            return name
    head = data[:4096]
    if len(head) >= 8 and head[1::2].count(0) > 0.9 * len(head[1::2]) and not head[::2].count(0):
        return "utf-16-le"
    return "utf-8"


def visible_parts(line: str) -> Sequence[str]:
    """The text that a line shows, without colors and control characters, one part per state of a redrawn line."""
    if line.isprintable():
        return (line,)
    parts = (CONTROL.sub("", part) for part in line.split("\r"))
    return [part for part in parts if part.strip()]


class FileLines(Sequence[str]):
    """The lines of a large UTF-8 file, which is never completely in memory; long lines end at `MAX_LINE_BYTES`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = array("Q", [0])
        self._count = 0
        with path.open("rb") as file:
            for count, (offset, _) in enumerate(_iterate(file), start=1):
                self._count = count
                if count % INDEX_EVERY == 0:
                    self._offsets.append(offset)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            for _, line in islice(_iterate(file), self._count):
                yield _decode(line)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        number = range(self._count)[index]
        with self._path.open("rb") as file:
            file.seek(self._offsets[number // INDEX_EVERY])
            _, line = next(islice(_iterate(file), number % INDEX_EVERY, None), (0, b""))
        return _decode(line)


def _iterate(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields the offset of each line's end and the line. A line without end needs `MAX_LINE_BYTES` and one chunk."""
    offset = file.tell()
    rest = b""
    while chunk := file.read(CHUNK_BYTES):
        *lines, last = chunk.split(b"\n")
        for line in lines:
            offset += len(line) + 1
            yield offset, (rest + line)[:MAX_LINE_BYTES]
            rest = b""
        offset += len(last)
        rest = (rest + last)[:MAX_LINE_BYTES]
    if rest:
        yield offset, rest


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "replace").removesuffix("\r").removeprefix("\ufeff")
