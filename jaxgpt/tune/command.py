"""The command `jaxgpt tune`, and `train --tune`."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxgpt.config import Config, Model
from jaxgpt.config.command_line import changed_options, parse_config
from jaxgpt.config.options import Parser, given_values
from jaxgpt.errors import ConfigError
from jaxgpt.runs.folder import RunFolder
from jaxgpt.tune.cache import read_result, tuned_fields, write_result
from jaxgpt.tune.search import Tuned, Tuner
from jaxgpt.utils.formatting import format_hours
from jaxgpt.utils.signals import GracefulShutdown

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

Say = Callable[[str], None]


def main(argv: Sequence[str]) -> None:
    """Tunes the config on the command line and prints what was tried."""
    parser = Parser("tune", DESCRIPTION, "[--config FILE] [--minutes N] [--SECTION.FIELD VALUE ...]", EXAMPLES)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, metavar="N", help="default: 3")
    config, options = parse_config(parser, argv)
    if not 0 < options.minutes < math.inf:
        raise ConfigError("C009", f"--minutes {options.minutes:g}; must be a number above 0")
    if config.run.init_from:
        from jaxgpt.convert.initial import resolve_network  # loads the tokenizers' library

        config = resolve_network(config, given_values(Model, options))
    tuned = tune(config, 60 * options.minutes, print_now)
    print("\n" + "\n".join(report_lines(tuned, config)))


def print_now(text: str) -> None:
    print(text, flush=True)


def tune(config: Config, seconds: float, say: Say) -> Tuned:
    """Measures for `seconds`, and keeps the result in the cache. Raises what `Tuner.run` raises."""
    say(f"measuring for {format_hours(seconds)}: each program in a process of its own")
    with open_tuner(config, seconds, say) as tuner:
        tuned = tuner.run(tuner.device())
    if len(tuned.outcomes) == 1:
        say("there was no time for another program: give python -m jaxgpt.tune more --minutes")
        return tuned
    try:
        write_result(config, tuned)
    except OSError as error:
        say(f"the result is not kept for train --tune: {error.strerror}: {error.filename}")
    return tuned


@contextmanager
def open_tuner(config: Config, seconds: float, say: Say) -> Iterator[Tuner]:
    """A tuner with a folder for its trials. A signal ends it in order: the trial is stopped, the folder removed."""
    with GracefulShutdown(), tempfile.TemporaryDirectory(prefix="jaxgpt-tune-") as folder:
        yield Tuner(config, Path(folder), seconds, say)


def tuned_config(config: Config, say: Say, *, measure: bool = True) -> Config:
    """`config` with the fastest program: that of its run if this exists, the cache's, or, with `measure`, a new one."""
    folder = RunFolder.from_config(config)
    if folder.config_file.exists():
        return _config_of_run(config, folder, say)
    with open_tuner(config, 0.0, say) as tuner:
        device = tuner.device()
    tuned = read_result(config, device)
    if tuned is None and not measure:
        say("this step has not been tuned here: what follows is the config as it is")
        return config
    tuned = tuned or tune(config, 60 * DEFAULT_MINUTES, say)
    say(result_line(tuned))
    return tuned.winner.apply(config)


def _config_of_run(config: Config, folder: RunFolder, say: Say) -> Config:
    """`config` with the program of the run in `folder`, unless the run has other tokens in a step."""
    resumed = config.replace(tuned_fields(folder.config()))
    if resumed.tokens_per_step != config.tokens_per_step:
        return config  # which the run will refuse
    say(f"the run in {folder.path} continues with the program that it was started with")
    return resumed


def result_line(tuned: Tuned) -> str:
    """The answer in one sentence."""
    default = f"{1e3 * tuned.default_seconds:,.1f} ms per step"
    if not tuned.winner.changes:
        return f"No program that was measured is faster than the config as it is ({default})."
    gain = f"{tuned.speedup:.2f} times as fast ({1e3 * tuned.winner_seconds:,.1f} ms per step instead of {default})"
    return f"The fastest program has {tuned.winner.name}: {gain}."


def report_lines(tuned: Tuned, config: Config) -> list[str]:
    """The answer, the options that choose the winner, and every program with its best time, the fastest first."""
    options = changed_options(tuned.winner.apply(config), config)
    choice = ["  " + " ".join(options)] if options else []
    times: dict[str, float] = {}
    for outcome in tuned.outcomes:
        name = outcome.candidate.name
        if outcome.step_seconds is not None:
            times[name] = min(outcome.step_seconds, times.get(name, math.inf))
    problems = {each.candidate.name: each.problem for each in tuned.outcomes if each.candidate.name not in times}
    fastest_first = sorted(times.items(), key=lambda item: item[1])
    rows = [(f"{1e3 * seconds:,.1f}", name) for name, seconds in fastest_first]
    rows += [("", f"{name}: {problem}") for name, problem in problems.items()]
    table = [f"{milliseconds:>12}  {text}" for milliseconds, text in [("ms per step", "program"), *rows]]
    return [result_line(tuned), *choice, "", *table]
