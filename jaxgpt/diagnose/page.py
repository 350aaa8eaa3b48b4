"""The diagnosis as one HTML page: the same answers as on the terminal, and figures."""

from collections.abc import Iterable

from jaxgpt.diagnose import backtest, messages, plots
from jaxgpt.diagnose.completion import CompletionEstimate
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Finding
from jaxgpt.logs.history import History
from jaxgpt.utils import html as report
from jaxgpt.utils.formatting import format_duration
from jaxgpt.utils.html import Block


def page(found: Diagnosis) -> str:
    """The whole report."""
    history, total = found.history, found.context.total_steps
    of = f" of {total:,}" if total else ""
    blocks = [
        *(report.paragraph(sentence) for sentence in messages.opening(found)),
        *_ends(found),
        *plots.figures(found),
        *_advice(found),
        *_verdicts(found),
        *(_when(found.completion) if found.completion else ()),
        *_sentences("Claims", messages.claims(found)),
        *_sentences("Put to the test", backtest.format_backtests(found.backtests)),
        *_sentences("Assumed", found.context.assumed),
        *_sentences(
            "How the log was read", (f"{history.format}, {history.steps_done:,} steps{of} done", *history.notes)
        ),
    ]
    return report.page(f"Diagnosis of {history.source}", blocks)


def _ends(found: Diagnosis) -> Iterable[Block]:
    rows = [
        (one.what, f"{one.steps:,}", messages.until(found, one.steps), *messages.cells(one.forecast))
        for one in messages.endings(found)
    ]
    if rows:
        yield report.heading("Where it ends: validation loss in nats per token")
        yield report.table(("", "steps", "from now", "loss", "80 %", "95 %"), rows)


def _advice(found: Diagnosis) -> Iterable[Block]:
    if not found.recommendations:
        return
    yield report.heading("What to do, by what it is expected to gain")
    for number, one in enumerate(found.recommendations, start=1):
        gain = messages.gain(one)
        yield report.paragraph(f"{number}. {one.what}" + (f": {gain}" if gain else ""))
        if one.command:
            yield report.code(one.command)


def _verdicts(found: Diagnosis) -> Iterable[Block]:
    yield report.heading("Why")
    yield report.table(("finding", "", "evidence"), [_row(finding) for finding in found.findings], tight=2)
    for finding in found.findings:
        if finding.status == "confirmed":
            yield from _quotes(finding, found.history)
    if needs := messages.needs(found):
        yield report.heading("What would tell the rest")
        yield report.table(("to measure or to give", "for"), [(need, ", ".join(ids)) for need, ids in needs])


def _row(finding: Finding) -> tuple[str, str, str]:
    if finding.status == "confirmed":
        said = "; ".join(f"{c.question}: {c.evidence}" for c in finding.conditions)
        meaning = messages.MEANING[finding.id][0]
        return finding.id, finding.status, f"{meaning[0].upper()}{meaning[1:]}. Because {said}"
    if finding.status == "ruled out":
        return finding.id, finding.status, messages.refuted(finding)
    return finding.id, finding.status, "; ".join(messages.unmeasured(finding))


def _quotes(finding: Finding, history: History) -> Iterable[Block]:
    lines = messages.quotes(history, messages.behind(finding))
    if lines:
        yield report.paragraph(f"Behind {finding.id}:")
        yield report.code("\n".join(f"{number:>7,}  {text}" for number, text in lines))


def _when(held: CompletionEstimate) -> Iterable[Block]:
    yield report.heading("When it ends")
    parts = [
        (
            part.name,
            "not known" if part.spent is None else format_duration(part.spent),
            format_duration(part.left) if part.left else "–",
        )
        for part in held.parts
    ]
    yield report.table(("", "so far", "ahead"), parts)
    for sentence in (
        f"StepTimeEstimate: {messages.pace(held)}.",
        f"Trend: {messages.trend(held)}.",
        *(f"{note}." for note in held.notes),
    ):
        yield report.paragraph(sentence[0].upper() + sentence[1:])
    if held.scenarios:
        rows = [(scenario.what, messages.left(scenario.seconds)) for scenario in held.scenarios]
        yield report.table(("or it ends", "in"), rows)


def _sentences(title: str, sentences: Iterable[str]) -> Iterable[Block]:
    held = list(sentences)
    if held:
        yield report.heading(title)
        yield report.items(held)
