"""Draws the README's picture of the planner: its answer for a config on a terminal of 80 columns.

python docs/budget.py docs/budget.svg [--config fineweb40m --gpu 'RTX 4070' …]
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from jaxgpt.budget import options
from jaxgpt.budget.plan import make_plan
from jaxgpt.budget.recommend import recommend
from jaxgpt.budget.report import brief_report
from jaxgpt.utils.report import print_report

WIDTH = 80


def main() -> None:
    out, *arguments = sys.argv[1:]
    planned = make_plan(options.read(arguments).inputs)
    screen = io.StringIO()
    console = Console(file=screen, width=WIDTH, force_terminal=True, highlight=False, color_system="standard")
    print_report(brief_report(planned, recommend(planned)), console)
    picture = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    picture.print(Text.from_ansi(screen.getvalue().strip()))
    svg = picture.export_svg(title=" ".join(["python -m jaxgpt.budget", *arguments]))
    # The reader's own monospace font: a picture in a README should load nothing.
    Path(out).write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main()
