"""A log's text as lines, whatever wrote it: encodings, line ends, colours, progress bars that redraw their line.

A line is what an editor numbers: it ends with a line feed, or, in a file without any, with a carriage return. A text
in memory is a tuple of them; a large file is read as a stream, and its lines are looked up when they are asked for.
"""

import codecs
import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, overload

IN_MEMORY = 32 << 20  # bytes up to which a file is held whole
LONGEST = 1 << 16  # bytes of a line that are looked at
MARK_EVERY = 256  # lines between two places that are remembered
CHUNK = 1 << 20
BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0e-\x1f\x7f]")


def of_text(text: str) -> tuple[str, ...]:
    """The lines of a text in memory."""
    text = text.removeprefix("\ufeff")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return tuple(lines[:-1] if lines[-1] == "" else lines)


def of_file(path: Path) -> Sequence[str]:
    """The lines of a file; bytes that are no text are replaced. Raises `OSError`."""
    with path.open("rb") as file:
        data = file.read(IN_MEMORY + 1)
    name = encoding(data)
    if len(data) <= IN_MEMORY or name != "utf-8" or b"\n" not in data:
        return of_text((data if len(data) <= IN_MEMORY else path.read_bytes()).decode(name, "replace"))
    return FileLines(path)


def encoding(data: bytes) -> str:
    """The encoding that a byte order mark, or every second byte being zero, gives away; else UTF-8."""
    for mark, name in BOMS:
        if data.startswith(mark):
            return name
    head = data[:4096]
    if len(head) >= 8 and head[1::2].count(0) > 0.9 * len(head[1::2]) and not head[::2].count(0):
        return "utf-16-le"
    return "utf-8"


def parts(line: str) -> Sequence[str]:
    """What a line shows, without colours and control characters; each state of a redrawn line is a part of its own."""
    if line.isprintable():
        return (line,)
    return [part for piece in line.split("\r") if (part := CONTROL.sub("", piece)).strip()]


class FileLines(Sequence[str]):
    """The lines of a large UTF-8 file, never all of them in memory; of a line, its first `LONGEST` bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks, self._count = array("Q", [0]), 0
        with path.open("rb") as file:
            for count, (place, _) in enumerate(_pieces(file), start=1):
                self._count = count
                if count % MARK_EVERY == 0:
                    self._marks.append(place)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            for _, line in islice(_pieces(file), self._count):
                yield _text(line)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        at = range(self._count)[index]
        with self._path.open("rb") as file:
            file.seek(self._marks[at // MARK_EVERY])
            found = next(islice(_pieces(file), at % MARK_EVERY, None), (0, b""))
        return _text(found[1])


def _pieces(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Each line with the place behind its end. A line without end costs no more than `LONGEST` and a chunk."""
    place, rest = file.tell(), b""
    while chunk := file.read(CHUNK):
        *whole, last = chunk.split(b"\n")
        for line in whole:
            place += len(line) + 1
            yield place, (rest + line)[:LONGEST]
            rest = b""
        place += len(last)
        rest = (rest + last)[:LONGEST]
    if rest:
        yield place, rest


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").removesuffix("\r").removeprefix("\ufeff")
