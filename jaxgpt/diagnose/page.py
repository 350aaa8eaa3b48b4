"""The diagnosis as one HTML page: the same answers as on the terminal, and figures."""

from collections.abc import Iterable

from jaxgpt.diagnose import plots, proofs, words
from jaxgpt.diagnose.arrival import Arrival
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.verdict import Verdict
from jaxgpt.logs.history import History
from jaxgpt.utils import html as report
from jaxgpt.utils.formatting import format_duration
from jaxgpt.utils.html import Block


def page(found: Diagnosis) -> str:
    """The whole report."""
    history, total = found.history, found.setting.total_steps
    of = f" of {total:,}" if total else ""
    blocks = [
        *(report.paragraph(sentence) for sentence in words.opening(found)),
        *_ends(found),
        *plots.figures(found),
        *_advice(found),
        *_verdicts(found),
        *(_when(found.arrival) if found.arrival else ()),
        *_sentences("Claims", words.claims(found)),
        *_sentences("Put to the test", proofs.sentences(found.proofs)),
        *_sentences("Assumed", found.setting.assumed),
        *_sentences("How the log was read", (f"{history.format}, {history.done:,} steps{of} done", *history.notes)),
    ]
    return report.page(f"Diagnosis of {history.source}", blocks)


def _ends(found: Diagnosis) -> Iterable[Block]:
    rows = [
        (one.what, f"{one.steps:,}", words.until(found, one.steps), *words.cells(one.forecast))
        for one in words.endings(found)
    ]
    if rows:
        yield report.heading("Where it ends: validation loss in nats per token")
        yield report.table(("", "steps", "from now", "loss", "80 %", "95 %"), rows)


def _advice(found: Diagnosis) -> Iterable[Block]:
    if not found.advice:
        return
    yield report.heading("What to do, by what it is expected to gain")
    for number, one in enumerate(found.advice, start=1):
        gain = words.gain(one)
        yield report.paragraph(f"{number}. {one.what}" + (f": {gain}" if gain else ""))
        if one.command:
            yield report.code(one.command)


def _verdicts(found: Diagnosis) -> Iterable[Block]:
    yield report.heading("Why")
    yield report.table(("verdict", "", "evidence"), [_row(verdict) for verdict in found.verdicts], tight=2)
    for verdict in found.verdicts:
        if verdict.status == "supported":
            yield from _quotes(verdict, found.history)
    if needs := words.needs(found):
        yield report.heading("What would tell the rest")
        yield report.table(("to measure or to give", "for"), [(need, ", ".join(ids)) for need, ids in needs])


def _row(verdict: Verdict) -> tuple[str, str, str]:
    if verdict.status == "supported":
        said = "; ".join(f"{c.asks}: {c.found}" for c in verdict.conditions)
        meaning = words.MEANING[verdict.id][0]
        return verdict.id, verdict.status, f"{meaning[0].upper()}{meaning[1:]}. Because {said}"
    if verdict.status == "not supported":
        return verdict.id, verdict.status, words.refuted(verdict)
    return verdict.id, verdict.status, "; ".join(words.unmeasured(verdict))


def _quotes(verdict: Verdict, history: History) -> Iterable[Block]:
    lines = words.quotes(history, words.behind(verdict))
    if lines:
        yield report.paragraph(f"Behind {verdict.id}:")
        yield report.code("\n".join(f"{number:>7,}  {text}" for number, text in lines))


def _when(held: Arrival) -> Iterable[Block]:
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
        f"Pace: {words.pace(held)}.",
        f"Trend: {words.trend(held)}.",
        *(f"{note}." for note in held.notes),
    ):
        yield report.paragraph(sentence[0].upper() + sentence[1:])
    if held.scenarios:
        rows = [(scenario.what, words.left(scenario.seconds)) for scenario in held.scenarios]
        yield report.table(("or it ends", "in"), rows)


def _sentences(title: str, sentences: Iterable[str]) -> Iterable[Block]:
    held = list(sentences)
    if held:
        yield report.heading(title)
        yield report.items(held)
