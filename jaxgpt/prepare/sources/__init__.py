"""Documents from files: parquet, Arrow, JSON lines, CSV, text, folders and globs of them, a hub's files, and Python's
standard library.

Sources are streamed in the order in which they were given; a corpus is never in memory as a whole. Reading it twice
yields the same documents, and reading can start at any record. Null and empty documents are left out and counted. In
text files, bytes that are not UTF-8 become U+FFFD and are counted; in the other formats they mean damage and are an
error.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgpt import _loader
from jaxgpt.data import hub
from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import arrow_files, csv_files, jsonl, library, parquet, text
from jaxgpt.prepare.sources.base import Estimate, Skipped, Source, TextBatch, file_changed_error
from jaxgpt.prepare.sources.library import STANDARD_LIBRARY
from jaxgpt.prepare.sources.streams import codec, suffix_without_codec

__all__ = ["Estimate", "Skipped", "Source", "TextBatch", "checksum", "estimate", "find_sources", "read"]

READERS: dict[str, Any] = {  # modules with `read` and `estimate`; those with columns or fields also have `check`
    "parquet": parquet,
    "arrow": arrow_files,
    "jsonl": jsonl,
    "csv": csv_files,
    "text": text,
    "python": library,
}
JSON_LINES = (".jsonl", ".ndjson")
TEXT_IN_FOLDERS = (".txt", ".md", ".py")  # text files that a folder contributes; others must be named
OTHER_TEXT = ("", ".rst", ".tex", ".html", ".xml", ".css", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".rs", ".go")
KINDS = {
    (".parquet",): "parquet",
    arrow_files.SUFFIXES: "arrow",
    JSON_LINES: "jsonl",
    tuple(csv_files.DELIMITERS): "csv",
    TEXT_IN_FOLDERS: "text",
}
WITHOUT_CODEC = ("parquet", "arrow")  # kinds that are not read from .gz and .zst files
FORMATS = (
    "parquet, Arrow (.arrow, .feather), JSON lines (.jsonl), CSV (.csv, .tsv) or text files (.txt, .md, .py), "
    "the latter three also as .gz or .zst"
)


def find_sources(names: Sequence[str], text_column: str | None = None, separator: str | None = None) -> list[Source]:
    """The files that `names` (files, folders, globs, hub names, python-stdlib) stand for, in order.

    `separator` separates the documents of text files: a string, "blank-lines", "" for none, or None for
    `<|endoftext|>` in .txt files. Opens files that have columns or fields to check for the text column; of a hub's
    files only the first one of each name. Raises `DataError` D015, D020 to D023, D036 or D037, and what
    `hub.find_files` raises, before anything is read.
    """
    sources = [
        replace(source, group=group, text_column=text_column, separator=_separator(source, separator))
        for group, name in enumerate(names)
        for source in _find(name)
    ]
    seen: set[Path] = set()
    checked_groups: set[int] = set()
    for source in sources:
        if source.path.resolve() in seen:
            raise DataError("D023", f"{source.name} is given twice", "name each source once")
        seen.add(source.path.resolve())
        reader = READERS[source.kind]
        is_to_check = not source.remote or source.group not in checked_groups
        if is_to_check and hasattr(reader, "check"):
            reader.check(source)
        checked_groups.add(source.group)
    return sources


def _separator(source: Source, separator: str | None) -> str:
    if source.kind != "text":
        return ""
    default = text.DEFAULT_SEPARATOR if suffix_without_codec(source.path) == ".txt" else ""
    return default if separator is None else separator


def _find(name: str) -> list[Source]:
    path = Path(name).expanduser()
    if name == STANDARD_LIBRARY:
        return [library.find()]
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
    """The files of the first kind in `KINDS` that `folder` contains, without hidden ones.

    Text beside data files is a README or a license rather than data.
    """
    files = arrow_files.dataset_files(folder)
    if files:
        return files
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in library.EXCLUDED_FOLDERS
        )
        files += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    for suffixes in KINDS:
        matches = [path for path in files if suffix_without_codec(path) in suffixes]
        if matches:
            return matches
    kinds = ", ".join(suffix for suffixes in KINDS for suffix in suffixes)
    raise DataError("D023", f"no {kinds} files in '{folder}'", "name other files or globs")


def _file_source(path: Path) -> Source:
    if not path.is_file():
        raise DataError("D015", f"{path} is not a file", "name the files or folders themselves")
    return Source(path, _kind(path, str(path)), path.stat().st_size, str(path))


def _hub_source(file: hub.HubFile) -> Source:
    return Source(file.path, _kind(Path(file.name), str(file)), file.size, str(file), remote=file)


def _kind(path: Path, name: str) -> str:
    suffix = suffix_without_codec(path)
    if suffix == ".json":
        if not path.exists() or jsonl.is_json_lines(path, name):
            return "jsonl"
        message = f"{name} is one JSON value, not lines of objects"
        raise DataError("D023", message, f"jq -c '.[]' {name} > lines.jsonl")
    kind = next((kind for suffixes, kind in KINDS.items() if suffix in suffixes), None)
    if suffix in OTHER_TEXT:
        kind = "text"
    if kind is None or (kind in WITHOUT_CODEC and codec(path)):
        raise DataError("D023", f"{name}: {path.suffix} files cannot be read", f"give {FORMATS}")
    return kind


def read(source: Source, start: int = 0) -> Iterator[TextBatch]:
    """Yields the documents of `source` from record number `start` on, in batches.

    A record is a row, a line that is not blank, a document of a text file or a module. The texts and their order do not
    depend on how they are batched. Raises `DataError` D020 to D022, D026 or D035 to D039 with the file and the
    location, and what `hub.fetch` raises.
    """
    batches: Iterator[TextBatch] = READERS[source.kind].read(source, start)
    return batches


def estimate(source: Source) -> Estimate:
    """Expected text in `source`, from its metadata or a sample; never reads a large file to its end."""
    expected: Estimate = READERS[source.kind].estimate(source)
    return expected


def checksum(source: Source) -> str:
    """xxh3-128 of the file in hexadecimal; of python-stdlib, of the names and hashes of its files.

    Raises `DataError` D026 if the file changes meanwhile, and `LoaderError` if it cannot be read.
    """
    try:
        if source.kind != "python":
            return _loader.hash_file(source.local())
        files = [(path.relative_to(source.path).as_posix(), path) for path in library.library_files(source.path)]
        return _loader.hash_bytes("".join(f"{_loader.hash_file(path)} {name}\n" for name, path in files).encode())
    except _loader.ShardChangedError as error:
        raise file_changed_error(source.name) from error
