"""Reads the log of a run, whatever program wrote it. Loads no JAX.

`read` and `read_text` detect the format from the content (`jaxgpt.logs.detection`). Each format has a module in
`jaxgpt.logs.formats`.
"""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.errors import DataError, NoLogError
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.detection import FORMATS, detect_format, is_line_of, numbered_parts, unknown_format
from jaxgpt.logs.documents import document_lines
from jaxgpt.logs.event_files import is_event_file
from jaxgpt.logs.formats import LINE_FORMATS, SUPPORTED, jaxgpt_log, table, tensorboard
from jaxgpt.logs.history import BytesPerToken, History
from jaxgpt.logs.lines import read_lines, split_lines
from jaxgpt.logs.reader import Reader
from jaxgpt.runs.folder import RunFolder

__all__ = ["SUPPORTED", "find_run_folder", "read", "read_text"]

LOG_FILES = (
    "trainer_state.json",
    "*.txt",
    "*.log",
    "*.csv",
    "*.jsonl",
    "*.json",
)  # that may be logs, likely ones first
LOSS = re.compile(r"\bloss\W{1,4}\d")  # in a line that the reader of a format does not know


def read(
    path: str | Path,
    batch_tokens: float | None = None,
    columns: str | None = None,
    bytes_per_token: BytesPerToken | None = None,
) -> History:
    """Reads the last run of the log, run folder or name under `runs/` at `path`.

    `batch_tokens` converts tokens to steps where a table counts tokens alone; `columns` names the columns of a table
    without a header, separated by commas; `bytes_per_token` converts losses in bits per byte. Raises `DataError` D041
    for text without a line of a known format, D042 for a table without steps or with losses in bits per byte that
    nothing converts, D043 if there is nothing at `path`, D044 for a folder that is not a run, D045 for a file that
    cannot be read.
    """
    file = _find_log(Path(path))
    try:
        events = _event_files(file)
        if events:
            return _read_events(events, str(path), bytes_per_token)
        history = _parse(read_lines(file), str(path), batch_tokens, columns, bytes_per_token)
    except OSError as error:
        raise DataError("D045", f"'{file}' cannot be read: {error.strerror or error}", "choose another file") from error
    if history.traits.is_jaxgpt_run:
        return jaxgpt_log.add_folder_facts(history, RunFolder(file.parent))
    return history


def read_text(
    text: str,
    source: str,
    batch_tokens: float | None = None,
    columns: str | None = None,
    bytes_per_token: BytesPerToken | None = None,
) -> History:
    """Reads the last run of a log's text; `source` names the text in messages. Raises `DataError` as `read`."""
    return _parse(split_lines(text), source, batch_tokens, columns, bytes_per_token)


def _event_files(path: Path) -> list[Path]:
    """The event files of TensorBoard at `path`: itself, or those in the folder; empty if it is something else."""
    if path.is_dir():
        return sorted(file for file in path.glob(tensorboard.FILES) if file.is_file() and is_event_file(file))
    return [path] if is_event_file(path) else []


def _read_events(files: Sequence[Path], source: str, bytes_per_token: BytesPerToken | None) -> History:
    lines, problems = tensorboard.event_lines(files)
    collector = Collector(source, tensorboard.NAME, tensorboard.TRAITS, bytes_per_token)
    for problem in problems:
        collector.note(problem, is_warning=True)
    return _collect(lines, collector, tensorboard.Reader(collector))


def _parse(
    lines: Sequence[str],
    source: str,
    batch_tokens: float | None,
    columns: str | None,
    bytes_per_token: BytesPerToken | None,
) -> History:
    lines = document_lines(lines) or lines
    module = table if columns else detect_format(lines, source)
    collector = Collector(source, module.NAME, module.TRAITS, bytes_per_token)
    reader = table.Reader(collector, batch_tokens, columns) if module is table else module.Reader(collector)
    return _collect(lines, collector, reader)


def _collect(lines: Sequence[str], collector: Collector, reader: Reader) -> History:
    """Reads all lines into the collector. Raises `DataError` D041 if next to nothing could be read."""
    module = FORMATS[collector.format]
    for line_no, part in numbered_parts(lines):
        accepted = collector.accepted
        reader.line(line_no, part)
        if collector.accepted != accepted or module not in LINE_FORMATS:
            continue
        if is_line_of(module, part):
            collector.drop(line_no)
        elif "loss" in part and LOSS.search(part):
            collector.miss(line_no)
    reader.end()
    if collector.unusable:
        raise unknown_format(lines, collector.source, collector.unread)
    return collector.history(lines)


def _find_log(path: Path) -> Path:
    """The log file at `path`, which is a file, a run folder, or the name of a run under `runs/`."""
    run = None if path.is_file() else find_run_folder(str(path))
    if run is not None:
        return run.log_file
    for candidate in (path, Path("runs") / path):
        if candidate.is_dir():
            return _log_in(candidate)
        if candidate.is_file():
            return candidate
        if os.path.lexists(candidate):
            raise DataError("D045", f"'{candidate}' is not a regular file", "save it in a file, or pipe it: diagnose -")
    raise NoLogError("D043", f"there is no run or log at '{path}'", _suggest(path))


def find_run_folder(source: str) -> RunFolder | None:
    """The folder of the jaxgpt run whose folder, name or log is at `source`; None if that is not a jaxgpt run."""
    for path in (Path(source), Path("runs") / source):
        folder = RunFolder(path if path.is_dir() else path.parent)
        if folder.log_file.is_file() and (path.is_dir() or path == folder.log_file):
            return folder
    return None


def _log_in(folder: Path) -> Path:
    """The log of the run in `folder`, or the folder itself if it has TensorBoard's event files."""
    log = RunFolder(folder).log_file
    if log.is_file():
        return log
    if _event_files(folder):
        return folder
    logs = list(dict.fromkeys(str(path) for pattern in LOG_FILES for path in sorted(folder.glob(pattern))))
    hint = f"name a file in it: {', '.join(logs[:5])}" if logs else SUPPORTED
    raise DataError("D044", f"the folder '{folder}' is not a run: it has no {log.name}", hint)


def _suggest(path: Path) -> str:
    """Names of files and runs that resemble `path`."""
    try:
        neighbors = [str(path.parent / entry.name) for entry in path.parent.iterdir()]
    except OSError:
        neighbors = []
    runs = [log.parent.name for log in Path("runs").glob("*/log.jsonl")]
    close = difflib.get_close_matches(str(path), [*neighbors, *runs], n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are the runs {', '.join(sorted(runs))}" if runs else "name a run's folder, or the file of a log"
