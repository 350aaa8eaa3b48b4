"""Completion of command lines in bash and zsh by argcomplete, if it is installed (`pip install 'jaxgpt[completion]'`).

The shell runs the command with the line so far in `COMP_LINE`; the parser then prints the words that fit, and ends.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.config.files import built_in_configs

VARIABLE = "_ARGCOMPLETE"  # the position of the command among the words of the line, counted from 1


def complete(parser: argparse.ArgumentParser) -> None:
    """Prints the completions of the line, and ends the process. Does nothing without argcomplete."""
    try:
        import argcomplete
        from argcomplete.completers import FilesCompleter
    except ImportError:
        return
    files = FilesCompleter()
    for action in parser._actions:
        names = NAMES.get(action.dest.lstrip("-"))
        metavar = str(action.metavar)
        if names:
            action.completer = lambda prefix, names=names, **_: [*names(), *files(prefix)]  # type: ignore[attr-defined]
        elif metavar.startswith("{"):  # the values of a field that is a Literal
            action.choices = metavar.strip("{}").split(",")
    argcomplete.autocomplete(parser, print_suppressed=True)


def complete_verb(verbs: Sequence[str]) -> str | None:
    """Completes the first word of the line if the cursor is there; else returns it, so that its command completes."""
    words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")
    if len(words) > 2:
        os.environ[VARIABLE] = "2"
        return words[1]
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("verb", choices=verbs)
    complete(parser)
    return None


def run_names() -> list[str]:
    """The names of the runs under `runs/`."""
    return [log.parent.name for log in Path("runs").glob("*/log.jsonl")]


NAMES = {"config": built_in_configs, "config_file": built_in_configs, "run": run_names, "fork": run_names}
NAMES |= {"source": run_names, "baseline": run_names, "calibrate": run_names, "actual": run_names}
NAMES |= {"transfer_to": built_in_configs}
