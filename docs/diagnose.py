"""Draws the README's picture of the diagnosis: the first sections of the report on a terminal of 80 columns.

python docs/diagnose.py docs/diagnose.svg docs/owner.csv [--config fineweb40m …]
"""

import dataclasses
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
from jaxgpt.diagnose.report import build_report
from jaxgpt.utils.report import print_report

WIDTH = 80
SECTIONS = 4  # when, where, why, what to do


def main() -> None:
    out, *arguments = sys.argv[1:]
    request = command.read(arguments)
    history = logs.read(request.source)
    report = build_report(diagnose(history, resolve_context(history, request.options), request.options.now))
    screen = io.StringIO()
    console = Console(file=screen, width=WIDTH, force_terminal=True, highlight=False, color_system="standard")
    print_report(dataclasses.replace(report, sections=report.sections[:SECTIONS]), console)
    width = max(len(Text.from_ansi(line)) for line in screen.getvalue().splitlines())
    picture = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    picture.print(Text.from_ansi(screen.getvalue().strip()))
    svg = picture.export_svg(title=" ".join(["python -m jaxgpt.diagnose", *arguments]))
    # The reader's own monospace font: a picture in a README should load nothing.
    Path(out).write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main()
