"""Lines of any program that name a step and a loss: `step=100 loss=3.21`, `iter: 100 | train_loss: 3.2 | lr 3e-4`.

The keys are interpreted by their names, and a note says which were read as what. A progress bar of tqdm with a loss
behind it, `100/1000 [00:40<06:00, 2.50it/s, loss=3.21]`, is such a line too.
"""

import re

from jaxgpt.logs.collector import Collector
from jaxgpt.logs.formats.table import LOSSES, has_step_and_loss
from jaxgpt.logs.history import LogTraits
from jaxgpt.logs.pairs import NUMBER, parse_pairs
from jaxgpt.logs.quantities import find_quantity
from jaxgpt.logs.reader import parse_timestamp
from jaxgpt.logs.rows import RowReader, row_step

NAME = "keyvalue"
TRAITS = LogTraits()
TEXT = re.compile(
    r"\b(?P<key>optim\w{0,20}|dataset\w{0,5}|opt_type)['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?P<value>[A-Za-z][\w./-]{1,60})"
)
VALIDATION = re.compile(
    r"\b(?:val|valid|validation|eval|evaluation|test) loss (?:at|after) (?:step|iter|iteration) (?P<step>\d{1,10})"
    rf"\W{{1,12}}(?:lm loss value\W{{1,4}})?(?P<loss>{NUMBER})",
    re.IGNORECASE,
)
CLOCKS = {"seconds", "milliseconds", "time", "elapsed"}  # without these, a line's timestamp gives the time of a step
LOSS_WORDS = ("loss", "bpb", "ppl", "perplexity", "entropy")


def matches(line: str) -> bool:
    """Whether the line names a step and a loss."""
    if not names_loss(line):
        return False
    return VALIDATION.search(line) is not None or has_step_and_loss(pair.key for pair in parse_pairs(line))


def names_loss(line: str) -> bool:
    """Whether the line may name a loss, which is faster than to parse it."""
    lowered = line.lower()
    return any(word in lowered for word in LOSS_WORDS) or ("train" in lowered and "val" in lowered)


def has_loss_value(line: str) -> bool:
    """Whether a key of the line is a loss with a number."""
    quantities = (find_quantity(pair.key) for pair in parse_pairs(line))
    return any(quantity is not None and quantity.name in LOSSES for quantity in quantities)


class Reader(RowReader):
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._last_step: int | None = None

    def line(self, line_no: int, text: str) -> None:
        """Reads one line. A validation loss without a step belongs to the step before it."""
        if match := VALIDATION.search(text):
            self._add_evaluation(line_no, match)
            return
        pairs = parse_pairs(text) if any(char.isdigit() for char in text) else []
        used = pairs if names_loss(text) else []
        row = self._select(tuple(pair.key for pair in used), [pair.value for pair in used])
        elapsed = parse_timestamp(text) if row and not row.keys() & CLOCKS else None
        row |= {} if elapsed is None else {"elapsed": elapsed}
        step = row_step(row)
        if step is None and "val" in row and "train" not in row:
            step = self._last_step
        if self._add_row(line_no, row, step):
            self._last_step = step
        elif row.keys() & LOSSES:
            self._log.drop(line_no)
        elif self._log.empty:
            self._texts(text)
            self._read_facts((pair.key, pair.value) for pair in pairs)

    def _texts(self, text: str) -> None:
        self._read_facts((match["key"], match["value"]) for match in TEXT.finditer(text))

    def end(self) -> None:
        """Adds the facts of the run and says which keys were read."""
        super().end()
        self._note_names()
