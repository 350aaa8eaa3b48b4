"""Draws the README's picture: the live panel at a step of a recorded run.

python docs/panel.py runs/quickstart docs/panel.svg [--step 400]
"""

import argparse
import io
import math
import re
from pathlib import Path

from rich.console import Console

from jaxgpt.runs import log as runlog
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training.panel import LivePanel
from jaxgpt.training.records import StepRecord
from jaxgpt.utils.eta import estimate_eta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--step", type=int, default=math.inf)
    options = parser.parse_args()
    folder = RunFolder(options.run)
    config = folder.config()
    records = [record for record in runlog.read_log(folder.log_file) if record.get("step", 0) <= options.step]
    steps = [record for record in records if record["kind"] == "step"]
    console = Console(record=True, width=90, height=24, file=io.StringIO(), force_terminal=True)
    panel = LivePanel(config, console)
    panel.restore(records)
    seconds = [record["seconds"] for record in steps]
    remaining = estimate_eta(seconds[1:], config.run.steps - len(steps))
    panel.step(StepRecord(**{name: steps[-1][name] for name in StepRecord._fields}), remaining)
    console.print(panel._render())
    svg = console.export_svg(title=f"python -m jaxgpt.train --config {config.run.name}")
    # The reader's own monospace font: a picture in a README should load nothing.
    options.out.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main()
