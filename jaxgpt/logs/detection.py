"""Detects the format of a log from its content.

The format of most of the first lines that match any wins; a table's header or, last, lines that name a step and a loss
decide where no line has the form of a known program.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from jaxgpt.errors import DataError
from jaxgpt.logs.formats import BINARY_FORMATS, GENERIC_FORMATS, LINE_FORMATS, SUPPORTED, TABLE_FORMATS, keyvalue, table
from jaxgpt.logs.lines import visible_parts
from jaxgpt.utils.formatting import pluralize

DECISIVE_LINES = 50  # lines of one format that settle the format
EXAMPLE_CHARS = 80  # of a line in a message
FEW_LINES = 3  # of a format that a table's header, or many more lines of a generic format, outweigh
OUTWEIGHING = 10  # generic lines per line of a known program
PREAMBLE_LINES = 20_000  # before the first line of a known program: its source, for example
FORMATS = {module.NAME: module for module in (*LINE_FORMATS, *TABLE_FORMATS, *GENERIC_FORMATS, *BINARY_FORMATS)}


def numbered_parts(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The visible parts of every line with the line's number."""
    for line_no, line in enumerate(lines, start=1):
        for part in visible_parts(line):
            yield line_no, part


def detect_format(lines: Sequence[str], source: str) -> Any:
    """The module of the format. Raises `DataError` D041 and D042 if no line belongs to a log."""
    votes = Counter[str]()
    generic = Counter[str]()
    header = None
    for line_no, part in numbered_parts(lines):
        name = match_line_format(part)
        if name is not None:
            votes[name] += 1
        elif header is None and not votes:
            header = next((module.NAME for module in TABLE_FORMATS if module.parse_header(part)), None)
        if name is None and header is None and generic.total() < DECISIVE_LINES:
            generic.update(module.NAME for module in GENERIC_FORMATS if module.matches(part))
        has_other = header is not None or generic.total() >= DECISIVE_LINES
        if max(votes.values(), default=0) >= DECISIVE_LINES or (has_other and not votes and line_no > PREAMBLE_LINES):
            break
    elected = _elect(votes, generic, header)
    if elected is None:
        _check_steps(lines, source)
        raise unknown_format(lines, source)
    return FORMATS[elected]


def _elect(votes: Counter[str], generic: Counter[str], header: str | None) -> str | None:
    """The name of the format that the lines voted for; None if there is none."""
    if header is not None and votes.total() < FEW_LINES:
        return header
    is_outweighed = votes.total() < FEW_LINES and generic.total() > OUTWEIGHING * votes.total()
    for counts in (generic, votes) if is_outweighed else (votes, generic):
        if counts:
            return counts.most_common(1)[0][0]
    return None


def match_line_format(line: str) -> str | None:
    """The format that the line belongs to."""
    return next((module.NAME for module in LINE_FORMATS if is_line_of(module, line)), None)


def is_line_of(module: Any, line: str) -> bool:
    """Whether the line has the form of a line format. Markers are searched first, which is faster than the pattern."""
    if module not in LINE_FORMATS:
        return False
    return any(marker in line for marker in module.MARKERS) and module.PATTERN.search(line) is not None


def _check_steps(lines: Sequence[str], source: str) -> None:
    """Raises `DataError` D042 if the lines are a table, or others, with losses but without steps."""
    for _, part in islice(numbered_parts(lines), 5):
        table.refuse_without_steps(part, source)
    for _, part in islice(numbered_parts(lines), PREAMBLE_LINES):
        if keyvalue.names_loss(part) and keyvalue.has_loss_value(part):
            message = f"the lines of '{source}' name a loss but no step: {part.strip()[:EXAMPLE_CHARS]}"
            raise DataError("D042", message, "name the step in every line, such as: step=100 loss=3.21")


def unknown_format(lines: Sequence[str], source: str, unread: str = "") -> DataError:
    """The error of a log without a single record; `unread` describes the lines that were dropped."""
    if not lines:
        return DataError("D041", f"the log '{source}' is empty", SUPPORTED)
    count = pluralize(len(lines), "line")
    if unread:
        return DataError("D041", f"the log '{source}' has {count}, none with a step and a loss: {unread}", SUPPORTED)
    if _is_headerless(lines):
        remedy = "name its columns: --columns step,train,val"
        return DataError("D041", f"the log '{source}' is a table of {count} without a header", remedy)
    return DataError("D041", f"the log '{source}' has {count}, none of which belongs to a run's log", SUPPORTED)


def _is_headerless(lines: Sequence[str]) -> bool:
    """Whether the first lines are rows of at least two numbers."""
    first = [part for _, part in islice(numbered_parts(lines), 3)]
    return all(table.is_numeric(part) for part in first) and bool(first)
