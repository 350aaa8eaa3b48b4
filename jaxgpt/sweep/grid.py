"""The trials of a sweep: a run for each combination of the varied fields' values, and for each seed."""

import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from jaxgpt.config import Config, sections
from jaxgpt.config.command_line import field_names
from jaxgpt.config.fields import field_types
from jaxgpt.config.options import format_value, parse_number, parse_value
from jaxgpt.errors import ConfigError, nearest

RANGE = re.compile(r"([^.].*)\.\.(.+):(\d+)")
VARY_FORM = "--vary optim.learning_rate=1e-3,3e-3,1e-2, or a range with logarithmic steps: 1e-3..1e-2:5"
OWN_FIELDS = ("run.name", "run.dir")  # those of a trial are the sweep's
MAX_RANGE = 1000
NAME_LENGTH = 80  # characters of the values in a trial's name
LEARNING_RATE, MIN_LR = "optim.learning_rate", "optim.min_lr"


class Varied(NamedTuple):
    """A config field such as `optim.learning_rate`, and the values that it takes."""

    label: str
    values: tuple[Any, ...]


class Trial(NamedTuple):
    """A run of the sweep: its values of the varied fields in their order, and its config."""

    values: tuple[Any, ...]
    config: Config

    @property
    def name(self) -> str:
        return self.config.run.name


def parse_vary(text: str) -> Varied:
    """Reads `FIELD=VALUE,VALUE` or `FIELD=LOW..HIGH:N`; raises `ConfigError` C005 or C070.

    The field has its own name, nanoGPT's, or its bare name.
    """
    name, _, words = text.partition("=")
    names = field_names()
    label = names.get(name.lstrip("-").replace("-", "_"))
    if label is None:
        close = nearest(name, names, similarity=0.5)
        raise ConfigError(
            "C005", f"unknown field {name!r} in --vary {text}", f"did you mean {close!r}?" if close else ""
        )
    if label in OWN_FIELDS:
        raise ConfigError("C070", f"--vary {text}: every trial has a name of its own", "--name NAME names the sweep")
    section, field = label.split(".")
    described, kind = field_types(sections()[section])[field]
    is_tuple = get_origin(kind) is tuple
    if found := RANGE.fullmatch(words):
        values = _range(text, kind is int, *found.groups())
    else:
        parse = described.metadata["parse"]
        values = [parse_value([word] if is_tuple else word, kind, parse) for word in words.split(",") if word]
    if not values:
        raise ConfigError("C070", f"--vary {text} has no values", VARY_FORM)
    return Varied(label, tuple(dict.fromkeys(values)))


def _range(text: str, are_whole: bool, first: str, last: str, count: str) -> list[Any]:
    """`count` numbers from `first` to `last`, evenly spaced in the logarithm, with three digits between the ends."""
    low, high, number = parse_number(first, 0.0), parse_number(last, 0.0), int(count)
    if not 0 < low < high or not 2 <= number <= MAX_RANGE:
        message = f"--vary {text}: a range needs 0 < LOW < HIGH and 2 to {MAX_RANGE} values"
        raise ConfigError("C070", message, VARY_FORM)
    between = [float(f"{low * (high / low) ** (n / (number - 1)):.3g}") for n in range(1, number - 1)]
    values = [low, *between, high]
    return [round(value) for value in values] if are_whole else values


def make_trials(
    base: Config, varied: Sequence[Varied], seeds: int, folder: Path, *, scale_min_lr: bool = True
) -> list[Trial]:
    """Every combination of the values with each of `seeds` seeds, as runs in `folder`.

    They print no samples. Seed k of a combination adds k to `run.seed` and `data.seed`, so that combinations are
    compared on the same data. With `scale_min_lr`, a varied learning rate keeps the base's ratio of final to peak rate.
    Raises the config's own `ConfigError` for a combination that cannot be trained.
    """
    labels = [field.label for field in varied]
    trials = []
    for values in itertools.product(*(field.values for field in varied)):
        changes: dict[str, Any] = dict(zip(labels, values, strict=True))
        rate = changes.get(LEARNING_RATE)
        if scale_min_lr and MIN_LR not in changes and isinstance(rate, float) and base.optim.learning_rate:
            changes[MIN_LR] = float(f"{base.optim.min_lr * rate / base.optim.learning_rate:.6g}")
        config = base.replace(nest(changes))
        for number in range(seeds):
            seed = config.run.seed + number
            run = {"name": _trial_name(labels, values, seed), "dir": str(folder), "seed": seed, "sample_prompt": ""}
            trials.append(Trial(values, config.replace({"run": run, "data": {"seed": config.data.seed + number}})))
    return trials


def nest(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"section.field": value}` as `Config.replace` takes it."""
    nested: dict[str, dict[str, Any]] = {}
    for label, value in changes.items():
        section, field = label.split(".")
        nested.setdefault(section, {})[field] = value
    return nested


def describe(labels: Sequence[str], values: Sequence[Any]) -> str:
    """`optim.learning_rate 0.003, optim.optimizer muon`."""
    return ", ".join(f"{label} {' '.join(format_value(value))}" for label, value in zip(labels, values, strict=True))


def _trial_name(labels: Sequence[str], values: Sequence[Any], seed: int) -> str:
    """A folder's name from the values; one that loses characters of them gets a hash of all."""
    parts = [f"{label.split('.')[1]}-{' '.join(format_value(value))}" for label, value in zip(labels, values)]
    exact = "-".join(parts)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", exact)[:NAME_LENGTH]
    if name != exact:
        name += f"-{hashlib.sha256(exact.encode()).hexdigest()[:6]}"
    return f"{name}-seed{seed}"
