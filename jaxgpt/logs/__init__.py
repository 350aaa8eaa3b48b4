"""Reads the log of a run, whatever program wrote it. Loads no JAX.

`read` and `read_text` detect the format from the content: the format of most of the first lines that match any. Each
format has a module with its name, markers and a pattern for its lines, its traits, and a `Reader`.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jaxgpt.errors import DataError, NoLogError
from jaxgpt.logs import buildnanogpt, jaxgpt_log, llmc, modded, nanochat, nanogpt, table
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import History
from jaxgpt.logs.lines import read_lines, split_lines, visible_parts
from jaxgpt.runs.folder import RunFolder
from jaxgpt.utils.formatting import pluralize

FORMATS: dict[str, Any] = {
    module.NAME: module for module in (jaxgpt_log, nanogpt, llmc, modded, nanochat, buildnanogpt)
}
DECISIVE_LINES = 50  # lines of one format that settle the format
SUPPORTED = (
    "jaxgpt reads its own run folders and their log.jsonl, the output of nanoGPT, llm.c's main.log, the logs of "
    "modded-nanogpt and nanochat, build-nanogpt's log.txt, and tables with a header such as "
    "step,tokens,lr,train_loss,val_loss"
)


def read(path: str | Path, batch_tokens: float | None = None) -> History:
    """Reads the last run of the log, run folder or name under `runs/` at `path`.

    `batch_tokens` converts tokens to steps where a table counts tokens alone. Raises `DataError` D041 for text without
    a line of a known format, D042 for a table without steps, D043 if there is nothing at `path`, D044 for a folder that
    is not a run, D045 for a file that cannot be read.
    """
    file = _find_log(Path(path))
    try:
        history = _parse(read_lines(file), str(path), batch_tokens)
    except OSError as error:
        raise DataError("D045", f"'{file}' cannot be read: {error.strerror or error}", "choose another file") from error
    if history.traits.is_jaxgpt_run:
        return jaxgpt_log.add_folder_facts(history, RunFolder(file.parent))
    return history


def read_text(text: str, source: str) -> History:
    """Reads the last run of a log's text; `source` names the text in messages. Raises `DataError` as `read`."""
    return _parse(split_lines(text), source, None)


def _parse(lines: Sequence[str], source: str, batch_tokens: float | None) -> History:
    name = _detect_format(lines, source)
    module = FORMATS.get(name, table)
    collector = Collector(source, name, module.TRAITS)
    reader = table.Reader(collector, batch_tokens) if module is table else module.Reader(collector)
    for line_no, part in _numbered_parts(lines):
        reader.line(line_no, part)
    reader.end()
    if collector.empty:
        raise _unknown_format(source, len(lines))
    return collector.history(lines)


def _numbered_parts(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    for line_no, line in enumerate(lines, start=1):
        for part in visible_parts(line):
            yield line_no, part


def _detect_format(lines: Sequence[str], source: str) -> str:
    """The format of most of the first lines that match one; `table` if there is only a table's header."""
    votes = Counter[str]()
    has_table = False
    for _, part in _numbered_parts(lines):
        name = _match_format(part)
        if name:
            votes[name] += 1
            if votes[name] >= DECISIVE_LINES:
                break
        elif not has_table and not votes:
            has_table = table.parse_header(part) is not None
    if votes and not (has_table and votes.total() < 3):
        return votes.most_common(1)[0][0]
    if has_table:
        return table.NAME
    for _, part in islice(_numbered_parts(lines), 5):
        table.refuse_without_steps(part, source)
    raise _unknown_format(source, len(lines))


def _match_format(line: str) -> str | None:
    """The format that the line belongs to. Markers are searched first, which is faster than the pattern."""
    for name, module in FORMATS.items():
        if any(marker in line for marker in module.MARKERS) and module.PATTERN.search(line):
            return name
    return None


def _unknown_format(source: str, count: int) -> DataError:
    problem = "is empty" if count == 0 else f"has {pluralize(count, 'line')}, none of which belongs to a run's log"
    return DataError("D041", f"the log '{source}' {problem}", SUPPORTED)


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
        if candidate.exists():
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
    log = RunFolder(folder).log_file
    if log.is_file():
        return log
    logs = [str(path) for pattern in ("*.txt", "*.log", "*.csv", "*.jsonl") for path in sorted(folder.glob(pattern))]
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
