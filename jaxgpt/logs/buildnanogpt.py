"""build-nanogpt's `log.txt` (`250 val 6.1`, `250 hella 0.26`, `0 train 10.95`) and its output.

`N train` is the step after N others, `N val` is measured before it. In the output, `validation loss` precedes the step
that it belongs to. A loss is the mean over the whole batch.
"""

import re

from jaxgpt.logs.collector import Collector, parse_count, parse_milliseconds, parse_number, parse_step
from jaxgpt.logs.history import Evaluation, LogTraits, Step

NAME = "buildnanogpt"
TRAITS = LogTraits(fixed_eval_set=True)
MARKERS = (" val ", " train ", " hella ", "| loss: ")
PATTERN = re.compile(r"(?:^|\s)\d+ (?:train|val|hella) (?:\d+\.\d+|nan|inf)\s*$|\bstep +\d+ \| loss: ")
RECORD = re.compile(r"(?:^|\s)(\d{1,10}) (train|val) (-?(?:\d[\d.]{0,30}(?:e[-+]?\d{1,3})?|nan|inf))\s*$")
STEP = re.compile(
    r"\bstep +(\d{1,10}) \| loss: ([^\s|]{1,40}) \| lr:? ([^\s|]{1,40}) \| norm: ([^\s|]{1,40}) \| dt: ([\d.]{1,40})ms"
)
VALIDATION = re.compile(r"\bvalidation loss: ([^\s|]{1,40})")
BATCH = re.compile(r"\btotal desired batch size: ([\d,]{1,20})")


class Reader:
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        self._log = collector
        self._steps_done = 0

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if match := RECORD.search(text):
            self._record(line_no, *match.groups())
        elif "| loss: " in text and (match := STEP.search(text)):
            self._step(line_no, *match.groups())
        elif match := VALIDATION.search(text):
            self._log.add(Evaluation(self._steps_done, parse_number(match[1]), line=line_no))
        elif match := BATCH.search(text):
            self._log.header(line_no)
            self._log.metadata["tokens_per_step"] = parse_count(match[1])

    def _record(self, line_no: int, n: str, kind: str, loss: str) -> None:
        step = parse_step(n)
        if step is None:
            return
        record = Evaluation if kind == "val" else Step
        self._log.add(record(step, parse_number(loss), line=line_no))

    def _step(self, line_no: int, n: str, loss: str, lr: str, norm: str, milliseconds: str) -> None:
        step = parse_step(n)
        if step is None:
            return
        self._steps_done = step + 1
        seconds = parse_milliseconds(milliseconds)
        self._log.add(Step(step, parse_number(loss), seconds, parse_number(lr), parse_number(norm), line_no))

    def end(self) -> None:
        """Does nothing: every line is complete."""
