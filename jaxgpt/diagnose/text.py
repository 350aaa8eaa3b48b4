"""The diagnosis for a terminal: three sentences, then what they rest on."""

from rich.text import Text

from jaxgpt.diagnose import backtest, messages
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Finding
from jaxgpt.errors import printable
from jaxgpt.logs.history import History
from jaxgpt.utils.formatting import format_duration
from jaxgpt.utils.terminal import Sheet, table

HELD = {True: "✓", False: "✗", None: "?"}


class Printer(Sheet):
    """Prints the parts of a diagnosis in order."""

    def whole(self, found: Diagnosis) -> None:
        self.opening(found)
        self.when(found)
        self.forecast(found)
        self.findings(found)
        self.recommendations(found)
        self.sentences("Claims", messages.claims(found))
        self.sentences("Put to the test", backtest.format_backtests(found.backtests))
        self.sentences("Assumed", found.context.assumed)
        self.sentences("How the log was read", found.history.notes)

    def opening(self, found: Diagnosis) -> None:
        history, total = found.history, found.context.total_steps
        of = f" of {total:,}" if total else ""
        self.head(f"{history.source}: {history.format}, {history.steps_done:,} steps{of} done")
        for sentence in messages.opening(found):
            self.line(sentence)

    def when(self, found: Diagnosis) -> None:
        held = found.completion
        if held is None:
            return
        self.head("When")
        drawn = table("", "so far", "ahead", left=1)
        for part in (part for part in held.parts if part.spent is not None or part.left):
            spent = "not known" if part.spent is None else format_duration(part.spent)
            drawn.add_row(part.name, spent, format_duration(part.left) if part.left else "–")
        self.show(drawn)
        self.line(f"pace: {messages.pace(held)}", hang=2)
        self.line(f"trend: {messages.trend(held)}", hang=2)
        for note in held.notes:
            self.line(f"{note}", hang=2)
        if held.scenarios:
            self._out.print()
            drawn = table("or it ends", "in", left=1)
            for scenario in held.scenarios:
                drawn.add_row(scenario.what, messages.left(scenario.seconds))
            self.show(drawn)

    def forecast(self, found: Diagnosis) -> None:
        self.head("Where: validation loss in nats per token")
        if found.forecast is None:
            self.line(f"no forecast: {found.no_forecast}")
            return
        drawn = table("", "steps", "from now", "loss", "80 %", "95 %", left=1)
        for what, steps, forecast, _ in messages.endings(found):
            drawn.add_row(what, f"{steps:,}", messages.until(found, steps), *messages.cells(forecast))
        self.show(drawn)

    def findings(self, found: Diagnosis) -> None:
        self.supported(found)
        self.open_ones(found)
        refuted = [finding for finding in found.findings if finding.status == "ruled out"]
        self.sentences("Ruled out", tuple(f"{finding.id}: {messages.refuted(finding)}" for finding in refuted))

    def supported(self, found: Diagnosis) -> None:
        held = [finding for finding in found.findings if finding.status == "confirmed"]
        self.head("Why: confirmed" if held else "Why: no cause is confirmed")
        for finding in held:
            self.finding(finding, found.history)

    def open_ones(self, found: Diagnosis) -> None:
        needs = tuple(f"{need}: {', '.join(waiting)}" for need, waiting in messages.needs(found))
        self.sentences("Unknown, and what would tell", needs)

    def finding(self, held: Finding, history: History) -> None:
        self.line(f"{held.id}: {messages.MEANING[held.id][0]}", style="bold")
        for condition in held.conditions:
            self.line(f"{HELD[condition.result]} {condition.question}: {condition.evidence}", indent=4, hang=2)
        for number, line in messages.quotes(history, messages.behind(held)):
            self.quote(f"line {number:,}: {line}")

    def quote(self, line: str) -> None:
        """A line of the log, cut where the screen ends."""
        room = self._out.width - 6
        line = printable(line)
        self._out.print(Text("      " + (line if len(line) <= room else line[: room - 1] + "…"), style="dim"))

    def recommendations(self, found: Diagnosis) -> None:
        if found.recommendations:
            self.head("What to do, by what it is expected to gain")
        for number, one in enumerate(found.recommendations, start=1):
            gain = messages.gain(one)
            self.line(f"{number}. {one.what.rstrip('.')}" + (f": {gain}" if gain else ""), hang=3)
            if one.command:
                self.command(one.command, indent=5)

    def sentences(self, title: str, sentences: tuple[str, ...]) -> None:
        if sentences:
            self.head(title)
        for sentence in sentences:
            self.line(sentence, hang=2)
