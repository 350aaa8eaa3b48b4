"""build-nanogpt's `log.txt` (`250 val 6.1`, `250 hella 0.26`, `0 train 10.95`) and its output.

`N train` is the step after N others, `N val` is measured before it. In the output, `validation loss` precedes the step
that it belongs to. A loss is the mean over the batch.
"""

import re

from jaxgpt.logs import reader
from jaxgpt.logs.history import LogTraits

NAME = "buildnanogpt"
TRAITS = LogTraits(fixed_eval_set=True, optimizer="adamw", default_schedule="cosine")
MARKERS = (" val ", " train ", " hella ", "| loss: ")
PATTERN = re.compile(r"(?:^|\s)\d+ (?:train|val|hella) (?:\d+\.\d+|nan|inf)\s*$|\bstep +\d+ \| loss: ")
RECORD = re.compile(
    r"(?:^|\s)(?P<step>\d{1,10}) (?P<kind>train|val) (?P<loss>-?(?:\d[\d.]{0,30}(?:e[-+]?\d{1,3})?|nan|inf))\s*$"
)
STEP = re.compile(
    r"\bstep +(?P<step>\d{1,10}) \| loss: (?P<loss>[^\s|]{1,40}) \| lr:? (?P<lr>[^\s|]{1,40})"
    r" \| norm: (?P<norm>[^\s|]{1,40}) \| dt: (?P<ms>[\d.]{1,40})ms"
)
VALIDATION = re.compile(r"\bvalidation loss: (?P<loss>[^\s|]{1,40})")
BATCH = re.compile(r"\btotal desired batch size: ([\d,]{1,20})")


class Reader(reader.Reader):
    """Reads line by line into a `Collector`."""

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if match := RECORD.search(text):
            add = self._add_evaluation if match["kind"] == "val" else self._add_step
            add(line_no, match)
        elif "| loss: " in text and (match := STEP.search(text)):
            self._add_step(line_no, match)
        elif match := VALIDATION.search(text):
            self._add_evaluation(line_no, match)
        elif " hella " in text:
            self._log.accept()
        elif match := BATCH.search(text):
            self._log.header(line_no)
            self._log.metadata["tokens_per_step"] = reader.parse_count(match[1])
