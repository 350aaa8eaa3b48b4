"""Texts that are whole files: plain text, packed or not, and the modules of Python's own standard library."""

import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base as common
from jaxgpt.prepare.sources.base import Batcher, Estimate, Source, Texts, Unchanged, too_long
from jaxgpt.prepare.sources.streams import codec, opened

STANDARD_LIBRARY = "python-stdlib"
NOT_ITS_OWN = ("site-packages", "dist-packages", "__pycache__")
BROKEN_ON_PURPOSE = ("lib2to3", "tests", "data")
PROBE_BYTES = 1_000_000


def read_text(source: Source, start: int = 0) -> Iterator[Texts]:
    """The one document of a text file, if `start` is 0. Raises `DataError` D026, D035, D038, D039."""
    if start:
        return
    path, batcher = source.local(), Batcher(0)
    with Unchanged.watch(path, source.name):
        data = _content(source, path)
    text, mended = _decoded(data)
    yield from batcher.add(pa.array([text], pa.large_string()), mended=mended)
    yield from batcher.rest()


def _content(source: Source, path: Path) -> bytes:
    with opened(path, source.name) as stream:
        data = stream.read(common.DOCUMENT_LIMIT + 1)
    if len(data) > common.DOCUMENT_LIMIT:
        raise too_long(source.name, "", max(len(data), source.size))
    return data


def _decoded(data: bytes) -> tuple[str, bool]:
    """The text, and whether bytes that are not UTF-8 became U+FFFD."""
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return data.decode("utf-8-sig", errors="replace"), True


def estimate_text(source: Source) -> Estimate:
    """Exact for a file that is not packed, unless bytes of it have to be mended."""
    path = source.local()
    if codec(path) is None:
        return Estimate(source.size, int(source.size > 0), True)
    with opened(path, source.name) as stream:
        stream.read(PROBE_BYTES)
        return Estimate(round(stream.given * source.size / max(1, stream.consumed)), int(stream.given > 0))


def standard_library() -> Source:
    folder = Path(sysconfig.get_path("stdlib"))
    size = sum(path.stat().st_size for path in library_files(folder))
    if not size:
        raise DataError("D023", f"this Python has no sources of its standard library in '{folder}'", "name files")
    return Source(folder, "python", size, STANDARD_LIBRARY)


def library_files(folder: Path) -> Iterator[Path]:
    """Every module of the standard library, in a fixed order."""
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder).parts
        folders[:] = sorted(set(folders).difference(NOT_ITS_OWN)) if here != BROKEN_ON_PURPOSE else []
        wanted = here[:3] != BROKEN_ON_PURPOSE
        yield from (Path(place, name) for name in sorted(names) if wanted and name.endswith(".py"))


def read_python(source: Source, start: int = 0) -> Iterator[Texts]:
    """Every module from number `start` on, in the encoding that it declares (PEP 263)."""
    batcher = Batcher(start)
    for path in list(library_files(source.path))[start:]:
        text = _module(path)
        texts = pa.array([] if text is None else [text], pa.large_string())
        yield from batcher.add(texts, unreadable=text is None)
    yield from batcher.rest()


def _module(path: Path) -> str | None:
    try:
        with tokenize.open(path) as file:
            text = file.read()
        text.encode()
    except (SyntaxError, UnicodeError):
        return None  # test data that is broken on purpose
    return text


def estimate_python(source: Source) -> Estimate:
    sizes = [path.stat().st_size for path in library_files(source.path)]
    return Estimate(sum(sizes), sum(size > 0 for size in sizes))
