"""Reports that a browser opens: one HTML file with its plots inside, no script, nothing loaded from anywhere.

A report is made of blocks: `paragraph`, `heading`, `table`, `items`, `code`, `figure`. Whatever they are given is text,
and is escaped: a run's name, a file's name or a document may hold anything.
"""

import html
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType

from jaxgpt.errors import ConfigError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Block = NewType("Block", str)

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MARKED = 1 << 16  # bytes at the beginning of a page that hold its policy: by it we know our own
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff; max-width: 52rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; display: block;
        overflow-x: auto; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e3e5e8; vertical-align: top; }
th { font-weight: 600; color: #555; } td.number, th.number { text-align: right; }
td.number, td.tight { white-space: nowrap; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
code, pre { background: #f3f4f6; padding: .1rem .3rem; border-radius: 3px; font-size: .9em; }
@media (max-width: 40rem) {
  td:not(.number):not(.tight) { min-width: 9rem; }
  tr:has(td.tight), tr:has(td.tight) td { display: block; border: 0; padding: 0; }
  tr:has(td.tight) { border-bottom: 1px solid #e3e5e8; padding: .5rem 0; }
  td.tight:first-child { font-weight: 600; } thead:has(+ tbody td.tight) { display: none; }
}
pre { padding: .6rem .8rem; overflow-x: auto; line-height: 1.35; }
"""
PLOT: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "jaxgpt",  # the same plot is the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,  # bars in front of the grid
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.8,
}


def heading(text: str) -> Block:
    return Block(f"<h2>{html.escape(text)}</h2>")


def paragraph(text: str) -> Block:
    return Block(f"<p>{html.escape(text)}</p>")


def code(text: str) -> Block:
    """Text as it stands, to be copied: commands, lines of a log."""
    return Block(f"<pre>{html.escape(printable(text))}</pre>")


def items(texts: Iterable[str]) -> Block:
    """A list of short texts."""
    return Block("<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], tight: int = 0) -> Block:
    """A table; columns whose cells are all numbers, or begin with a digit or a sign, are set flush right.

    The cells of the first `tight` columns keep to one line.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    numeric = [all(_is_number(row[column]) for row in cells) for column in range(len(header))]

    def line(tag: str, row: Sequence[str]) -> str:
        classes = ("number" if number else "tight" if place < tight else "" for place, number in enumerate(numeric))
        kinds = (f' class="{name}"' if name else "" for name in classes)
        parts = (f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line("td", row) for row in cells)
    return Block(f"<table><thead>{line('th', header)}</thead><tbody>\n{body}\n</tbody></table>")


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] in "+-−≤≥<>±≈" and cell[1:2].isdigit()) or cell in ("", "–")


class Figure:
    """A plot in the making: draw on `axes`; `block` is it as SVG, once the `with` of `figure` has ended."""

    def __init__(self, axes: "Axes") -> None:
        self.axes = axes
        self.block = Block("")


@contextmanager
def figure(caption: str, height: float = 3.2) -> Iterator[Figure]:
    """A plot of the page's width and `height` inches; `caption` says what is to be seen in it."""
    try:
        import matplotlib  # half a second: only who draws pays it
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        what = f"the figures of a page cannot be drawn: {error}"
        raise ConfigError("C059", what, "pip install matplotlib, or leave the page out") from error

    with matplotlib.rc_context(PLOT):
        canvas = Canvas(figsize=(7.6, height), layout="constrained")
        drawn = Figure(canvas.add_subplot())
        yield drawn
        svg = io.StringIO()
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    picture = svg.getvalue()[svg.getvalue().index("<svg") :]
    label = html.escape(caption, quote=True)
    drawn.block = Block(f'<figure role="img" aria-label="{label}">{picture}<figcaption>{label}</figcaption></figure>')


def page(title: str, blocks: Iterable[Block]) -> str:
    """The whole report as HTML."""
    name, body = html.escape(title), "\n".join(blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def writable(option: str, text: str | None) -> Path | None:
    """The path of a file to write; `ConfigError` C041 before any work if it cannot be."""
    if text is None:
        return None
    path = Path(text)
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        kind = "it is a folder" if path.is_dir() else "it is no plain file"
        why = kind if path.exists() else f"there is no folder '{path.parent}'"
        raise ConfigError("C041", f"{option} '{path}' cannot be written: {why}", "choose another place")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError("C041", f"{option} '{path}' cannot be written: no permission", "choose another place")
    return path


def place(option: str, text: str | None) -> Path | None:
    """A file for a report: a new one, or a page of ours that stands there already; else `ConfigError` C041."""
    path = writable(option, text)
    if path is not None and path.is_file():
        with path.open("rb") as file:
            begin = file.read(MARKED)
        if begin and not (begin.startswith(b"<!DOCTYPE html>") and POLICY.encode() in begin):
            raise ConfigError("C041", f"'{path}' exists and is no page of ours", "nothing of yours is overwritten")
    return path


def write(path: Path, text: str) -> None:
    """Writes a report in one piece: a reader or a crash finds all of it or what was there before.

    A link stays one. Bytes of a file's name that are no text are written as escapes.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
