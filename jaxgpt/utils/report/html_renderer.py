"""Reports as one HTML file: plots inside, no script, nothing loaded from anywhere."""

import html
import io
from collections.abc import Iterable
from typing import Any

from jaxgpt.errors import ConfigError, printable
from jaxgpt.utils.report.document import Code, Command, Figure, Items, Paragraph, Report, Table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff; max-width: 52rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; display: block;
        overflow-x: auto; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e3e5e8; vertical-align: top; }
th { font-weight: 600; color: #555; } td.number, th.number { text-align: right; }
td.number, td.label { white-space: nowrap; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
code, pre { background: #f3f4f6; padding: .1rem .3rem; border-radius: 3px; font-size: .9em; }
@media (max-width: 40rem) {
  td:not(.number):not(.tight) { min-width: 9rem; }
  tr:has(td.label), tr:has(td.label) td { display: block; border: 0; padding: 0; }
  tr:has(td.label) { border-bottom: 1px solid #e3e5e8; padding: .5rem 0; }
  td.label:first-child { font-weight: 600; } thead:has(+ tbody td.label) { display: none; }
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
    "axes.axisbelow": True,  # the grid is drawn behind bars
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.8,
}


def html_page(report: Report) -> str:
    """The report as HTML. Raises `ConfigError` C059 where a figure needs matplotlib and it is missing."""
    title = html.escape(report.title)
    blocks = [_paragraph(sentence) for sentence in report.summary]
    for section in report.sections:
        if section.blocks:
            blocks.append(f"<h2>{html.escape(section.title)}</h2>")
        blocks += [_block(block) for block in section.blocks]
    body = "\n".join(blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def is_report(start: bytes) -> bool:
    """Whether a file that begins with `start` (64 kB are enough) is a page that `html_page` made."""
    return start.startswith(b"<!DOCTYPE html>") and POLICY.encode() in start


def _block(block: Any) -> str:
    match block:
        case Paragraph(text, strong):
            return _paragraph(text, strong)
        case Items(texts):
            return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"
        case Table():
            return _table(block)
        case Command(text) | Code(text):
            return f"<pre>{html.escape(printable(text))}</pre>"
        case Figure():
            return _figure(block)
    raise TypeError(f"not a block of a report: {block!r}")


def _paragraph(text: str, strong: bool = False) -> str:
    escaped = html.escape(text)
    return f"<p><strong>{escaped}</strong></p>" if strong else f"<p>{escaped}</p>"


def _table(table: Table) -> str:
    numeric = [table.is_numeric(column) for column in range(len(table.columns))]

    def line(tag: str, cells: Iterable[str]) -> str:
        parts = []
        for cell, is_number in zip(cells, numeric, strict=True):
            attribute = ' class="number"' if is_number else ""
            parts.append(f"<{tag}{attribute}>{html.escape(cell)}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line("td", row) for row in table.rows)
    return f"<table><thead>{line('th', table.columns)}</thead><tbody>\n{body}\n</tbody></table>"


def _figure(figure: Figure) -> str:
    try:
        import matplotlib  # takes half a second: only pages with figures load it
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        message = f"the figures of a page cannot be drawn: {error}"
        raise ConfigError("C059", message, "pip install matplotlib") from error

    with matplotlib.rc_context(PLOT):
        canvas = Canvas(figsize=(7.6, figure.height), layout="constrained")
        figure.draw(canvas.add_subplot())
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    svg = text[text.index("<svg") :]
    label = html.escape(figure.caption, quote=True)
    return f'<figure role="img" aria-label="{label}">{svg}<figcaption>{label}</figcaption></figure>'
