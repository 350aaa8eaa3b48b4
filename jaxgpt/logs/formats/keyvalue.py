"""Lines of any program that name a step and a loss: `step=100 loss=3.21`, `iter: 100 | train_loss: 3.2 | lr 3e-4`.

The keys are interpreted by their names, and a note says which were read as what. A progress bar of tqdm with a loss
behind it, `100/1000 [00:40<06:00, 2.50it/s, loss=3.21]`, is such a line too.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from jaxgpt.logs.collector import Collector
from jaxgpt.logs.formats.table import LOSSES, has_step_and_loss
from jaxgpt.logs.history import LogTraits
from jaxgpt.logs.quantities import find_quantity
from jaxgpt.logs.reader import parse_number
from jaxgpt.logs.rows import RowReader, row_step

NAME = "keyvalue"
TRAITS = LogTraits()
NUMBER = r"[-+]?(?:\d[\d,_]{0,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][-+]?\d{1,4})?|[-+]?(?:nan|inf(?:inity)?)\b"
PAIR = re.compile(
    r"(?P<key>[A-Za-z_][\w /.\-]{0,48}?(?:\((?:ms|s)\))?)['\"]?(?:\s{0,4}[:=]\s{0,12}['\"]?|\s{1,12}|\s{0,4}\[)"
    rf"(?P<value>{NUMBER})(?P<unit>\s?(?:ms|s/it|it/s|sec|s)\b|[KMBG]\b)?(?:\s{{0,6}}/\s{{0,6}}(?P<total>\d[\d,]{{0,12}}))?",
    re.IGNORECASE,
)
BAR = re.compile(
    r"(?P<step>\d{1,9})/(?P<total>\d{1,9}) \[(?:\d{1,3}:){1,2}\d\d<[\d:?]{1,12},\s{1,4}"
    r"(?P<rate>[\d.]{1,10})(?P<unit>it/s|s/it)"
)
TEXT = re.compile(
    r"\b(?P<key>optim\w{0,20}|dataset\w{0,5}|opt_type)['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?P<value>[A-Za-z][\w./-]{1,60})"
)
VALIDATION = re.compile(
    r"\b(?:val|valid|validation|eval|evaluation|test) loss (?:at|after) (?:step|iter|iteration) (?P<step>\d{1,10})"
    rf"\W{{1,12}}(?:lm loss value\W{{1,4}})?(?P<loss>{NUMBER})",
    re.IGNORECASE,
)
LOSS_WORDS = ("loss", "bpb", "ppl", "perplexity", "entropy")
AUXILIARY = {"aux", "auxiliary", "balance", "balancing", "z", "router", "moe", "mtp", "kl"}  # losses beside the loss
MULTIPLES = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}
MAX_WORDS = 6  # of a key
MAX_PAIRS = 100  # of one line


class Pair(NamedTuple):
    """A key, its number, and the unit behind it."""

    key: str
    value: float
    unit: str


def matches(line: str) -> bool:
    """Whether the line names a step and a loss."""
    if not names_loss(line):
        return False
    return VALIDATION.search(line) is not None or has_step_and_loss(pair.key for pair in parse_pairs(line))


def names_loss(line: str) -> bool:
    """Whether the line may name a loss, which is faster than to parse it."""
    lowered = line.lower()
    return any(word in lowered for word in LOSS_WORDS)


def has_loss_value(line: str) -> bool:
    """Whether a key of the line is a loss with a number."""
    found = (find_quantity(pair.key) for pair in parse_pairs(line))
    return any(quantity is not None and quantity.name in LOSSES for quantity in found)


def parse_pairs(line: str) -> list[Pair]:
    """The pairs in a line, under the names of quantities where they can be told."""
    pairs: list[Pair] = []
    for match in PAIR.finditer(line):
        value = parse_number(match["value"].replace(",", "").replace("_", ""))
        if value is None or len(pairs) >= MAX_PAIRS:
            continue
        key = resolve_key(match["key"])
        pairs.append(_convert(key, value, (match["unit"] or "").strip()))
        quantity = find_quantity(key)
        total = parse_number((match["total"] or "").replace(",", ""))
        if total is not None and quantity is not None and quantity.name == "step":
            pairs.append(Pair("total_steps", total, ""))
    return pairs + _bar_pairs(line)


def _bar_pairs(line: str) -> list[Pair]:
    """The step, the length and the step time of a progress bar."""
    match = BAR.search(line)
    if match is None:
        return []
    rate = parse_number(match["rate"]) or 0.0
    seconds = rate if match["unit"] == "s/it" else 1 / rate if rate > 0 else 0.0
    pairs = [Pair("step", float(match["step"]), ""), Pair("total_steps", float(match["total"]), "")]
    return [*pairs, Pair("seconds", seconds, "s")]


@lru_cache(maxsize=4096)
def resolve_key(key: str) -> str:
    """`key` without words before it that do not belong to it, such as a logger's name, if the rest is a quantity."""
    key = key.rsplit(" - ", 1)[-1]
    words = key.split()
    for first in range(min(len(words), MAX_WORDS)):
        name = " ".join(words[first:])
        quantity = find_quantity(name)
        if quantity is not None and _may_precede(words[:first], words[first:], quantity.name):
            return name
    return key


def _may_precede(before: list[str], name: list[str], quantity: str) -> bool:
    """Whether the words before a name do not change it: "aux loss" is not the loss, "trainer val loss" is one."""
    if quantity == "step" or all(not word.isalpha() or word.isupper() for word in before):
        return True
    return len(name) > 1 and not any(word.lower() in AUXILIARY for word in before)


def _convert(key: str, value: float, unit: str) -> Pair:
    """The pair with its value in the unit that its quantity has."""
    quantity = find_quantity(key)
    name = quantity.name if quantity is not None else ""
    if unit.upper() in MULTIPLES and name in ("step", "tokens", "seconds", "milliseconds"):
        return Pair(key, value * MULTIPLES[unit.upper()], "")
    is_duration = unit in ("ms", "s", "sec") and name in ("seconds", "time")
    if is_duration:
        return Pair("seconds", value / 1e3 if unit == "ms" else value, "s")
    if unit in ("it/s", "s/it") and value > 0:
        return Pair("seconds", value if unit == "s/it" else 1 / value, "s")
    return Pair(key, value, unit)


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
