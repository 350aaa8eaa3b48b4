"""Draws the README's picture of the planner: its answer for a config as a terminal of 80 columns shows it.

python docs/budget.py docs/budget.svg [--config fineweb40m --gpu 'RTX 4070' …]
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from jaxgpt.budget import options, text
from jaxgpt.budget.plan import plan
from jaxgpt.budget.recommend import recommend
from jaxgpt.utils import terminal


def main() -> None:
    out, *arguments = sys.argv[1:]
    shown = io.StringIO()
    found = plan(options.read(arguments).inputs)
    screen = Console(file=shown, width=terminal.WIDTH, force_terminal=True, highlight=False, color_system="standard")
    text.Printer(screen).whole(found, recommend(found), [], None)
    picture = Console(record=True, width=terminal.WIDTH, file=io.StringIO(), force_terminal=True)
    picture.print(Text.from_ansi(shown.getvalue().strip()))
    drawn = picture.export_svg(title=" ".join(["python -m jaxgpt.budget", *arguments]))
    # The reader's own monospace font: a picture in a README should load nothing.
    Path(out).write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


if __name__ == "__main__":
    main()
