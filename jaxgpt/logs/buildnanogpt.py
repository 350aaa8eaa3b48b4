"""build-nanogpt's `log.txt` (`250 val 6.1`, `250 hella 0.26`, `0 train 10.95`) and what it prints.

`N train` is the update after N others, `N val` is measured before it; on the screen `validation loss` stands before
the step that it belongs to. A loss is the mean over the whole batch.
"""

import re

from jaxgpt.logs.collector import Collector, duration, finite, number, whole
from jaxgpt.logs.history import Evaluation, Step

NAME = "buildnanogpt"
MARKS = (" val ", " train ", " hella ", "| loss: ")
KNOWN = re.compile(r"(?:^|\s)\d+ (?:train|val|hella) (?:\d+\.\d+|nan|inf)\s*$|\bstep +\d+ \| loss: ")
RECORD = re.compile(r"(?:^|\s)(\d{1,10}) (train|val) (-?(?:\d[\d.]{0,30}(?:e[-+]?\d{1,3})?|nan|inf))\s*$")
STEP = re.compile(
    r"\bstep +(\d{1,10}) \| loss: ([^\s|]{1,40}) \| lr:? ([^\s|]{1,40}) \| norm: ([^\s|]{1,40}) \| dt: ([\d.]{1,40})ms"
)
VALIDATION = re.compile(r"\bvalidation loss: ([^\s|]{1,40})")
BATCH = re.compile(r"\btotal desired batch size: ([\d,]{1,20})")


class Reader:
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        self._found = collector
        self._next = 0

    def line(self, at: int, text: str) -> None:
        if found := RECORD.search(text):
            self._record(at, *found.groups())
        elif "| loss: " in text and (found := STEP.search(text)):
            self._printed(at, *found.groups())
        elif found := VALIDATION.search(text):
            self._found.evaluation(Evaluation(self._next, number(found[1]), line=at))
        elif found := BATCH.search(text):
            self._found.header(at)
            self._found.facts["tokens_per_step"] = finite(found[1].replace(",", "")) or None

    def _record(self, at: int, n: str, kind: str, loss: str) -> None:
        step = whole(n)
        if step is None:
            return
        if kind == "val":
            self._found.evaluation(Evaluation(step, number(loss), line=at))
        else:
            self._found.step(Step(step, number(loss), line=at))

    def _printed(self, at: int, n: str, loss: str, rate: str, norm: str, milliseconds: str) -> None:
        step, spent = whole(n), finite(milliseconds)
        if step is None:
            return
        self._next = step + 1
        seconds = duration(None if spent is None else spent / 1e3)
        self._found.step(Step(step, number(loss), seconds, number(rate), number(norm), at))

    def end(self) -> None:
        """Nothing is left to do."""
