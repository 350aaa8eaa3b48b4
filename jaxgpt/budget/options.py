"""The planner's command line: its options, and the `Request` that they make."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgpt.budget import devices, query, speed, suggestion
from jaxgpt.budget.calibration import Calibration
from jaxgpt.budget.devices import Device
from jaxgpt.budget.plan import Inputs
from jaxgpt.budget.search import Goal
from jaxgpt.budget.tuned_steps import find_tuned
from jaxgpt.config import Config, sections
from jaxgpt.config.command_line import parse_options, read_config
from jaxgpt.config.fields import OptionGroup, field
from jaxgpt.config.options import Parser, add_options, given_values, option_name, parse_number, read_options
from jaxgpt.errors import ConfigError
from jaxgpt.utils.files import check_report_path, check_writable

DESCRIPTION = (
    "Plans a run before it starts: time and expected loss with their intervals, tokens, epochs, FLOPs, energy, cost "
    "and memory, and what to do instead. Loads no JAX."
)
EXAMPLES = """examples:
  python -m jaxgpt.budget --config fineweb40m --gpu 'RTX 4070'
  python -m jaxgpt.budget --config fineweb40m --hours 20 --write-config tonight.py
  python -m jaxgpt.budget --config mine.py --calibrate runs/mine
"""
USAGE = "[--config FILE] [--gpu NAME] [--lengths N ...] [--unique-tokens N] ..."
DEFAULT_GPU = "RTX 4070"
CPU_SECONDS = 3600.0  # of a run that a machine without a GPU is planned to train itself
DEFAULT_FRACTIONS = (0.3, 0.5, 0.75, 1.0)  # of the config's run, a row each
MAX_STEPS = 10**9
DURATION = {"s": 1, "m": 60, "min": 60, "h": 3600}
GOALS = ("hours", "kwh", "target_loss")
EXCLUSIVE = (
    ("json", "html"),
    ("unique_tokens", "data"),
    ("hours", "kwh"),
    ("hours", "target_loss"),
    ("kwh", "target_loss"),
    ("measure", "calibrate"),
    ("measure", "pilot"),
    ("pilot", "calibrate"),
    *(("lengths", goal) for goal in GOALS),
)


def parse_duration(text: str) -> float | str:
    """`10m`, `90s`, `1.5h` in seconds; a number alone is minutes."""
    match = re.fullmatch(r"([\d.]+)\s*(s|m|min|h)?", text.strip())
    number = match and parse_number(match[1])
    if not match or number is None:
        raise ConfigError("C038", f"--pilot = {text!r}; a duration is needed", "such as 10m, 90s or 1h")
    return float(number * DURATION[match[2] or "m"])


@dataclass(frozen=True, kw_only=True)
class PlanOptions(OptionGroup, title="budget", error_code="C038"):
    """What the plan is for."""

    gpu: str | None = field(
        None,
        "device, in any usual spelling, cpu, list (prints the table), or tflops=…,bandwidth=…,memory=…,watts=… "
        "(default: this machine's GPU; without one its CPU for runs of up to an hour, else RTX 4070)",
        metavar="NAME",
    )
    gpus: int | None = field(
        None,
        "devices of that kind that share each micro-batch (default: mesh.data_parallel times mesh.fsdp, or 1)",
        ge=1,
        le=1024,
    )
    lengths: tuple[int, ...] = field(
        (), "run lengths in steps, a row each (default: 30, 50, 75 and 100 % of the run)", ge=1, le=MAX_STEPS
    )
    unique_tokens: float | None = field(None, "unique tokens, such as 3.68e9", gt=0, metavar="N")
    data: str | None = field(
        None,
        "folder of token shards: its manifest (and audit) gives tokens, corpus and vocabulary; without --config a run "
        "for it is suggested",
        metavar="DIR",
    )
    corpus: str | None = field(
        None, "fineweb, fineweb-edu, openwebtext, openwebtext2, refinedweb, c4 or unknown", metavar="NAME"
    )
    claim: float | None = field(None, "a claimed loss: say what it would take", gt=0, metavar="LOSS")
    price: float = field(0.30, "price of a kWh", ge=0)
    measurements: str | None = field(
        None,
        "results of bench/gpu.py (a JSON file or a folder of them): the newest of the device gives the step time",
        metavar="PATH",
    )


@dataclass(frozen=True, kw_only=True)
class LearningOptions(OptionGroup, title="learning", error_code="C038"):
    """What the plan learns from first."""

    calibrate: str | None = field(
        None, "a run, or another program's log (docs/logs.md): its step time and loss", metavar="RUN_OR_LOG"
    )
    measure: bool = field(False, "train some steps here and use their step time")
    pilot: float | None = field(
        None,
        "train that long on the config's own data and use step time and loss",
        gt=0,
        metavar="10m",
        parse=parse_duration,
    )


@dataclass(frozen=True, kw_only=True)
class GoalOptions(OptionGroup, title="goal", error_code="C038"):
    """Find a run on a GPU for a goal."""

    hours: float | None = field(None, "the best run of that length", gt=0)
    kwh: float | None = field(None, "the best run with that energy", gt=0)
    target_loss: float | None = field(None, "the shortest run with that expected final loss", gt=0)
    write_config: str | None = field(None, "write that run as a config file", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class OutputOptions(OptionGroup, title="output", error_code="C038"):
    """What to print."""

    verbose: bool = field(False, "print memory, step time, the parts of the loss and warnings as well")
    json: bool = field(False, "JSON (docs/budget.md)")
    html: str | None = field(None, "write an HTML page", metavar="FILE")
    actual: str | None = field(None, "compare a run with its plan, and print nothing else", metavar="RUN")


GROUPS = (PlanOptions, LearningOptions, GoalOptions, OutputOptions)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to plan (`inputs`, `goal`), what to learn from first, and how to answer."""

    inputs: Inputs
    goal: Goal | None
    learning: LearningOptions
    output: OutputOptions
    claim: float | None
    html: Path | None
    write_config: Path | None


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line `argv`; every field of the config is an option too."""
    parser = Parser("budget", DESCRIPTION, USAGE, EXAMPLES)
    for group in GROUPS:
        add_options(parser, group)
    return parse_options(parser, argv)


def read(argv: Sequence[str]) -> Request:
    """The request of the command line `argv`; see `build_request`."""
    return build_request(parse(argv))


def build_request(options: argparse.Namespace) -> Request:
    """The request that the options make. Raises `ConfigError` for what is wrong, `DataError` for the data's own."""
    _check_exclusive(options)
    wanted = read_options(GoalOptions, options)
    output = read_options(OutputOptions, options)
    goal = Goal(hours=wanted.hours, kwh=wanted.kwh, target_loss=wanted.target_loss)
    plan_options = read_options(PlanOptions, options)
    learning = read_options(LearningOptions, options)
    return Request(
        inputs=_inputs(options, plan_options, measured=learning.measure or learning.pilot is not None),
        goal=goal if any((wanted.hours, wanted.kwh, wanted.target_loss)) else None,
        learning=learning,
        output=output,
        claim=plan_options.claim,
        html=check_report_path("--html", Path(output.html)) if output.html else None,
        write_config=_new_file("--write-config", wanted.write_config),
    )


def _device(gpu: str | None, *, measured: bool, suits_cpu: bool) -> tuple[Device | None, str]:
    """The device (None: this machine's CPU) and the reason; a measurement describes the machine that it runs on.

    `suits_cpu` tells that a machine without a GPU can train the run; otherwise a common card is assumed.
    """
    name = devices.local_gpu()
    device = devices.lookup(name) if name else None
    if gpu is not None:
        chosen = None if gpu.lower() == devices.CPU else devices.find(gpu)
        if measured and chosen is not None and chosen != device:
            message = f"--measure and --pilot time this machine's {name or 'CPU'}, and --gpu names {chosen.name}"
            raise ConfigError("C039", message, "leave out one of them")
        return chosen, "--gpu"
    if device:
        return device, "this machine's"
    if measured:
        return None, f"this machine's {name or 'CPU'}, which is measured"
    if name:
        return devices.find(DEFAULT_GPU), f"assumed: this machine's {name} is not in the table, see --gpu and --measure"
    if suits_cpu:
        return None, "this machine has no GPU; --gpu NAME plans for one"
    return devices.find(DEFAULT_GPU), "assumed because this machine has no GPU"


def _suits_cpu(options: argparse.Namespace) -> bool:
    """Whether this machine's CPU can train the run: one of at most an hour, or one that is to be suggested for it."""
    if any(option_name(goal) in vars(options) for goal in GOALS):
        return False
    if options.config is None:
        return True
    config = read_config(options)
    seconds = config.run.steps * speed.expected(config, None).seconds
    return config.mesh.device != "gpu" and seconds <= CPU_SECONDS


def _plan_config(options: argparse.Namespace, data: str | None, device: Device | None) -> tuple[Config, str, str]:
    """The config and its name; without one the suggested run for the data, and the command that trains it."""
    suggested = None
    if options.config is None and data is not None:
        suggested = suggestion.suggest_run(Path(data), device)
    if suggested is None:
        config = read_config(options)
        return config, Path(options.config).stem, ""
    changes = {section: given_values(kind, options) for section, kind in sections().items()}
    suggested = replace(suggested, config=suggested.config.replace(changes))
    return suggested.config, suggested.config.run.name, suggested.command()


def _groups(gpus: int, fsdp: int) -> int:
    """The groups of `fsdp` devices among `gpus`. Raises `ConfigError` C038 if some are left over."""
    if gpus % fsdp:
        raise ConfigError("C038", f"--gpus {gpus} is not a multiple of mesh.fsdp = {fsdp}", f"--gpus {fsdp}")
    return gpus // fsdp


def _inputs(options: argparse.Namespace, given: PlanOptions, *, measured: bool) -> Inputs:
    device, device_reason = _device(given.gpu, measured=measured, suits_cpu=_suits_cpu(options))
    config, name, command = _plan_config(options, given.data, device)
    gpus = given.gpus or config.mesh.count
    if given.gpus:
        config = config.replace({"mesh": {"data_parallel": _groups(gpus, config.mesh.fsdp)}})
    calibration = None
    if given.measurements and device:
        from jaxgpt.budget import calibrate  # loads the log readers

        calibration = calibrate.find_measurement(Path(given.measurements), device)
    if calibration is None and not measured:
        calibration = find_tuned(config, device, gpus)
    if calibration is None and device is None and not measured:
        assumed = speed.expected(config, None)
        calibration = Calibration(
            source="an assumption about CPUs", measured=assumed, measured_config=config, is_assumed=True
        )
    corpus, corpus_source = query.config_corpus(config)
    if given.data:
        config, corpus, corpus_source = query.adapt_to_data(config, Path(given.data), vars(options))
    if given.corpus:
        corpus, corpus_source = query.find_corpus(given.corpus), "--corpus"
    steps = config.run.steps
    default_lengths = tuple(sorted({max(1, round(steps * fraction)) for fraction in DEFAULT_FRACTIONS}))
    return Inputs(
        config=config,
        name=name,
        command=command,
        device=device,
        device_reason=device_reason,
        gpus=gpus,
        lengths=given.lengths or default_lengths,
        tokens=query.available_tokens(config, given.unique_tokens, Path(given.data) if given.data else None),
        corpus=corpus,
        corpus_source=corpus_source,
        price=given.price,
        calibration=calibration,
    )


def _check_exclusive(options: argparse.Namespace) -> None:
    """Raises `ConfigError` C039 for options that exclude each other, naming both."""
    given = vars(options)
    for pair in EXCLUSIVE:
        first, second = (option_name(name) for name in pair)
        if first in given and second in given:
            raise ConfigError("C039", f"{first} and {second} exclude each other", "leave one of them out")
    if "--write-config" in given and not any(option_name(goal) in given for goal in GOALS):
        raise ConfigError("C039", "--write-config has nothing to write", "give a goal: --hours, --kwh or --target-loss")


def _new_file(option: str, text: str | None) -> Path | None:
    if text is None:
        return None
    path = check_writable(option, Path(text))
    if path.exists():
        raise ConfigError("C041", f"'{path}' exists already", "choose another name: existing files stay as they are")
    if path.suffix != ".py":
        raise ConfigError("C041", f"{option} '{path}' is not a name for a config file", f"call it {path.stem}.py")
    return path
