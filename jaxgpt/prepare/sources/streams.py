"""Bytes of plain, gzip and zstd files, in order, never more of them in memory than was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pyarrow as pa

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources.base import check_expansion

CODECS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}
CHUNK = 1 << 20


def bare_suffix(path: Path) -> str:
    """The suffix of `path` in small letters, that of compression left out: ".txt" of "A.TXT.gz"."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in CODECS:
        return suffixes[-2] if len(suffixes) > 1 else ""
    return suffixes[-1] if suffixes else ""


def codec(path: Path) -> Literal["gzip", "zstd"] | None:
    return CODECS.get(path.suffix.lower())


class Stream:
    """Reads a file in order, unpacked. `consumed` and `given` count the bytes of the file and of its content.

    Raises `DataError` D038 for a stream that is damaged or cut off, D035 for one that expands beyond belief.
    """

    def __init__(self, path: Path, name: str, file: pa.NativeFile) -> None:
        self._name, self._file, self._codec = name, file, codec(path)
        self._content = pa.CompressedInputStream(file, self._codec) if self._codec else file
        self.given = 0

    @property
    def consumed(self) -> int:
        return int(self._file.tell())

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        parts, left = [], size
        while left > 0:
            part = self._part(min(left, CHUNK))
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, size: int) -> bytes:
        try:
            part: bytes = self._content.read(size)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error
        self.given += len(part)
        if self._codec:
            check_expansion(self._name, f", byte {self.consumed:,}", self.consumed, self.given)
        return part

    def _damaged(self, error: Exception) -> DataError:
        reason = " ".join(str(error).split()).rstrip(".")
        what = f"{self._name} is damaged or cut off near byte {self.consumed:,}: {reason}"
        help = "the copy or download broke off: fetch it again" if self._codec else "check the disk or network drive"
        return DataError("D038", what, help)


@contextmanager
def opened(path: Path, name: str) -> Iterator[Stream]:
    with pa.OSFile(str(path), "rb") as file:
        yield Stream(path, name, file)
