"""Draws the README's picture of the diagnosis: the short report on a terminal of 80 columns.

python docs/diagnose.py docs/diagnose.svg docs/owner.csv [--config fineweb40m …]
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from jaxgpt import logs
from jaxgpt.diagnose import command
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import diagnose
from jaxgpt.diagnose.report import build_brief_report
from jaxgpt.utils.report import print_report

WIDTH = 80
PICTURE_WIDTH = 100  # commands are longer than the text


def main() -> None:
    out, *arguments = sys.argv[1:]
    request = command.read(arguments)
    history = logs.read(request.source)
    report = build_brief_report(diagnose(history, resolve_context(history, request.options), request.options.now))
    screen = io.StringIO()
    console = Console(file=screen, width=WIDTH, force_terminal=True, highlight=False, color_system="standard")
    print_report(report, console)
    picture = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True)
    picture.print(Text.from_ansi(screen.getvalue().strip()))
    svg = picture.export_svg(title=" ".join(["python -m jaxgpt.diagnose", *arguments]))
    # The reader's own monospace font: a picture in a README should load nothing.
    Path(out).write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main()
