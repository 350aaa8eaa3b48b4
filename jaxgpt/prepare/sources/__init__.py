"""Documents from files: parquet, JSON lines, plain text, folders and globs of them, a hub's files, and Python's own
standard library.

A corpus is read as a stream, in the order in which its sources were given, and never held in memory. Reading it twice
gives the same documents, and reading from any record on gives the rest of them. Null and empty documents are left out
and counted. In text files, bytes that are no UTF-8 become U+FFFD and are counted; in parquet and JSON lines they are an
error, because there they mean damage.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jaxgpt import _loader
from jaxgpt.data import hub
from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import jsonl, parquet
from jaxgpt.prepare.sources import text as plain
from jaxgpt.prepare.sources.base import Estimate, Skipped, Source, Texts, changed
from jaxgpt.prepare.sources.streams import bare_suffix, codec
from jaxgpt.prepare.sources.text import STANDARD_LIBRARY

__all__ = ["Estimate", "Skipped", "Source", "Texts", "checksum", "estimate", "find_sources", "read"]

JSON_LINES = (".jsonl", ".ndjson")
IN_FOLDERS = (".txt", ".md", ".py")
TEXT = (*IN_FOLDERS, "", ".rst", ".tex", ".html", ".xml", ".css", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".rs", ".go")
KNOWN = "parquet, JSON lines (.jsonl) or text files (.txt, .md, .py), the latter two also as .gz or .zst"


def find_sources(names: Sequence[str], text_column: str | None = None) -> list[Source]:
    """The files that `names` (files, folders, globs, hub names, python-stdlib) stand for, in order.

    Files that have columns or fields are opened, to see that they have the text's; of files on a hub only the first
    of each name. Raises `DataError` D015, D020 to D023, D036, D037 for what cannot be read, before anything is, and
    what `hub.find_files` raises.
    """
    sources = [replace(source, group=group) for group, name in enumerate(names) for source in _find(name)]
    seen: set[Path] = set()
    checked: set[int] = set()
    for source in sources:
        if source.path.resolve() in seen:
            raise DataError("D023", f"{source.name} is given twice", "name each source once")
        seen.add(source.path.resolve())
        if not source.remote or source.group not in checked:
            _check(source, text_column)
            checked.add(source.group)
    return sources


def _check(source: Source, text_column: str | None) -> None:
    if source.kind == "parquet":
        with parquet.opened(source, text_column, remote=source.remote is not None):
            pass
    elif source.kind == "jsonl" and not source.remote:
        jsonl.field_of(source, text_column)


def _find(name: str) -> list[Source]:
    path = Path(name).expanduser()
    if name == STANDARD_LIBRARY:
        return [plain.standard_library()]
    if name.startswith(hub.PREFIX):
        return [_on_hub(file) for file in hub.find_files(name)]
    if path.is_dir():
        return [_source(file) for file in _files(path)]
    if path.exists():
        return [_source(path)]
    found = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(name) else []
    if not found:
        what = f"no file matches {name!r}" if glob.has_magic(name) else f"source {name!r} not found"
        raise DataError("D023", what, f"{KNOWN}, a folder or glob of them, {hub.NAME_FORMAT}, or {STANDARD_LIBRARY}")
    return [source for match in found for source in _find(match)]


def _files(folder: Path) -> list[Path]:
    """The parquet files under `folder`, or, where there are none, its JSON lines, or its text files; no hidden ones.

    Text beside data files is a README or a licence rather than data.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in plain.NOT_ITS_OWN)
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    for suffixes in ((".parquet",), JSON_LINES, IN_FOLDERS):
        wanted = [path for path in found if bare_suffix(path) in suffixes]
        if wanted:
            return wanted
    kinds = ", ".join((".parquet", *JSON_LINES, *IN_FOLDERS))
    raise DataError("D023", f"no {kinds} files in '{folder}'", "name other files or globs")


def _source(path: Path) -> Source:
    if not path.is_file():
        raise DataError("D015", f"{path} is not a file", "name the files or folders themselves")
    return Source(path, _kind(path, str(path)), path.stat().st_size, str(path))


def _on_hub(file: hub.HubFile) -> Source:
    return Source(file.path, _kind(Path(file.name), str(file)), file.size, str(file), remote=file)


def _kind(path: Path, name: str) -> str:
    suffix = bare_suffix(path)
    if suffix == ".parquet" and codec(path) is None:
        return "parquet"
    if suffix in JSON_LINES:
        return "jsonl"
    if suffix == ".json":
        if not path.exists() or jsonl.is_lines(path, name):
            return "jsonl"
        raise DataError("D023", f"{name} is one JSON value, not lines of objects", f"jq -c '.[]' {name} > lines.jsonl")
    if suffix in TEXT:
        return "text"
    raise DataError("D023", f"{name}: {path.suffix} files cannot be read", f"give {KNOWN}")


def read(source: Source, text_column: str | None = None, start: int = 0) -> Iterator[Texts]:
    """The documents of `source` from record number `start` on, in batches.

    A record is a row, a line that is not blank, a text file or a module. The texts and their order do not depend on
    where batches are cut. Raises `DataError` D020 to D022, D026 and D035 to D039, which name the file and the place,
    and for files of a hub what `hub.fetch` raises.
    """
    if source.kind == "parquet":
        return parquet.read(source, text_column, start)
    if source.kind == "jsonl":
        return jsonl.read(source, text_column, start)
    return plain.read_python(source, start) if source.kind == "python" else plain.read_text(source, start)


def estimate(source: Source, text_column: str | None = None) -> Estimate:
    """What to expect of `source`, from its metadata or a part of it: never from reading a big file."""
    if source.kind == "parquet":
        return parquet.estimate(source, text_column)
    if source.kind == "jsonl":
        return jsonl.estimate(source, text_column)
    return plain.estimate_python(source) if source.kind == "python" else plain.estimate_text(source)


def checksum(source: Source) -> str:
    """xxh3-128 of the file's bytes in hexadecimal; of python-stdlib, of the names and hashes of its files.

    Raises `DataError` D026 if the file changes meanwhile, and `LoaderError` if it cannot be read.
    """
    try:
        if source.kind == "python":
            files = [(path.relative_to(source.path).as_posix(), path) for path in plain.library_files(source.path)]
            return _loader.hash_bytes("".join(f"{_loader.hash_file(path)} {name}\n" for name, path in files).encode())
        return _loader.hash_file(source.local())
    except _loader.ShardChangedError as error:
        raise changed(source.name) from error
