"""Draws the README's picture of the diagnosis: the first half of its answer for a log, in a terminal of 80 columns.

python docs/diagnose.py docs/diagnose.svg docs/owner.csv [--config fineweb40m …]
"""

import io
import re
import sys
from pathlib import Path

from jaxgpt.diagnose.text import Printer
from rich.console import Console
from rich.text import Text

from jaxgpt import logs
from jaxgpt.diagnose import command
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import diagnose
from jaxgpt.utils import terminal


def main() -> None:
    out, *arguments = sys.argv[1:]
    request = command.read(arguments)
    history = logs.read(request.source)
    found = diagnose(history, resolve_context(history, request.options), request.options.now)
    shown = io.StringIO()
    screen = Console(file=shown, width=terminal.WIDTH, force_terminal=True, highlight=False, color_system="standard")
    printer = Printer(screen)
    for part in (printer.opening, printer.when, printer.forecast, printer.supported, printer.recommendations):
        part(found)
    width = max(len(Text.from_ansi(line)) for line in shown.getvalue().splitlines())
    picture = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    picture.print(Text.from_ansi(shown.getvalue().strip()))
    drawn = picture.export_svg(title=" ".join(["python -m jaxgpt.diagnose", *arguments]))
    # The reader's own monospace font: a picture in a README should load nothing.
    Path(out).write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


if __name__ == "__main__":
    main()
