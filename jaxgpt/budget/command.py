"""The command: reads the options, plans, and prints or writes the answer."""

import json
import sys
from collections.abc import Sequence

from jaxgpt.budget import devices, options, search
from jaxgpt.budget.options import OutputOptions, PlanOptions, Request
from jaxgpt.budget.plan import Inputs, make_plan
from jaxgpt.budget.recommend import recommend
from jaxgpt.budget.report import brief_report, plan_report
from jaxgpt.budget.search import SearchResult
from jaxgpt.config.options import read_options
from jaxgpt.errors import ConfigError, printable
from jaxgpt.utils.files import write_text
from jaxgpt.utils.report import Report, html_page, print_report, to_json

LIST = "list"  # a value of --gpu


def main(argv: Sequence[str]) -> None:
    """Answers the command line `argv`."""
    parsed = options.parse(argv)
    actual = read_options(OutputOptions, parsed).actual
    if actual:
        _print_comparison(actual)
        return
    if read_options(PlanOptions, parsed).gpu == LIST:
        print(devices.table())
        return
    request = options.build_request(parsed)
    inputs = calibrated_inputs(request)
    result = None
    if request.goal:
        result = search.best_run(inputs, request.goal)
        inputs = result.inputs
    planned = make_plan(inputs)
    complete = request.output.verbose or request.output.json or request.html
    build = plan_report if complete else brief_report
    _write_answer(build(planned, recommend(planned, request.claim), result), request)
    if result and request.write_config:
        _write_config(result, request)


def _print_comparison(run: str) -> None:
    from jaxgpt.budget import plan_file
    from jaxgpt.runs import folder

    run_folder, _ = folder.find_run(run)
    print(printable(plan_file.format_comparison(plan_file.compare_with_actual(run_folder))))


def calibrated_inputs(request: Request) -> Inputs:
    """The inputs, calibrated by a log, a pilot or a measurement where the request asks for it."""
    inputs = request.inputs
    learning = request.learning
    if not (learning.measure or learning.pilot or learning.calibrate):
        return inputs
    from jaxgpt.budget import calibrate

    if learning.calibrate:
        record = calibrate.read_record(learning.calibrate)
    else:
        from jaxgpt.budget import measure

        print("measuring: a short training in a process of its own …", file=sys.stderr, flush=True)
        config = inputs.config
        record = measure.pilot(config, learning.pilot) if learning.pilot else measure.measure(config)
    calibration = calibrate.calibrate(record, inputs.config, inputs.corpus, inputs.tokens.unique)
    if learning.calibrate:  # what is measured here is of this machine's device
        calibration = calibration.with_possible_pace(inputs.device, inputs.gpus)
    return inputs.calibrated(calibration)


def _write_answer(report: Report, request: Request) -> None:
    if request.output.json:
        print(json.dumps(to_json(report), indent=2))
    elif request.html:
        try:
            write_text(request.html, html_page(report))
        except OSError as error:
            raise ConfigError("C041", f"--html '{request.html}' cannot be written: {error.strerror}") from error
        print(f"the plan is in {printable(str(request.html))}")
    else:
        print_report(report)


def _write_config(result: SearchResult, request: Request) -> None:
    path = request.write_config
    assert path is not None
    search.write_config(result, path)
    if not request.output.json:
        print(printable(f"\nwritten: {path}\n  python -m jaxgpt.train --config {path}"))
