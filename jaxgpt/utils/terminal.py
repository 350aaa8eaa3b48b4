"""Answers for a terminal: headings, paragraphs and tables of at most 80 columns, plain where the output is piped."""

import sys
import textwrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxgpt.errors import printable

WIDTH = 80


def console() -> Console:
    """Where an answer goes: a terminal's own width up to 100 columns, 80 elsewhere."""
    wide = Console(file=sys.stdout, highlight=False)
    return Console(file=sys.stdout, highlight=False, width=min(wide.width, 100) if wide.is_terminal else WIDTH)


def table(*names: str, left: int = 0) -> Table:
    """An empty table with these columns, the first `left` of them flush left, the others flush right."""
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
    for number, name in enumerate(names):
        made.add_column(name, justify="left" if number < left else "right", overflow="fold")
    return made


class Sheet:
    """Prints headings, paragraphs and tables on `out`; whatever it is given is text, never markup."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def head(self, title: str) -> None:
        self._out.print()
        self._out.print(Text(printable(title), style="bold"))

    def line(self, text: str, indent: int = 2, hang: int = 0, style: str = "") -> None:
        """A paragraph that begins `indent` columns from the left; its other lines stand `hang` further in."""
        first, others = " " * indent, " " * (indent + hang)
        filled = textwrap.fill(
            printable(text), self._out.width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
        )
        self._out.print(Text(filled, style=style))

    def command(self, text: str, indent: int = 4) -> None:
        """A command to be copied: never broken, even where it is wider than the screen."""
        self._out.print(Text(" " * indent + printable(text), style="cyan"), soft_wrap=True)

    def show(self, table: Table) -> None:
        """The table without the blanks that fill its lines up, which would wrap where a terminal is narrower."""
        with self._out.capture() as drawn:
            self._out.print(table)
        print("\n".join(line.rstrip() for line in drawn.get().splitlines()), file=self._out.file)
