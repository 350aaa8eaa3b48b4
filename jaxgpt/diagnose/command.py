"""The command `jaxgpt diagnose`."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgpt import logs
from jaxgpt.config.options import Parser, add_options, read_options
from jaxgpt.diagnose import backtest, options
from jaxgpt.diagnose.backtest import BacktestOptions
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.context.tokens import bytes_per_token
from jaxgpt.diagnose.diagnosis import diagnose
from jaxgpt.diagnose.options import Options
from jaxgpt.diagnose.report import build_brief_report, build_report
from jaxgpt.diagnose.run_overview import describe_run
from jaxgpt.errors import ConfigError, DataError, printable
from jaxgpt.logs.history import History
from jaxgpt.logs.lines import detect_encoding
from jaxgpt.utils import files
from jaxgpt.utils.report import html_page, print_report, to_json

DESCRIPTION = """Reports where a run is heading, when it ends, and why it stalls.

It reads runs of jaxgpt, the logs of nanoGPT and its relatives, Hugging Face's Trainer, litgpt, Lightning, Weights &
Biases and other trainers, tables with columns such as step, lr, train_loss, val_loss, and any lines that name a step
and a loss (docs/logs.md). The format is detected from the content; `-` is standard input. Options state what a log does
not contain (its schedule, batch size, corpus). --verbose lists what is assumed.
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
    """What to diagnose, what is known about it, and the form of the answer."""

    source: str
    options: Options
    verbose: bool
    json: bool
    html: Path | None
    backtest: BacktestOptions


def read(argv: Sequence[str]) -> Request:
    """Parses the command line. Raises `ConfigError` for invalid values before any log is read."""
    parser = Parser("diagnose", DESCRIPTION, "RUN|LOG|- [options]", EXAMPLES)
    parser.add_argument("source", metavar="RUN|LOG|-", help="a run's folder or name, a log, or - for standard input")
    options.add_options(parser)
    group = parser.add_argument_group("output", "The form of the report.")
    group.add_argument("--verbose", action="store_true", help="print the evidence and what was assumed as well")
    group.add_argument("--json", action="store_true", help="print JSON (docs/diagnose.md)")
    group.add_argument("--html", metavar="FILE", help="write an HTML page with figures")
    add_options(parser, BacktestOptions)
    parsed = parser.parse(argv)
    if parsed.json and parsed.html:
        raise ConfigError("C053", "--json and --html exclude each other", "omit one of them")
    backtest_options = read_options(BacktestOptions, parsed)
    if backtest_options.backtest and (parsed.json or parsed.html):
        raise ConfigError(
            "C056", "--backtest prints its result and keeps it with the run", "leave --json and --html out"
        )
    return Request(
        source=parsed.source,
        options=options.read_options(parsed),
        verbose=parsed.verbose,
        json=parsed.json,
        html=files.check_report_path("--html", Path(parsed.html)) if parsed.html else None,
        backtest=backtest_options,
    )


def main(argv: Sequence[str]) -> None:
    """Runs `jaxgpt diagnose` with these arguments."""
    request = read(argv)
    if request.backtest.backtest:
        print(printable(backtest.run_backtest(request.source, request.backtest)))
        return
    history = read_log(request.source, request.options)
    diagnosis = diagnose(history, resolve_context(history, request.options), request.options.now)
    folder = logs.find_run_folder(request.source)
    if folder:
        diagnosis = dataclasses.replace(diagnosis, backtests=backtest.load_backtests(folder))
    if request.html:
        run = describe_run(folder, diagnosis) if folder else None
        files.write_text(request.html, html_page(build_report(diagnosis, run)))
        print(f"the diagnosis is in {printable(str(request.html))}")
    elif request.json:
        print(json.dumps(to_json(build_report(diagnosis)), indent=2, allow_nan=False))
    else:
        print_report(build_report(diagnosis) if request.verbose else build_brief_report(diagnosis))


def read_log(source: str, known: Options) -> History:
    """Reads the log of a run folder, a run name or a file, or standard input for `-`.

    Raises `DataError` D045 if standard input is closed.
    """
    if source != STDIN:
        return logs.read(source, known.batch_tokens, known.columns, bytes_per_token(known))
    if sys.stdin is None:
        raise DataError("D045", "standard input is closed", "name the log, or pipe it in")
    if sys.stdin.isatty():
        print("reading the log from the terminal; Ctrl-D ends it", file=sys.stderr)
    data = sys.stdin.buffer.read()
    text = data.decode(detect_encoding(data), errors="replace")
    return logs.read_text(text, "<stdin>", known.batch_tokens, known.columns, bytes_per_token(known))
