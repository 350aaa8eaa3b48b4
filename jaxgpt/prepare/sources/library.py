"""Python's standard library as a source: each module is a document."""

import os
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources.base import Batcher, Estimate, Source, TextBatch

STANDARD_LIBRARY = "python-stdlib"
EXCLUDED_FOLDERS = ("site-packages", "dist-packages", "__pycache__")
EXCLUDED_LIBRARY_FOLDERS = (*EXCLUDED_FOLDERS, "test", "tests", "idle_test", "encodings")  # tests and codecs' tables
DEFINITION = re.compile(rb"^[ \t]*(def|class|async[ ]def)[ ]", re.MULTILINE)


def find() -> Source:
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


def read(source: Source, start: int = 0) -> Iterator[TextBatch]:
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


def estimate(source: Source) -> Estimate:
    """The sizes of the modules."""
    sizes = [path.stat().st_size for path in library_files(source.path)]
    return Estimate(sum(sizes), len(sizes))
