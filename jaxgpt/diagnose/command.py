"""The command `jaxgpt diagnose`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgpt import logs
from jaxgpt.config.options import Parser
from jaxgpt.diagnose import backtest, options
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import diagnose
from jaxgpt.diagnose.options import Options
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.logs.history import History
from jaxgpt.logs.lines import encoding
from jaxgpt.utils import html as report
from jaxgpt.utils import terminal

DESCRIPTION = """Reports where a run is heading, when it ends, and why it stalls.

It reads runs of jaxgpt, the logs of nanoGPT, llm.c, modded-nanogpt, nanochat and build-nanogpt, and tables with columns
such as step, lr, train_loss, val_loss. The format is detected from the content; `-` is standard input. Options state
what a log does not contain (its schedule, batch size, corpus). The report lists what is assumed.
"""
EXAMPLES = """examples:
  python -m jaxgpt.diagnose runs/fineweb40m
  python -m jaxgpt.diagnose out.log --config fineweb40m --html diagnosis.html
  python -m jaxgpt.diagnose runs/fineweb40m --backtest
  python -m jaxgpt.diagnose - --total-steps 6000 < nanogpt.txt
"""
STDIN = "-"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to look at, what is told of it, and how to answer."""

    source: str
    options: Options
    json: bool
    html: Path | None
    prove: backtest.BacktestRequest | None


def read(argv: Sequence[str]) -> Request:
    """The request that `argv` spells. Raises `ConfigError` for what is nonsense, before any log is read."""
    parser = Parser("diagnose", DESCRIPTION, "RUN|LOG|- [options]")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument("source", metavar="RUN|LOG|-", help="a run's folder or name, a log, or - for standard input")
    options.add_options(parser)
    answer = parser.add_argument_group("answer", "How to say it.").add_argument
    answer("--json", action="store_true", help="as JSON (docs/diagnose.md)")
    answer("--html", metavar="FILE", help="as a page")
    backtest.add_options(parser)
    given = parser.parse(argv)
    if given.json and given.html:
        raise ConfigError("C053", "--json and --html exclude each other", "leave one of them out")
    page = report.place("--html", given.html)
    proving = backtest.parse_request(given)
    return Request(source=given.source, options=options.read_options(given), json=given.json, html=page, prove=proving)


def main(argv: Sequence[str]) -> None:
    """Answers the request on the command line."""
    request = read(argv)
    if request.prove:
        print(backtest.run_backtest(request.source, request.prove))
        return
    history = opened(request.source, request.options)
    found = diagnose(history, resolve_context(history, request.options), request.options.now)
    found = dataclasses.replace(found, backtests=backtest.find_backtests(request.source))
    if request.json:
        from jaxgpt.diagnose.to_json import document

        print(json.dumps(document(found), indent=2, allow_nan=False))
    elif request.html:
        from jaxgpt.diagnose.page import page

        report.write(request.html, page(found))
        print(f"the diagnosis is in {request.html}")
    else:
        from jaxgpt.diagnose.text import Printer

        Printer(terminal.console()).whole(found)


def opened(source: str, given: Options) -> History:
    """The log at `source`, or on standard input."""
    if source != STDIN:
        return logs.read(source, given.batch_tokens)
    if sys.stdin is None:
        raise DataError("D045", "standard input is closed", "name the log, or pipe it in")
    if sys.stdin.isatty():
        print("reading the log from the terminal; Ctrl-D ends it", file=sys.stderr)
    data = sys.stdin.buffer.read()
    return logs.read_text(data.decode(encoding(data), errors="replace"), "<stdin>")
