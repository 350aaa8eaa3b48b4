"""The command `jaxgpt tune`, and `train --tune`."""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxgpt.config import Config
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.options import Parser, format_value, option_name
from jaxgpt.errors import ConfigError
from jaxgpt.runs.folder import RunFolder
from jaxgpt.tune.cache import read_result, tuned_fields, write_result
from jaxgpt.tune.search import Tuned, Tuner
from jaxgpt.utils.formatting import format_hours

DESCRIPTION = """Measures other programs for a config's training step on this device and reports the fastest.

The step's tokens stay as they are; its division into micro-batches, the loss chunk, recomputation, and on a GPU the
attention kernel and compiler options change. A program counts only if its first step agrees with that of the config.
The result is kept: `train --tune` uses it, and measures first where there is none (docs/tune.md).
"""
EXAMPLES = """examples:
  python -m jaxgpt.tune --config quickstart
  python -m jaxgpt.tune --config fineweb40m --minutes 5
  python -m jaxgpt.train --config fineweb40m --tune
"""
DEFAULT_MINUTES = 3.0


def main(argv: Sequence[str]) -> None:
    """Tunes the config on the command line and prints what was tried."""
    parser = Parser("tune", DESCRIPTION, "[--config FILE] [--minutes N] [--SECTION.FIELD VALUE ...]", EXAMPLES)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, metavar="N", help="default: 3")
    config, options = parse_config(parser, argv)
    if not 0 < options.minutes < math.inf:
        raise ConfigError("C009", f"--minutes {options.minutes:g}; must be above 0")
    tuned = tune(config, 60 * options.minutes, print_now)
    print("\n" + "\n".join(report_lines(tuned, config)))


def print_now(text: str) -> None:
    print(text, flush=True)


def tune(config: Config, seconds: float, say: Callable[[str], None]) -> Tuned:
    """Measures for `seconds`, and keeps the result in the cache. Raises what `Tuner.run` raises."""
    with tempfile.TemporaryDirectory(prefix="jaxgpt-tune-") as folder:
        say(f"measuring for {format_hours(seconds)}: each program in a process of its own")
        tuner = Tuner(config, Path(folder), seconds, say)
        device = tuner.device()
        tuned = tuner.run(device)
    write_result(config, tuned)
    return tuned


def tuned_config(config: Config, say: Callable[[str], None]) -> Config:
    """`config` with the fastest program: that of the run if it exists already, the cache's, or measured now."""
    folder = RunFolder.from_config(config)
    if folder.config_file.exists():
        return config.replace(tuned_fields(folder.config()))
    with tempfile.TemporaryDirectory(prefix="jaxgpt-tune-") as temporary:
        device = Tuner(config, Path(temporary), 0.0, say).device()
    tuned = read_result(config, device) or tune(config, 60 * DEFAULT_MINUTES, say)
    say(result_line(tuned))
    return tuned.winner.apply(config)


def result_line(tuned: Tuned) -> str:
    """The answer in one sentence."""
    default = f"{1e3 * tuned.default_seconds:,.1f} ms per step"
    if not tuned.winner.changes:
        return f"No program was faster than the config as it is ({default})."
    gain = f"{tuned.speedup:.2f} times as fast ({1e3 * tuned.winner_seconds:,.1f} ms per step instead of {default})"
    return f"The fastest program has {tuned.winner.name}: {gain}."


def report_lines(tuned: Tuned, config: Config) -> list[str]:
    """The answer, the options that choose the winner, and every program with its best time, the fastest first."""
    lines = [result_line(tuned)]
    if tuned.winner.changes:
        changed = tuned.winner.changes.items()
        options = [
            f"{option_name(f'{section}.{name}')} {' '.join(format_value(value))}"
            for section, values in changed
            for name, value in values.items()
        ]
        lines += ["  " + " ".join(options), "  (or train --tune)"]
    times: dict[str, float] = {}
    problems: dict[str, str] = {}
    for outcome in tuned.outcomes:
        name = outcome.candidate.name
        if outcome.step_seconds is None:
            problems[name] = outcome.problem
        else:
            times[name] = min(outcome.step_seconds, times.get(name, math.inf))
    lines += ["", f"{'ms per step':>12}  program"]
    lines += [f"{1e3 * seconds:>12,.1f}  {name}" for name, seconds in sorted(times.items(), key=lambda item: item[1])]
    return lines + [f"{'':>12}  {name}: {problem}" for name, problem in problems.items() if name not in times]
