"""Plain, gzip and zstd files as streams of bytes; never more of a file in memory than was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources.base import check_expansion

CODECS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}
READ_BYTES = 1 << 20


def suffix_without_codec(path: Path) -> str:
    """The suffix of `path` in lower case, without that of the compression: ".txt" for "A.TXT.gz"."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in CODECS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def codec(path: Path) -> Literal["gzip", "zstd"] | None:
    return CODECS.get(path.suffix.lower())


class Stream:
    """Reads a file sequentially, decompressed. `consumed` counts bytes of the file, `produced` bytes of its content.

    Raises `DataError` D038 if the file is damaged or truncated, D035 if it expands too far.
    """

    def __init__(self, path: Path, name: str, file: pa.NativeFile) -> None:
        self._name = name
        self._file = file
        self._codec = codec(path)
        self._content = pa.CompressedInputStream(file, self._codec) if self._codec else file
        self.produced = 0

    @property
    def consumed(self) -> int:
        return int(self._file.tell())

    def read(self, size: int) -> bytes:
        """Returns the next `size` bytes; fewer only at the end."""
        chunks = []
        remaining = size
        while remaining > 0:
            chunk = self._read_chunk(min(remaining, READ_BYTES))
            if not chunk:
                break
            chunks.append(chunk)
            remaining -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def as_file(self) -> Any:
        """This stream as an input of Arrow's readers."""
        file: Any = _ReadOnly(self)
        return pa.PythonFile(file, mode="r")

    def _read_chunk(self, size: int) -> bytes:
        try:
            chunk: bytes = self._content.read(size)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged_error(error) from error
        self.produced += len(chunk)
        if self._codec:
            check_expansion(self._name, f", byte {self.consumed:,}", self.consumed, self.produced)
        return chunk

    def _damaged_error(self, error: Exception) -> DataError:
        reason = " ".join(str(error).split()).rstrip(".")
        message = f"{self._name} is damaged or cut off near byte {self.consumed:,}: {reason}"
        help = "the copy or download broke off: fetch it again" if self._codec else "check the disk or network drive"
        return DataError("D038", message, help)


class _ReadOnly:
    """The methods that Arrow asks a Python file for."""

    closed = False

    def __init__(self, stream: Stream) -> None:
        self.read = stream.read

    def close(self) -> None:
        """Leaves closing to `open_stream`."""


@contextmanager
def open_stream(path: Path, name: str) -> Iterator[Stream]:
    with pa.OSFile(str(path), "rb") as file:
        yield Stream(path, name, file)
