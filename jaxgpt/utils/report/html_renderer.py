"""Reports as one HTML file: plots inside, no script, nothing loaded from anywhere."""

import html
from functools import cache
from importlib import resources
from typing import Any

from jaxgpt.errors import printable
from jaxgpt.utils.report.document import Code, Command, Figure, Items, Paragraph, Report, Table
from jaxgpt.utils.report.svg import draw_svg

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MAX_COLUMNS, MAX_CELL = 3, 40  # of a table that remains a table on a phone; longer ones become a card for each row


def html_page(report: Report) -> str:
    """The report as HTML. Raises `ConfigError` C059 where a figure needs matplotlib and it is missing."""
    title = html.escape(report.title)
    blocks = [f'<p class="summary">{html.escape(sentence)}</p>' for sentence in report.summary]
    for section in report.sections:
        if section.blocks:
            blocks.append(f"<h2>{html.escape(section.title)}</h2>")
        blocks += [_block(block) for block in section.blocks]
    body = "\n".join(blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{_style()}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def is_report(start: bytes) -> bool:
    """Whether a file that begins with `start` (64 kB are enough) is a page that `html_page` made."""
    return start.startswith(b"<!DOCTYPE html>") and POLICY.encode() in start


@cache
def _style() -> str:
    return resources.files("jaxgpt.utils.report").joinpath("style.css").read_text(encoding="utf-8")


def _block(block: Any) -> str:
    match block:
        case Paragraph(text, strong):
            escaped = html.escape(text)
            return f"<p><strong>{escaped}</strong></p>" if strong else f"<p>{escaped}</p>"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"
        case Table():
            return _table(block)
        case Command(text):
            words = printable(text).split(" ")  # a line ends between two words, never within an option
            return f'<pre class="command">{" ".join(f"<span>{html.escape(word)}</span>" for word in words)}</pre>'
        case Code(text):
            return f"<pre>{html.escape(printable(text))}</pre>"
        case Figure():
            return _figure(block)
    raise TypeError(f"not a block of a report: {block!r}")


def _table(table: Table) -> str:
    """A table; on a narrow screen a card for each row if the table is wide."""
    numeric = [table.is_numeric(column) for column in range(len(table.columns))]
    cells = [cell for row in table.rows for cell in row]
    is_wide = len(table.columns) > MAX_COLUMNS or any(len(cell) > MAX_CELL for cell in cells)
    columns = zip(table.columns, numeric, strict=True)
    head = "".join(_cell("th", name, "number" if is_number else "") for name, is_number in columns)
    body = "\n".join(f"<tr>{_row(row, table.columns, numeric)}</tr>" for row in table.rows)
    thead = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    attribute = ' class="cards"' if is_wide else ""
    return f"<table{attribute}>{thead}<tbody>\n{body}\n</tbody></table>"


def _row(row: tuple[str, ...], columns: tuple[str, ...], numeric: list[bool]) -> str:
    """A row. A card has the first cell as its heading, unless that is a number, and shows the names of the columns."""
    cells = []
    for index, (text, label, is_number) in enumerate(zip(row, columns, numeric, strict=True)):
        kinds = {"number": is_number, "title": index == 0 and not is_number, "long": len(text) > MAX_CELL}
        cells.append(_cell("td", text, " ".join(kind for kind, applies in kinds.items() if applies), label))
    return "".join(cells)


def _cell(tag: str, text: str, classes: str, label: str = "") -> str:
    attributes = f' class="{classes}"' if classes else ""
    if label:
        attributes += f' data-label="{html.escape(label)}"'
    return f"<{tag}{attributes}>{html.escape(text)}</{tag}>"


def _figure(figure: Figure) -> str:
    """A figure in two widths, of which the style shows the one that suits the screen."""
    label = html.escape(figure.caption)
    pictures = draw_svg(figure, narrow=False) + draw_svg(figure, narrow=True)
    return f'<figure role="img" aria-label="{label}">{pictures}<figcaption>{label}</figcaption></figure>'
