"""Sources in which each file is one document: text files, compressed or not, and Python's standard library."""

import os
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base
from jaxgpt.prepare.sources.base import Batcher, Estimate, FileGuard, Source, TextBatch, document_too_long_error
from jaxgpt.prepare.sources.streams import codec, open_stream

STANDARD_LIBRARY = "python-stdlib"
EXCLUDED_FOLDERS = ("site-packages", "dist-packages", "__pycache__")
EXCLUDED_LIBRARY_FOLDERS = (*EXCLUDED_FOLDERS, "test", "tests", "idle_test", "encodings")  # tests and codecs' tables
DEFINITION = re.compile(rb"^[ \t]*(def|class|async[ ]def)[ ]", re.MULTILINE)
SAMPLE_BYTES = 1_000_000


def read_text(source: Source, start: int = 0) -> Iterator[TextBatch]:
    """Yields the one document of a text file if `start` is 0. Raises `DataError` D026, D035, D038 or D039."""
    if start:
        return
    path = source.local()
    batcher = Batcher(0)
    with FileGuard.watch(path, source.name):
        data = _read_bytes(source, path)
    text, repaired = _decode(data)
    yield from batcher.add(pa.array([text], pa.large_string()), repaired=repaired)
    yield from batcher.flush()


def _read_bytes(source: Source, path: Path) -> bytes:
    with open_stream(path, source.name) as stream:
        data = stream.read(base.DOCUMENT_LIMIT + 1)
    if len(data) > base.DOCUMENT_LIMIT:
        raise document_too_long_error(source.name, "", max(len(data), source.size))
    return data


def _decode(data: bytes) -> tuple[str, bool]:
    """Decodes UTF-8, and says whether invalid bytes had to be replaced by U+FFFD."""
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return data.decode("utf-8-sig", errors="replace"), True


def estimate_text(source: Source) -> Estimate:
    """Exact for a file that is not compressed, unless invalid bytes have to be replaced."""
    path = source.local()
    if codec(path) is None:
        return Estimate(source.size, int(source.size > 0), True)
    with open_stream(path, source.name) as stream:
        stream.read(SAMPLE_BYTES)
        return Estimate(round(stream.produced * source.size / max(1, stream.consumed)), int(stream.produced > 0))


def standard_library() -> Source:
    """The source `python-stdlib`. Raises `DataError` D023 if this Python comes without its `.py` files."""
    folder = Path(sysconfig.get_path("stdlib"))
    size = sum(path.stat().st_size for path in library_files(folder))
    if not size:
        message = f"this Python has no sources of its standard library in '{folder}'"
        raise DataError("D023", message, "name text files instead")
    return Source(folder, "python", size, STANDARD_LIBRARY)


def library_files(folder: Path) -> Iterator[Path]:
    """Yields the modules of the standard library that define a function or a class, without tests, in a fixed order.

    The others are mostly generated tables, such as those of HTML's entities.
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders).difference(EXCLUDED_LIBRARY_FOLDERS))
        modules = (Path(parent, name) for name in sorted(names) if name.endswith(".py"))
        yield from (path for path in modules if DEFINITION.search(path.read_bytes()))


def read_python(source: Source, start: int = 0) -> Iterator[TextBatch]:
    """Yields every module from number `start` on, decoded as it declares (PEP 263)."""
    batcher = Batcher(start)
    for path in list(library_files(source.path))[start:]:
        text = _read_module(path)
        texts = pa.array([] if text is None else [text], pa.large_string())
        yield from batcher.add(texts, unreadable=text is None)
    yield from batcher.flush()


def _read_module(path: Path) -> str | None:
    """The text of a module; None for test data whose encoding is wrong on purpose."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        text.encode()
    except (SyntaxError, UnicodeError):
        return None
    return text


def estimate_python(source: Source) -> Estimate:
    sizes = [path.stat().st_size for path in library_files(source.path)]
    return Estimate(sum(sizes), len(sizes))
