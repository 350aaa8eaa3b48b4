"""Key-value pairs in a line of text: `step=100`, `Train loss: 3.2`, `iter 100/1000`, `dt 250ms`, progress bars."""

import re
from functools import lru_cache
from typing import NamedTuple

from jaxgpt.logs.quantities import find_quantity
from jaxgpt.logs.reader import MULTIPLES, parse_multiple, parse_number

NUMBER = r"[-+]?(?:\d[\d,_]{0,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][-+]?\d{1,4})?|[-+]?(?:nan|inf(?:inity)?)\b"
COUNT = r"\d[\d,]{0,12}(?:\.\d{1,6})?(?:[KMBG]\b)?"
SIGN = r"(?:\s{0,4}[:=]\s{0,12}['\"]?(?:tensor\()?|\s{1,12}|\s{0,4}\[)"
PAIR = re.compile(
    rf"(?<!\w)(?P<key>[A-Za-z_][\w /.\-]{{0,48}}?(?:\((?:ms|s)\))?)['\"]?{SIGN}(?P<value>{NUMBER})"
    rf"(?P<unit>\s?(?:ms|s/it|it/s|sec|s)\b|[KMBG]\b)?(?:\s{{0,6}}/\s{{0,6}}(?P<total>{COUNT}))?",
    re.IGNORECASE,
)
# A progress bar, a line that begins with the step and the length, and a speed: none of them has a key.
BAR = re.compile(rf"(?P<step>{COUNT})/(?P<total>{COUNT}) \[(?:\d{{1,3}}:){{1,2}}\d\d<", re.IGNORECASE)
BEGINNING = re.compile(rf"^\s{{0,8}}\[?(?P<step>{COUNT})/(?P<total>{COUNT})\]?(?=[\s|:,])", re.IGNORECASE)
SPEED = re.compile(r"(?P<value>\d[\d.]{0,12}) ?(?P<unit>ms|s|it|steps?|iters?)/(?P<per>step|iter|it|s)\b")
# Words before a loss that make it one of the validation: "valid | step 100 | loss 3.3", but not "val: 3.3 | loss 3.2".
SPLIT = re.compile(
    r"(?:^|[\s\[|(])(?:val|valid|validation|eval|evaluation|test|dev)\b\s{0,2}[:|\])-](?!\s{0,4}[-+.\d])", re.IGNORECASE
)
AUXILIARY = {"aux", "auxiliary", "balance", "balancing", "z", "router", "moe", "mtp", "kl"}  # losses beside the loss
COUNTS_AND_TIMES = ("step", "tokens", "seconds", "milliseconds")
MAX_WORDS = 6  # of a key
MAX_PAIRS = 100  # of one line
MAX_CHARS = 8192  # of a line that are read


class Pair(NamedTuple):
    """A key and its number, in the unit that its quantity has."""

    key: str
    value: float


def parse_pairs(line: str) -> list[Pair]:
    """The pairs in a line, under the names of quantities where they can be told."""
    line = line[:MAX_CHARS]
    pairs: list[Pair] = []
    split = SPLIT.search(line)
    for match in PAIR.finditer(line):
        value = parse_number(match["value"].replace(",", "").replace("_", ""))
        if value is None or len(pairs) >= MAX_PAIRS:
            continue
        key = resolve_key(match["key"])
        quantity = find_quantity(key)
        name = quantity.name if quantity is not None else ""
        if name == "train" and "train" not in key.lower() and split and split.start() <= match.start():
            key = f"val {key}"
        pairs.append(_in_units_of(name, key, value, (match["unit"] or "").strip()))
        if match["total"] and name == "step":
            pairs.append(Pair("total_steps", _count(match["total"])))
    return pairs + _pairs_without_keys(line)


def _pairs_without_keys(line: str) -> list[Pair]:
    """The step and the length of a progress bar, or of the beginning of a line, and the time of a step."""
    pairs = []
    if match := BAR.search(line) or BEGINNING.search(line):
        pairs += [Pair("step", _count(match["step"])), Pair("total_steps", _count(match["total"]))]
    if match := SPEED.search(line):
        seconds = _seconds_per_step(parse_number(match["value"]) or 0.0, match["unit"], match["per"])
        pairs += [Pair("seconds", seconds)] if seconds else []
    return pairs


def _count(text: str) -> float:
    """The count that `COUNT` matched."""
    return parse_multiple(text.replace(",", "")) or 0.0


def _seconds_per_step(value: float, unit: str, per: str) -> float:
    """Of a time per step, or of steps per second; 0 for anything else."""
    if per == "s":
        return 1 / value if unit not in ("ms", "s") and value > 0 else 0.0
    return {"ms": value / 1e3, "s": value}.get(unit, 0.0)


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


def _in_units_of(quantity: str, key: str, value: float, unit: str) -> Pair:
    """The pair with its value in the unit that its quantity has."""
    if unit.lower() in MULTIPLES and quantity in COUNTS_AND_TIMES:
        return Pair(key, value * MULTIPLES[unit.lower()])
    if unit in ("ms", "s", "sec") and quantity in ("seconds", "time"):
        return Pair("seconds", value / 1e3 if unit == "ms" else value)
    return Pair(key, value)
