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
from jaxgpt.training.console import LivePanel
from jaxgpt.training.records import Score, Scores, StepRecord
from jaxgpt.utils.eta import estimate_eta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--step", type=int, default=math.inf)
    options = parser.parse_args()
    folder = RunFolder(options.run)
    config = folder.config()
    console = Console(record=True, width=90, file=io.StringIO(), force_terminal=True)
    panel = LivePanel(config, console)
    seconds: list[float] = []
    for record in runlog.read_log(folder.log_file):
        if record.get("step", 0) > options.step:
            break
        if record["kind"] == "step":
            seconds.append(record["seconds"])
            left = estimate_eta(seconds[1:], config.run.steps - record["step"] - 1)
            panel.step(StepRecord(**{name: record[name] for name in StepRecord._fields}), left)
        elif record["kind"] == "eval":
            train, val = (
                Score(*(record[f"{split}_{field}"] for field in Score._fields)) if f"{split}_loss" in record else None
                for split in ("train", "val")
            )
            assert train is not None
            panel.scores(record["step"], Scores(train, val))
        elif record["kind"] == "save":
            panel.saved(record["step"])
    console.print(panel._render())
    svg = console.export_svg(title=f"python -m jaxgpt.train --config {config.run.name}")
    # The reader's own monospace font: a picture in a README should load nothing.
    options.out.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main()
