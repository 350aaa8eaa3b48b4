"""Reports on a terminal: at most 100 columns, 80 and without colors where the output is piped."""

import sys
import textwrap
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from jaxgpt.errors import printable
from jaxgpt.utils.report.document import Code, Command, Figure, Items, Paragraph, Report, Table

PIPED_WIDTH = 80
MAX_WIDTH = 100


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints the title, the summary and every section."""
    printer = _Printer(console or default_console())
    printer.heading(report.title)
    for sentence in report.summary:
        printer.block(Paragraph(sentence))
    for section in report.sections:
        if section.blocks:
            printer.heading(section.title)
        for block in section.blocks:
            printer.block(block)


def default_console() -> Console:
    """A console on standard output: as wide as the terminal, at most 100 columns; 80 where it is piped."""
    console = Console(file=sys.stdout, highlight=False)
    width = min(console.width, MAX_WIDTH) if console.is_terminal else PIPED_WIDTH
    return Console(file=sys.stdout, highlight=False, width=width)


class _Printer:
    def __init__(self, console: Console) -> None:
        self._console = console

    def heading(self, title: str) -> None:
        self._console.print()
        self._wrapped(title, "", "", "bold")

    def block(self, block: Any) -> None:
        match block:
            case Paragraph(text, strong):
                self._wrapped(text, "  ", "  ", "bold" if strong else "")
            case Items(texts):
                for text in texts:
                    self._wrapped(text, "  - ", "    ")
            case Table():
                self._table(block)
            case Command(text):
                self._console.print(Text("    " + printable(text), style="cyan"), soft_wrap=True)
            case Code(text):
                for line in text.splitlines():
                    self._truncated(line)
            case Figure(caption, as_text=draw) if draw is not None:
                self._figure(caption, draw(self._console.width - 2))
            case Figure():
                pass
            case _:
                raise TypeError(f"not a block of a report: {block!r}")

    def _wrapped(self, text: str, first: str, rest: str, style: str = "") -> None:
        filled = textwrap.fill(
            printable(text),
            self._console.width,
            initial_indent=first,
            subsequent_indent=rest,
            break_on_hyphens=False,
            break_long_words=False,
        )
        self._console.print(Text(filled, style=style))

    def _truncated(self, line: str) -> None:
        room = self._console.width - 6
        line = printable(line)
        shown = line if len(line) <= room else line[: room - 1] + "…"
        self._console.print(Text("      " + shown, style="dim"))

    def _figure(self, caption: str, drawn: str) -> None:
        if drawn:
            self._wrapped(caption, "  ", "  ")
            self._console.print(Text(drawn))

    def _table(self, table: Table) -> None:
        """Prints a table without trailing blanks, which would wrap on a narrower terminal."""
        grid = RichTable(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
        for number, name in enumerate(table.columns):
            grid.add_column(
                Text(printable(name)), justify="right" if table.is_numeric(number) else "left", overflow="fold"
            )
        for row in table.rows:
            grid.add_row(*(Text(printable(cell)) for cell in row))
        with self._console.capture() as drawn:
            self._console.print(grid)
        lines = (line.rstrip() for line in drawn.get().splitlines())
        print("\n".join(lines), file=self._console.file)
