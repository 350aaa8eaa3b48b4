"""The command line of the planner, read into `Inputs` and what is to be done with them."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.budget import devices, query
from jaxgpt.budget.plan import Inputs
from jaxgpt.budget.search import Goal
from jaxgpt.config import Config
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.files import find_config
from jaxgpt.config.options import Parser
from jaxgpt.errors import ConfigError
from jaxgpt.utils import html as report

DEFAULT_GPU = "RTX 4070"
MOST_ITERS = 10**9
DURATION = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked (`inputs`, `goal`), what to learn from first, and how to answer."""

    inputs: Inputs
    goal: Goal | None
    calibrate: str | None
    measure: bool
    pilot: float | None
    actual: str | None
    claims: bool
    claim: float | None
    json: bool
    html: Path | None
    write_config: Path | None


def add_options(parser: Parser) -> None:
    """The planner's own options; every field of the config is one too."""
    add = parser.add_argument_group("budget", "What the plan is for.").add_argument
    add(
        "--gpu",
        metavar="NAME",
        help="the device, in any usual spelling, or cpu (default: this machine's, else RTX 4070)",
    )
    add(
        "--iters",
        metavar="N",
        nargs="+",
        help="lengths in steps, a row each (default: 30, 50, 75 and 100 %% of the run)",
    )
    add("--unique-tokens", metavar="N", help="different tokens at hand, such as 3.68e9")
    add("--data", metavar="DIR", help="a folder of token shards whose manifest (and audit) says how many there are")
    add("--corpus", metavar="NAME", help="fineweb, fineweb-edu, openwebtext, openwebtext2, refinedweb, c4 or unknown")
    add("--claim", metavar="LOSS", help="a loss that somebody promises: what it would need")
    add("--price", metavar="X", help="of a kWh (default: 0.30)")
    learn = parser.add_argument_group("learning", "What the plan is to learn from first.").add_argument
    learn(
        "--calibrate",
        metavar="RUN_OR_LOG",
        help="a run of ours or another program's log (docs/logs.md): its pace and loss",
    )
    learn("--measure", action="store_true", help="run some steps here and take their pace")
    learn("--pilot", metavar="10m", help="train that long on the config's own data and take pace and loss")
    turn = parser.add_argument_group("the other way round", "Choose a run for a goal.").add_argument
    turn("--hours", metavar="X", help="the best run of that length")
    turn("--kwh", metavar="X", help="the best run of that energy")
    turn("--target-loss", metavar="X", help="the shortest run that is expected to end there")
    turn("--write-config", metavar="FILE", help="write the chosen run as a config file")
    answer = parser.add_argument_group("answer", "How to say it.").add_argument
    answer("--json", action="store_true", help="as JSON (docs/budget.md)")
    answer("--html", metavar="FILE", help="as a page")
    answer("--compare-claims", action="store_true", help="show earlier claims about the reference run beside the law")
    answer("--actual", metavar="RUN", help="a run's plan against what it has done, and nothing else")


def read(argv: Sequence[str]) -> Request:
    """The request that `argv` spells. Raises `ConfigError` for what is nonsense, `DataError` for the data's own."""
    parser = Parser("budget", DESCRIPTION, "[--config FILE] [--gpu NAME] [--iters N ...] [--unique-tokens N] ...")
    add_options(parser)
    config, options = parse_config(parser, argv)
    _contradictions(options)
    goal = _goal(options)
    name: str = options.config
    text = find_config(name).read_text(encoding="utf-8")
    unique = _given("--unique-tokens", options.unique_tokens)
    folder = Path(options.data) if options.data else None
    gpu, why = (options.gpu, "--gpu") if options.gpu is not None else _local_device()
    corpus, corpus_why = query.config_corpus(config, text)
    if options.corpus:
        corpus, corpus_why = query.find_corpus(options.corpus), "--corpus"
    inputs = Inputs(
        config=config,
        name=Path(name).stem,
        text=text,
        device=None if gpu.lower() == devices.CPU else devices.find(gpu),
        device_why=why,
        iters=_iters(options.iters, config),
        tokens=query.available_tokens(config, unique, folder, text),
        corpus=corpus,
        corpus_why=corpus_why,
        price=number("--price", "0.30" if options.price is None else options.price, least=0),
    )
    return Request(
        inputs=inputs,
        goal=goal,
        calibrate=options.calibrate,
        measure=options.measure,
        pilot=None if options.pilot is None else duration(options.pilot),
        actual=options.actual,
        claims=options.compare_claims,
        claim=_given("--claim", options.claim),
        json=options.json,
        html=report.place("--html", options.html),
        write_config=_new_file("--write-config", options.write_config),
    )


DESCRIPTION = (
    "Plans a run before it starts: tokens, epochs, FLOPs, time, energy, cost, memory and expected loss, each with its "
    "interval, and what to do instead. Loads no JAX."
)


def number(
    option: str, text: str, *, least: float | None = None, above: float | None = None, code: str = "C038"
) -> float:
    """The finite number that an option's text spells (`3.68e9`, `3.68B`), in its range; else `ConfigError` `code`."""
    scale = query.SUFFIX.get(text.strip()[-1:].lower(), 1.0)
    try:
        value = float(text.replace(",", "") if scale == 1.0 else text.strip()[:-1].replace(",", "")) * scale
    except ValueError:
        raise ConfigError(code, f"{option} {text!r} is not a number") from None
    if not math.isfinite(value):
        raise ConfigError(code, f"{option} {text} is not finite")
    if least is not None and value < least:
        raise ConfigError(code, f"{option} {text}; must be {least:g} or more")
    if above is not None and value <= above:
        raise ConfigError(code, f"{option} {text}; must be above {above:g}")
    return value


def _given(option: str, text: str | None) -> float | None:
    """A number above 0, or None where the option is not given."""
    return None if text is None else number(option, text, above=0)


def duration(text: str) -> float:
    """`10m`, `90s`, `1.5h` in seconds; a bare number is minutes."""
    found = re.fullmatch(r"([\d.]+)\s*(s|m|min|h)?", text.strip())
    if not found:
        raise ConfigError("C038", f"--pilot {text!r} is no duration", "such as 10m, 90s or 1h")
    return number("--pilot", found[1], above=0) * DURATION[found[2] or "m"]


def _iters(texts: list[str] | None, config: Config) -> tuple[int, ...]:
    if texts is None:
        steps = config.run.steps
        return tuple(sorted({max(1, round(steps * share)) for share in (0.3, 0.5, 0.75, 1.0)}))
    found = []
    for text in (part for word in texts for part in word.split() or [""]):
        value = number("--iters", text, least=1)
        if value != int(value) or value > MOST_ITERS:
            raise ConfigError("C038", f"--iters {text}; a whole number up to {MOST_ITERS:,} is needed")
        found.append(int(value))
    return tuple(found)


def _local_device() -> tuple[str, str]:
    """This machine's GPU where the table has it; else the device of the reference run."""
    name = devices.local_gpu()
    known = name and devices.lookup(name)
    if known:
        return known.name, "this machine's"
    if name:
        return DEFAULT_GPU, f"assumed: this machine's {name} is not in the table, see --gpu and --measure"
    return DEFAULT_GPU, "assumed: no GPU is here"


def _goal(options: argparse.Namespace) -> Goal | None:
    given = {name: getattr(options, name) for name in ("hours", "kwh", "target_loss")}
    values = {name: _given("--" + name.replace("_", "-"), text) for name, text in given.items()}
    return Goal(**values) if any(values.values()) else None


def _contradictions(options: argparse.Namespace) -> None:
    """Raises `ConfigError` C039 for options that exclude each other, naming both."""
    given = {name for name, value in vars(options).items() if value not in (None, False)}
    pairs = [
        ("json", "html"),
        ("unique_tokens", "data"),
        ("hours", "kwh"),
        ("hours", "target_loss"),
        ("kwh", "target_loss"),
        ("measure", "calibrate"),
        ("measure", "pilot"),
        ("pilot", "calibrate"),
        *(("iters", name) for name in ("hours", "kwh", "target_loss")),
    ]
    for first, second in pairs:
        if {first, second} <= given:
            words = [f"--{name.replace('_', '-')}" for name in (first, second)]
            raise ConfigError("C039", f"{words[0]} and {words[1]} exclude each other", "leave one of them out")
    if "write_config" in given and not given & {"hours", "kwh", "target_loss"}:
        raise ConfigError("C039", "--write-config has nothing to write", "give a goal: --hours, --kwh or --target-loss")


def _new_file(option: str, text: str | None) -> Path | None:
    path = report.writable(option, text)
    if path is not None and path.exists():
        raise ConfigError("C041", f"'{path}' exists already", "choose another name: nothing of yours is overwritten")
    if path is not None and path.suffix != ".py":
        raise ConfigError("C041", f"'{path}' is to be a config file", f"call it {path.stem}.py")
    return path
