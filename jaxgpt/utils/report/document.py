"""The parts of a report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Paragraph:
    """One or more sentences; `strong` sets them in bold."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Items:
    """A bulleted list."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells under column names. Columns of numbers are aligned right, all others left."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def is_numeric(self, column: int) -> bool:
        """Whether every cell of a column is empty, a dash, or starts with a digit or a sign and a digit."""
        return all(_is_number(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Command:
    """A shell command to copy: never wrapped."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text shown verbatim, such as lines of a log."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A plot: `draw` fills matplotlib axes of `height` inches; `as_text`, if given, draws it in a width of columns."""

    caption: str
    draw: "Callable[[Axes], None]"
    height: float = 3.2
    as_text: Callable[[int], str] | None = None


Block = Paragraph | Items | Table | Command | Code | Figure


@dataclass(frozen=True)
class Section:
    """Blocks under a heading. The renderers leave out a section without blocks."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """An answer: the sentences that a reader asked for, what supports them, and the same facts as JSON values."""

    title: str
    summary: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


def _is_number(cell: str) -> bool:
    starts_with_sign = cell[:1] in "+-−≤≥<>±≈" and cell[1:2].isdigit()
    return cell[:1].isdigit() or starts_with_sign or cell in ("", "–")
