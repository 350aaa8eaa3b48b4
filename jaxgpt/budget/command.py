"""`python -m jaxgpt.budget`: what a run will cost, whether it fits, what it will reach and how long it should be."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from jaxgpt.budget import options, search
from jaxgpt.budget.options import OutputOptions, Request
from jaxgpt.budget.plan import Inputs, plan
from jaxgpt.budget.recommend import recommend
from jaxgpt.config.options import read_options
from jaxgpt.errors import ConfigError


def main(argv: Sequence[str]) -> None:
    """Answers the request that the command line makes."""
    parsed = options.parse(argv)
    actual = read_options(OutputOptions, parsed).actual
    if actual:
        from jaxgpt.budget import plan_file
        from jaxgpt.runs import folder as runfolder

        print(plan_file.format_comparison(plan_file.compare_with_actual(runfolder.find_run(actual)[0])))
        return
    answer(options.build_request(parsed))


def answer(request: Request) -> None:
    """Plans, and says it as the request asks."""
    inputs = learned(request)
    choice = search.best_run(inputs, request.goal) if request.goal else None
    if choice:
        inputs = choice.inputs
    found = plan(inputs)
    advice = recommend(found, request.claim)
    claims = []
    if request.output.compare_claims:
        from jaxgpt.budget.claims import compare

        claims = compare(found)
    if request.output.json:
        from jaxgpt.budget.to_json import document

        print(json.dumps(document(found, advice, claims, choice), indent=2))
    elif request.html:
        from jaxgpt.budget.html import page
        from jaxgpt.utils import html as report

        try:
            report.write(request.html, page(found, advice, claims, choice))
        except OSError as error:
            raise ConfigError("C041", f"--html '{request.html}' cannot be written: {error.strerror}") from error
        print(f"the plan is in {request.html}")
    else:
        from jaxgpt.budget import text
        from jaxgpt.utils import terminal

        text.Printer(terminal.console()).whole(found, advice, claims, choice)
    if choice and request.write_config:
        search.write_config(choice, request.write_config)
        if not request.output.json:
            print(f"\nwritten: {request.write_config}\n  python -m jaxgpt.train --config {request.write_config}")


def learned(request: Request) -> Inputs:
    """The inputs with what a run has to teach them: measured here, a pilot, or a log."""
    inputs = request.inputs
    if not (request.learning.measure or request.learning.pilot or request.learning.calibrate):
        return inputs
    from jaxgpt.budget import calibrate

    config = inputs.config
    if request.learning.calibrate:
        record = calibrate.read(request.learning.calibrate)
    else:
        from jaxgpt.budget import measure

        print("measuring: a short training in a process of its own …", file=sys.stderr, flush=True)
        record = measure.pilot(config, request.learning.pilot) if request.learning.pilot else measure.measure(config)
    return replace(
        inputs,
        calibration=calibrate.calibration(record, config, inputs.device, inputs.corpus, inputs.tokens.unique),
    )
