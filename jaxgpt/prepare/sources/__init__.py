"""Documents from files: parquet, JSON lines, plain text, folders and globs of them, a hub's files, and Python's
standard library.

Sources are streamed in the order in which they were given; a corpus is never in memory as a whole. Reading it twice
yields the same documents, and reading can start at any record. Null and empty documents are left out and counted. In
text files, bytes that are not UTF-8 become U+FFFD and are counted; in parquet and JSON lines they mean damage and are
an error.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jaxgpt import _loader
from jaxgpt.data import hub
from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import jsonl, parquet, text
from jaxgpt.prepare.sources.base import Estimate, Skipped, Source, TextBatch, file_changed_error
from jaxgpt.prepare.sources.streams import codec, suffix_without_codec
from jaxgpt.prepare.sources.text import STANDARD_LIBRARY

__all__ = ["Estimate", "Skipped", "Source", "TextBatch", "checksum", "estimate", "find_sources", "read"]

JSON_LINES = (".jsonl", ".ndjson")
TEXT_IN_FOLDERS = (".txt", ".md", ".py")  # text files that a folder contributes; others must be named
OTHER_TEXT = ("", ".rst", ".tex", ".html", ".xml", ".css", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".rs", ".go")
FORMATS = "parquet, JSON lines (.jsonl) or text files (.txt, .md, .py), the latter two also as .gz or .zst"


def find_sources(names: Sequence[str], text_column: str | None = None) -> list[Source]:
    """The files that `names` (files, folders, globs, hub names, python-stdlib) stand for, in order.

    Opens files that have columns or fields to check for the text column; of a hub's files only the first one of each
    name. Raises `DataError` D015, D020 to D023, D036 or D037, and what `hub.find_files` raises, before anything is
    read.
    """
    sources = [replace(source, group=group) for group, name in enumerate(names) for source in _find(name)]
    seen: set[Path] = set()
    checked_groups: set[int] = set()
    for source in sources:
        if source.path.resolve() in seen:
            raise DataError("D023", f"{source.name} is given twice", "name each source once")
        seen.add(source.path.resolve())
        if not source.remote or source.group not in checked_groups:
            _check_text_column(source, text_column)
            checked_groups.add(source.group)
    return sources


def _check_text_column(source: Source, text_column: str | None) -> None:
    if source.kind == "parquet":
        with parquet.open_column(source, text_column, remote=source.remote is not None):
            pass
    elif source.kind == "jsonl" and not source.remote:
        jsonl.find_text_field(source, text_column)


def _find(name: str) -> list[Source]:
    path = Path(name).expanduser()
    if name == STANDARD_LIBRARY:
        return [text.standard_library()]
    if name.startswith(hub.PREFIX):
        return [_hub_source(file) for file in hub.find_files(name)]
    if path.is_dir():
        return [_file_source(file) for file in _files_in(path)]
    if path.exists():
        return [_file_source(path)]
    is_glob = glob.has_magic(name)
    matches = sorted(glob.glob(str(path), recursive=True)) if is_glob else []
    if not matches:
        message = f"no file matches {name!r}" if is_glob else f"source {name!r} not found"
        help = f"{FORMATS}, a folder or glob of them, {hub.NAME_FORMAT}, or {STANDARD_LIBRARY}"
        raise DataError("D023", message, help)
    return [source for match in matches for source in _find(match)]


def _files_in(folder: Path) -> list[Path]:
    """The parquet files under `folder`; without any, its JSON lines; without any, its text files. No hidden files.

    Text beside data files is a README or a license rather than data.
    """
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in text.EXCLUDED_FOLDERS)
        files += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    for suffixes in ((".parquet",), JSON_LINES, TEXT_IN_FOLDERS):
        matches = [path for path in files if suffix_without_codec(path) in suffixes]
        if matches:
            return matches
    kinds = ", ".join((".parquet", *JSON_LINES, *TEXT_IN_FOLDERS))
    raise DataError("D023", f"no {kinds} files in '{folder}'", "name other files or globs")


def _file_source(path: Path) -> Source:
    if not path.is_file():
        raise DataError("D015", f"{path} is not a file", "name the files or folders themselves")
    return Source(path, _kind(path, str(path)), path.stat().st_size, str(path))


def _hub_source(file: hub.HubFile) -> Source:
    return Source(file.path, _kind(Path(file.name), str(file)), file.size, str(file), remote=file)


def _kind(path: Path, name: str) -> str:
    suffix = suffix_without_codec(path)
    if suffix == ".parquet" and codec(path) is None:
        return "parquet"
    if suffix in JSON_LINES:
        return "jsonl"
    if suffix == ".json":
        if not path.exists() or jsonl.is_json_lines(path, name):
            return "jsonl"
        message = f"{name} is one JSON value, not lines of objects"
        raise DataError("D023", message, f"jq -c '.[]' {name} > lines.jsonl")
    if suffix in TEXT_IN_FOLDERS + OTHER_TEXT:
        return "text"
    raise DataError("D023", f"{name}: {path.suffix} files cannot be read", f"give {FORMATS}")


def read(source: Source, text_column: str | None = None, start: int = 0) -> Iterator[TextBatch]:
    """Yields the documents of `source` from record number `start` on, in batches.

    A record is a row, a line that is not blank, a text file or a module. The texts and their order do not depend on
    how they are batched. Raises `DataError` D020 to D022, D026 or D035 to D039 with the file and the location, and
    what `hub.fetch` raises.
    """
    if source.kind == "parquet":
        return parquet.read(source, text_column, start)
    if source.kind == "jsonl":
        return jsonl.read(source, text_column, start)
    return text.read_python(source, start) if source.kind == "python" else text.read_text(source, start)


def estimate(source: Source, text_column: str | None = None) -> Estimate:
    """Expected text in `source`, from its metadata or a sample; never reads a large file to its end."""
    if source.kind == "parquet":
        return parquet.estimate(source, text_column)
    if source.kind == "jsonl":
        return jsonl.estimate(source, text_column)
    return text.estimate_python(source) if source.kind == "python" else text.estimate_text(source)


def checksum(source: Source) -> str:
    """xxh3-128 of the file in hexadecimal; of python-stdlib, of the names and hashes of its files.

    Raises `DataError` D026 if the file changes meanwhile, and `LoaderError` if it cannot be read.
    """
    try:
        if source.kind != "python":
            return _loader.hash_file(source.local())
        files = [(path.relative_to(source.path).as_posix(), path) for path in text.library_files(source.path)]
        return _loader.hash_bytes("".join(f"{_loader.hash_file(path)} {name}\n" for name, path in files).encode())
    except _loader.ShardChangedError as error:
        raise file_changed_error(source.name) from error
