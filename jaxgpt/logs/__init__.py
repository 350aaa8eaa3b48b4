"""What a run's log says, whoever wrote it. Loads no JAX.

`read` and `read_text` find the format from the content: whose lines the text holds most of among the first that are
known. Each format has a module with its name, a pattern for lines that are its own, and a `Reader` of lines.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from jaxgpt.errors import DataError
from jaxgpt.logs import buildnanogpt, jaxgpt_log, llmc, modded, nanochat, nanogpt, table
from jaxgpt.logs import lines as text_lines
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import History
from jaxgpt.runs.folder import RunFolder

FORMATS: dict[str, Any] = {
    format.NAME: format for format in (jaxgpt_log, nanogpt, llmc, modded, nanochat, buildnanogpt)
}
ENOUGH = 50  # lines of one format that settle which it is
KNOWN_ARE = (
    "known are: a run folder of jaxgpt or its log.jsonl, what nanoGPT prints, llm.c's main.log, modded-nanogpt's and "
    "nanochat's logs, build-nanogpt's log.txt, and a table with a head such as step,tokens,lr,train_loss,val_loss"
)


class Reader(Protocol):
    """Takes the lines of one format; `end` says that there are no more."""

    def line(self, at: int, text: str) -> None: ...
    def end(self) -> None: ...


def read(path: str | Path, batch_tokens: float | None = None) -> History:
    """The last run of the log, run folder or name under `runs/` at `path`.

    `batch_tokens` turns tokens into steps where a table counts tokens alone. Raises `DataError` D041 for text without
    a known line, D042 for a table without steps, D043 if there is nothing at `path`, D044 for a folder that is no run,
    D045 for what cannot be read.
    """
    place = _place(Path(path))
    try:
        lines = text_lines.of_file(place)
        found = _read(lines, str(path), batch_tokens)
    except OSError as error:
        raise DataError(
            "D045", f"'{place}' cannot be read: {error.strerror or error}", "choose another file"
        ) from error
    return jaxgpt_log.completed(found, RunFolder(place.parent)) if found.format == jaxgpt_log.NAME else found


def read_text(text: str, source: str) -> History:
    """The last run of a log's text; `source` names it in messages. Raises `DataError` as `read`."""
    return _read(text_lines.of_text(text), source, None)


def _read(lines: Sequence[str], source: str, batch_tokens: float | None) -> History:
    name = _format(lines, source)
    collector = Collector(source, name)
    reader: Reader = table.Reader(collector, batch_tokens) if name == table.NAME else FORMATS[name].Reader(collector)
    for at, part in _parts(lines):
        reader.line(at, part)
    reader.end()
    if collector.empty:
        raise _unknown(source, len(lines))
    return collector.history(lines)


def _parts(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    for at, line in enumerate(lines, start=1):
        for part in text_lines.parts(line):
            yield at, part


def _format(lines: Sequence[str], source: str) -> str:
    """The name of the format that most of the first known lines have; a table's if there is nothing but its head."""
    votes, tables = Counter[str](), False
    for _, part in _parts(lines):
        name = _known(part)
        if name:
            votes[name] += 1
            if votes[name] >= ENOUGH:
                break
        elif not tables and not votes:
            tables = table.head(part) is not None
    if votes and not (tables and votes.total() < 3):
        return votes.most_common(1)[0][0]
    if tables:
        return table.NAME
    for _, part in islice(_parts(lines), 5):
        table.refuse_without_steps(part, source)
    raise _unknown(source, len(lines))


def _known(line: str) -> str | None:
    """The format whose own the line is; its marks are looked for first, which is quicker than its pattern."""
    for name, format in FORMATS.items():
        for mark in format.MARKS:
            if mark in line:
                if format.KNOWN.search(line):
                    return name
                break
    return None


def _unknown(source: str, count: int) -> DataError:
    what = "is empty" if count == 0 else f"holds no known line of a run in its {count:,}"
    return DataError("D041", f"the log '{source}' {what}", KNOWN_ARE)


def _place(path: Path) -> Path:
    """The file to read for what was named: a file, a run folder, or a run's name under `runs/`."""
    for candidate in (path, Path("runs") / path):
        if candidate.is_dir():
            return _log_of(candidate)
        if candidate.exists():
            if not candidate.is_file():
                raise DataError(
                    "D045", f"'{candidate}' is no plain file", "save it in a file, or pipe it in: diagnose -"
                )
            return candidate
    raise DataError("D043", f"there is no run or log at '{path}'", _near(path))


def _log_of(folder: Path) -> Path:
    log = RunFolder(folder).log_file
    if log.is_file():
        return log
    logs = [str(path) for kind in ("*.txt", "*.log", "*.csv", "*.jsonl") for path in sorted(folder.glob(kind))]
    hint = f"name a file in it: {', '.join(logs[:5])}" if logs else KNOWN_ARE
    raise DataError("D044", f"the folder '{folder}' is no run: it has no {log.name}", hint)


def _near(path: Path) -> str:
    """What there is of a similar name."""
    try:
        beside = [str(path.parent / entry.name) for entry in path.parent.iterdir()]
    except OSError:
        beside = []
    runs = [entry.parent.name for entry in Path("runs").glob("*/log.jsonl")]
    close = difflib.get_close_matches(str(path), [*beside, *runs], n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are the runs {', '.join(sorted(runs))}" if runs else "a run's folder, or the file of a log"
