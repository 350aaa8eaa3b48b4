"""What a log does not say, given on the command line: the options of `diagnose` that describe the run."""

import argparse
from dataclasses import dataclass
from typing import Any

from jaxgpt.budget.options import number
from jaxgpt.errors import ConfigError

SCHEDULES = ("cosine", "linear", "trapezoid", "wsd", "constant")
MOST_STEPS = 10_000_000  # of a run that is looked at step by step


@dataclass(frozen=True, kw_only=True)
class Options:
    """Facts of the run as its reader gives them; None is not given. Rates as they are, sizes in tokens or steps."""

    schedule: str | None = None
    warmup: int | None = None
    total_steps: int | None = None
    decay_steps: int | None = None
    peak_lr: float | None = None
    min_lr: float | None = None
    batch_tokens: float | None = None
    eval_tokens: float | None = None
    unique_tokens: float | None = None
    params: float | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    corpus: str | None = None
    config: str | None = None
    gpu: str | None = None
    baseline: str | None = None
    target_step_time: float | None = None  # per step
    target_loss: float | None = None  # nats per token
    now: float | None = None  # seconds since 1970

    def __post_init__(self) -> None:
        """Raises `ConfigError` C049 to C052 for options that contradict each other."""
        _check(self)


COUNTS = {"warmup": 0.0, "total_steps": 1.0, "decay_steps": 1.0}  # whole numbers, and the least of each
RANGES = {  # what each of the other numbers can be
    "peak_lr": (1e-12, 10.0),
    "batch_tokens": (1.0, 1e12),
    "eval_tokens": (1.0, 1e15),
    "unique_tokens": (100.0, 1e18),
    "params": (1.0, 1e15),
    "target_step_time": (1e-6, 86_400.0),
    "target_loss": (1e-6, 1e3),
    "min_lr": (0.0, 10.0),
    "weight_decay": (0.0, 1e3),
    "dropout": (0.0, 1.0),
    "now": (0.0, 2.5e11),  # the year 9892
}

HELP: dict[str, tuple[str, str]] = {
    "schedule": ("NAME", "how the learning rate goes: cosine, linear, trapezoid (wsd to 0), wsd or constant"),
    "warmup": ("N", "steps of linear warmup"),
    "total_steps": ("N", "updates of the whole run"),
    "decay_steps": ("N", "cosine, linear: the step of the last rate; wsd, trapezoid: the length of the fall"),
    "peak_lr": ("X", "highest learning rate"),
    "min_lr": ("X", "learning rate at the end of the decay"),
    "batch_tokens": ("N", "tokens of an update, over all devices and micro-batches, such as 524288 or 0.5M"),
    "eval_tokens": ("N", "tokens of an evaluation"),
    "unique_tokens": ("N", "different tokens at hand, such as 3.68e9"),
    "params": ("N", "parameters, a tied head once and learned positions left out, such as 124M"),
    "weight_decay": ("X", "weight decay"),
    "dropout": ("X", "dropout"),
    "corpus": ("NAME", "fineweb, fineweb-edu, openwebtext, openwebtext2, refinedweb, c4 or unknown"),
    "config": ("FILE", "a config file of jaxgpt, or the name of one that comes with it, for what neither says"),
    "gpu": ("NAME", "the device that the run is on, in any usual spelling"),
    "baseline": ("RUN|LOG", "a clean run to hold the losses against, where the law says nothing of runs like these"),
    "target_step_time": ("S", "seconds per step that are hoped for, to be held against the device's roofline"),
    "target_loss": ("LOSS", "a final loss that is claimed or hoped for, to be held against the forecast"),
    "now": ("SECONDS", "the time at which the log ends, in seconds since 1970 (default: the file's, or the clock's)"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options, as a group of their own."""
    add = parser.add_argument_group("the run", "What the log does not say; what is given here goes first.").add_argument
    for name, (metavar, help) in HELP.items():
        add(_flag(name), metavar=metavar, help=help)


def of(namespace: argparse.Namespace) -> Options:
    """The options that were given. Raises `ConfigError` C048 for nonsense, C049 to C052 for contradictions."""
    given = {name: value for name in HELP if (value := getattr(namespace, name, None)) is not None}
    return Options(**{name: _value(name, str(text)) for name, text in given.items()})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value(name: str, text: str) -> Any:
    if name == "schedule":
        if text.lower() not in SCHEDULES:
            raise ConfigError("C048", f"--schedule {text!r} is not known", f"one of: {', '.join(SCHEDULES)}")
        return text.lower()
    if name in COUNTS:
        value = number(_flag(name), text, least=COUNTS[name], code="C048")
        if value != int(value) or value > MOST_STEPS:
            raise ConfigError("C048", f"{_flag(name)} {text}; a whole number up to {MOST_STEPS:,} is needed")
        return int(value)
    if name not in RANGES:
        return text
    least, most = RANGES[name]
    value = number(_flag(name), text, code="C048")
    if not least <= value <= most:
        raise ConfigError("C048", f"{_flag(name)} {text}; must be {least:g} to {most:g}", HELP[name][1])
    return value


def _check(options: Options) -> None:
    total, warmup, fall = options.total_steps, options.warmup or 0, options.decay_steps
    if total is not None and warmup > total:
        raise ConfigError("C050", f"--warmup {warmup} is longer than the run (--total-steps {total})", "shorten one")
    trapezoid = options.schedule in ("wsd", "trapezoid")
    if total is not None and trapezoid and warmup + (fall or 0) > total:
        what = f"--warmup and --decay-steps are {warmup + (fall or 0)} steps together; --total-steps {total}"
        raise ConfigError("C050", what, "the fall of a wsd or trapezoid is as long as --decay-steps says")
    if fall is not None and options.schedule in ("cosine", "linear") and fall < warmup:
        raise ConfigError("C050", f"--decay-steps {fall} ends before --warmup {warmup}", "it counts from the start")
    low, peak = options.min_lr, options.peak_lr
    if low is not None and peak is not None and low > peak:
        raise ConfigError("C051", f"--min-lr {low:g} is above --peak-lr {peak:g}", f"--min-lr {peak / 10:g}")
    if options.schedule == "constant" and (fall is not None or low is not None):
        word = "--decay-steps" if fall is not None else "--min-lr"
        raise ConfigError("C052", f"{word} says how the rate falls; --schedule constant does not fall", "leave one out")
    if options.schedule == "trapezoid" and low:
        raise ConfigError("C052", f"--min-lr {low:g}; a trapezoid falls to 0", "--schedule wsd falls to --min-lr")
    if options.dropout is not None and options.dropout >= 1:
        raise ConfigError("C048", f"--dropout {options.dropout:g}; must be below 1")
