"""`python -m jaxgpt.diagnose RUN | LOG | -`: where a run is heading, when it ends, and why it stalls.

Reads runs of jaxgpt and the logs of nanoGPT, llm.c, modded-nanogpt, nanochat and build-nanogpt, or a table with columns
such as step, lr, train_loss, val_loss; the format is found from the content, and `-` is standard input. What a log does
not say (its schedule, its batch, its text) can be given; what is assumed is named in the answer.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from jaxgpt import logs, report, terminal
from jaxgpt.budget.options import number
from jaxgpt.diagnose import options, proofs, setting
from jaxgpt.diagnose.diagnosis import Diagnosis, diagnose
from jaxgpt.diagnose.options import Options
from jaxgpt.errors import ConfigError
from jaxgpt.logs.history import History
from jaxgpt.overrides import Parser
from jaxgpt.runfolder import RunFolder

EXAMPLES = """examples:
  python -m jaxgpt.diagnose runs/fineweb40m
  python -m jaxgpt.diagnose out.log --config fineweb40m --html diagnosis.html
  python -m jaxgpt.diagnose - --total-steps 6000 < nanogpt.txt
"""
STDIN = "-"


class Anneal(NamedTuple):
    """What `--prove` is to do: from which checkpoint ("latest" or its step), over how many updates (None: a tenth)."""

    checkpoint: str
    steps: int | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to look at, what is told of it, and how to answer."""

    source: str
    options: Options
    json: bool
    html: Path | None
    prove: Anneal | None


def read(argv: Sequence[str]) -> Request:
    """The request that `argv` spells. Raises `ConfigError` for what is nonsense, before any log is read."""
    parser = Parser("diagnose", __doc__ or "", "RUN|LOG|- [options]")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument("source", metavar="RUN|LOG|-", help="a run's folder or name, a log, or - for standard input")
    options.add_options(parser)
    answer = parser.add_argument_group("answer", "How to say it.").add_argument
    answer("--json", action="store_true", help="as JSON (docs/diagnose.md)")
    answer("--html", metavar="FILE", help="as a page")
    prove = parser.add_argument_group("proof", "Put a forecast of a run of ours to the test.").add_argument
    prove("--prove", action="store_true", help="anneal from a checkpoint in a run of its own, and keep the score")
    prove("--prove-step", metavar="STEP", help="the checkpoint to start from (default: the latest)")
    prove("--prove-steps", metavar="N", help="updates of the anneal (default: a tenth of those done)")
    given = parser.parse_args(argv)
    if given.json and given.html:
        raise ConfigError("C053", "--json and --html exclude each other", "leave one of them out")
    return Request(
        source=given.source,
        options=options.of(given),
        json=given.json,
        html=report.place("--html", given.html),
        prove=_anneal(given),
    )


def _anneal(given: argparse.Namespace) -> Anneal | None:
    steps, place = given.prove_steps, given.prove_step
    if not given.prove and (steps is not None or place is not None):
        raise ConfigError("C054", "--prove-step and --prove-steps say how to prove", "add --prove")
    if not given.prove:
        return None
    if given.source == STDIN:
        raise ConfigError("C054", "--prove needs a run's folder, and this is standard input", "name the run")
    count = None if steps is None else number("--prove-steps", steps, least=1.0, code="C054")
    return Anneal(place or "latest", None if count is None else math.ceil(count))


def run(argv: Sequence[str]) -> None:
    """Answers the request on the command line."""
    request = read(argv)
    folder = folder_of(request.source)
    if request.prove:
        from jaxgpt.diagnose.prove import prove

        with contextlib.redirect_stdout(sys.stderr):  # what is printed here is the answer alone
            print(prove(folder or RunFolder(Path(request.source)), *request.prove))
    history = opened(request.source, request.options)
    found = diagnose(history, setting.of(history, request.options), request.options.now)
    if folder:
        found = replace(found, proofs=proofs.of(folder))
    answer(request, found)


def answer(request: Request, found: Diagnosis) -> None:
    """Says it as the request asks."""
    if request.json:
        from jaxgpt.diagnose.schema import document

        print(json.dumps(document(found), indent=2, allow_nan=False))
    elif request.html:
        from jaxgpt.diagnose.page import page

        report.write(request.html, page(found))
        print(f"the diagnosis is in {request.html}")
    else:
        from jaxgpt.diagnose.text import Printer

        Printer(terminal.console()).whole(found)


def folder_of(source: str) -> RunFolder | None:
    """The folder of the run that is named, if it is one of ours."""
    held = (RunFolder(place) for place in (Path(source), Path("runs") / source))
    return next((folder for folder in held if folder.log_file.is_file()), None)


def opened(source: str, given: Options) -> History:
    """The log at `source`, or on standard input."""
    if source != STDIN:
        return logs.read(source, given.batch_tokens)
    if sys.stdin.isatty():
        print("reading the log from the terminal; Ctrl-D ends it", file=sys.stderr)
    return logs.read_text(sys.stdin.buffer.read().decode("utf-8", errors="replace"), "<stdin>")
