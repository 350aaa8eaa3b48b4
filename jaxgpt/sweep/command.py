"""The command `jaxgpt sweep`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jaxgpt.budget import devices, plan, preflight, speed
from jaxgpt.config import Config
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.files import load_config
from jaxgpt.config.options import Parser, integer
from jaxgpt.data.dataset import open_folder
from jaxgpt.errors import ConfigError, NoShardsError, printable
from jaxgpt.sweep.folder import SweepFolder
from jaxgpt.sweep.grid import MIN_LR, VARY_FORM, Trial, make_trials, parse_vary
from jaxgpt.sweep.report import build_report
from jaxgpt.sweep.results import ranked_points
from jaxgpt.sweep.runner import Runner
from jaxgpt.sweep.transfer import transfer_section
from jaxgpt.utils.files import write_text
from jaxgpt.utils.formatting import format_rough_duration, pluralize
from jaxgpt.utils.report import html_page, print_report, to_json

DESCRIPTION = """Trains a config with several values of its fields and reports which is best, with a table and figures.

Each trial is a run in runs/NAME/TRIAL. The same command continues a sweep that was stopped, and may add
values and seeds. A trial whose forecast is worse than the best result so far is stopped early (docs/sweep.md).
"""
EXAMPLES = """examples:
  python -m jaxgpt.sweep --config books --vary optim.learning_rate=1e-3,3e-3,1e-2
  python -m jaxgpt.sweep --config books --vary optim.learning_rate=1e-3..1e-2:5 --vary optim.optimizer=adamw,muon
  python -m jaxgpt.sweep --config quickstart --vary optim.learning_rate=3e-3,7e-3 --seeds 3 --run.steps 300
"""
USAGE = "[--config FILE] --vary FIELD=VALUES ... [--SECTION.FIELD VALUE ...]"
MAX_TRIALS = 64  # of a sweep that starts without a confirmation
MAX_SECONDS = 86_400.0
START_SECONDS = 15.0  # of a small trial, whose programs the first one has compiled


def make_parser() -> Parser:
    """The command's own options; `parse_config` adds those of the config, which hold for all trials."""
    parser = Parser("sweep", DESCRIPTION, USAGE, EXAMPLES)
    parser.add_argument(
        "--vary", action="append", default=[], metavar="FIELD=VALUES", help="values of a field: A,B,C or LOW..HIGH:N"
    )
    parser.add_argument("--seeds", type=integer, default=1, metavar="N", help="repeat each setting with N seeds")
    parser.add_argument(
        "--workers", type=integer, default=1, metavar="N", help="trials at a time; they share the cores"
    )
    parser.add_argument("--name", help="the sweep's name; its folder is run.dir/NAME (default: CONFIG-sweep)")
    parser.add_argument("--no-early-stop", action="store_true", help="train every trial to its end")
    parser.add_argument("--transfer-to", metavar="CONFIG", help="derive the learning rate for a larger config")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--yes", action="store_true", help="start even if it has many trials or takes more than a day")
    return parser


def main(argv: Sequence[str]) -> None:
    """Runs the sweep that the command line describes. Raises `ConfigError` C045 if no trial finishes."""
    base, options = parse_config(make_parser(), argv)
    if not options.vary:
        raise ConfigError("C070", "nothing to vary", VARY_FORM)
    varied = [parse_vary(text) for text in options.vary]
    if len(dict(varied)) < len(varied):
        raise ConfigError("C070", "two --vary name the same field", "give all its values in one")
    _check_counts(base, options)
    target = load_config(options.transfer_to) if options.transfer_to else None
    name = replace(base.run, name=options.name or f"{base.run.name[:90]}-sweep").name  # checked as a run's name is
    path = Path(base.run.dir) / name
    trials = make_trials(base, varied, options.seeds, path, scale_min_lr=MIN_LR not in vars(options))
    seconds = _check_cost(trials, confirmed=options.yes)
    say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)

    folder = SweepFolder(path, base, varied, options.seeds)
    with folder.open():
        runner = Runner(folder, trials, seconds, options.workers, say)
        runner.read_outcomes(early_stop=not options.no_early_stop)
        runner.announce(name)
        runner.run(early_stop=not options.no_early_stop, options=["--yes"] if options.yes else [])
        points = ranked_points(trials, runner.outcomes)
        if points[0].loss is None:
            raise ConfigError("C045", f"no setting finished; the first one: {points[0].note}", f"see {path}")
        report = build_report(name, options.config, varied, points)
        if target:
            section = transfer_section(points[0].trials[0].config, target, options.transfer_to)
            report = replace(report, sections=(*report.sections, section))
        write_text(folder.report_file, html_page(report))
    if options.json:
        print(json.dumps(to_json(report), indent=2))
        return
    print_report(report)
    print(f"\nfigures: {printable(str(folder.report_file))}")


def _check_counts(base: Config, options: argparse.Namespace) -> None:
    """Raises `ConfigError` C070 for a number of seeds or workers that cannot be used."""
    if options.seeds < 1:
        raise ConfigError("C070", f"--seeds {options.seeds}; at least 1 is needed")
    cores = count_cores()
    if not 1 <= options.workers <= cores:
        raise ConfigError("C070", f"--workers {options.workers}; this process has {pluralize(cores, 'core')}")
    if options.workers > 1 and _gpu(base):
        message = f"--workers {options.workers}: trials on one GPU run one at a time"
        raise ConfigError("C070", message, "leave it out, or --mesh.device cpu")


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu(config: Config) -> str | None:
    """The name of the GPU that trials use; None for a CPU."""
    return devices.local_gpu() if config.mesh.device != "cpu" else None


def _check_cost(trials: Sequence[Trial], *, confirmed: bool) -> dict[str, float]:
    """The expected seconds of each trial by name, on this machine; none on a GPU that is not in the planner's table.

    Unless `confirmed`, raises `ConfigError` C071 for a sweep of more than 64 trials or a day, and C066 for a trial that
    `train` would refuse. Raises `NoShardsError` D002 if there are no tokens and no sources for them.
    """
    gpu = _gpu(trials[0].config)
    device = devices.lookup(gpu) if gpu else None
    seconds: dict[str, float] = {}
    fastest = 0.0
    for trial in trials:
        tokens = _training_tokens(trial.config)
        if tokens and not confirmed:
            preflight.check_cost(trial.config, tokens, gpu or devices.CPU)
        if gpu is None or device is not None:
            step = speed.expected(trial.config, device)
            seconds[trial.name] = _trial_seconds(trial.config, step.seconds)
            fastest += _trial_seconds(trial.config, step.low)
    if confirmed or (len(trials) <= MAX_TRIALS and fastest <= MAX_SECONDS):
        return seconds
    time = f" would take at least {format_rough_duration(fastest)}" if fastest > MAX_SECONDS else ""
    message = f"{pluralize(len(trials), 'trial')}{time}; a sweep has at most {MAX_TRIALS}, and takes a day"
    raise ConfigError("C071", message, "vary less, shorten the trials (--run.steps), or add --yes")


def _trial_seconds(config: Config, step_seconds: float) -> float:
    return START_SECONDS - plan.STARTUP_SECONDS + plan.run_seconds(config, config.run.steps, step_seconds)


def _training_tokens(config: Config) -> int | None:
    """The tokens of the training split; None if the first trial is to prepare them."""
    try:
        return open_folder(config.data.path).train.tokens
    except NoShardsError:
        if config.data.sources:
            return None
        raise
