"""The plan for a terminal: tables of at most 80 columns, plain where the output is piped."""

import sys
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxgpt.budget import plot, shown, time
from jaxgpt.budget.claims import Claim
from jaxgpt.budget.flops import parameters
from jaxgpt.budget.inverse import Choice
from jaxgpt.budget.memory import GIB
from jaxgpt.budget.plan import Plan, Row
from jaxgpt.budget.recommend import Recommendation
from jaxgpt.errors import printable

WIDTH = 80


def console() -> Console:
    """Where the plan goes: a terminal's own width up to 100 columns, 80 elsewhere."""
    wide = Console(file=sys.stdout, highlight=False)
    return Console(file=sys.stdout, highlight=False, width=min(wide.width, 100) if wide.is_terminal else WIDTH)


class Printer:
    """Prints the parts of a plan in order."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def whole(self, found: Plan, advice: Recommendation, claims: Sequence[Claim], choice: Choice | None) -> None:
        if choice:
            self.choice(choice)
        self.run(found)
        self.rows(found)
        self.memory(found)
        self.pace(found)
        self.loss(found)
        self.plot(found)
        self.sentences("What to do", advice.sentences)
        if claims:
            self.claims(claims)
        self.sentences("Beware", found.warnings)

    def run(self, found: Plan) -> None:
        facts, inputs = found.facts, found.inputs
        self.head(f"Run: {inputs.name}")
        six = 6 * facts.parameters
        lines = [
            f"{facts.parameters / 1e6:.2f}M parameters, {facts.non_embedding_parameters / 1e6:.2f}M of them outside "
            f"embedding and head (positions apart)",
            f"{facts.tokens_per_step:,} tokens per step; {facts.flops_per_token / 1e6:.1f} MFLOP per token: 6N "
            f"{six / 1e6:.1f} + attention {(facts.flops_per_token - six) / 1e6:.1f} (not halved for causality; "
            f"{facts.flops_per_token_causal / 1e6:.1f} if it is)",
            f"device: {self.device(found)}",
            f"corpus: {inputs.corpus.name} ({inputs.corpus_why}; {inputs.corpus.evidence})",
            f"different tokens: {self.unique(found)}",
        ]
        for line in lines:
            self.line(line)

    def device(self, found: Plan) -> str:
        held = found.inputs.device
        if held is None:
            return f"cpu, to be measured ({found.inputs.device_why})"
        facts = f"{held.tflops:g} TFLOP/s bf16, {held.bandwidth:g} GB/s, {held.memory:g} GiB, {held.watts:g} W"
        return f"{held.name} ({found.inputs.device_why}): {facts}"

    def unique(self, found: Plan) -> str:
        held = found.inputs.tokens
        return held.source if held.unique is None else f"{shown.count(held.unique)} ({held.source})"

    def rows(self, found: Plan) -> None:
        self.head("By length (each run's learning rate falls until its own end)")
        table = self.table("steps", "tokens", "epochs", "EFLOP", "time", "80 %", "kWh", "cost", "loss", "80 %", "per h")
        for row in found.rows:
            table.add_row(*self.cells(row))
        self._show(table)
        self.line(
            f"time, energy and cost are jaxgpt's, with evaluations and start; board at {time.BOARD_SHARE:.0%} and "
            f"{time.HOST_WATTS:g} W for the rest; {found.inputs.price:g} per kWh; "
            "'per h': nats gained per extra hour against the row above"
        )

    def cells(self, row: Row) -> list[str]:
        return [
            f"{row.max_iters:,}",
            shown.count(row.tokens),
            shown.amount(row.epochs),
            f"{row.flops / 1e18:.3g}",
            shown.hours(row.seconds),
            shown.span(row.seconds_low, row.seconds_high, row.seconds),
            shown.amount(row.energy_kwh, 1),
            shown.amount(row.cost),
            f"{row.loss:.2f}",
            shown.loss_span(row.loss_low, row.loss_high),
            shown.per_hour(row.gain_per_hour).replace("0.", ".", 1),
        ]

    def memory(self, found: Plan) -> None:
        fit, batch = found.fit, found.inputs.config.data.micro_batch
        self.head(f"Memory at micro-batch {batch}, GiB")
        names = ("parameters", "gradients", "optimizer", "activations", "logits", "workspace")
        table = self.table(*names, "total", "with remat")
        held = [getattr(fit.need, name) / GIB for name in names]
        table.add_row(*(f"{gib:.2f}" for gib in held), f"{fit.need.total / GIB:.2f}", f"{fit.remat.total / GIB:.2f}")
        self._show(table)
        if fit.usable_gib is None or found.inputs.device is None:
            return
        screen = " and a desktop" if found.inputs.device.drives_screen else ""
        verdict = "fits" if fit.fits else "does not fit"
        self.line(f"{verdict}: {fit.usable_gib:.1f} GiB are usable beside the driver{screen}; {self.batches(found)}")
        self.line("remat: --model.remat blocks, which computes each block's insides again for the backward pass")

    def batches(self, found: Plan) -> str:
        fitting = [str(n) for n, _, fits in found.fit.table if fits]
        large = [str(n) for n, _, fits in found.fit.table if not fits]
        said = f"micro-batches that fit: {', '.join(fitting) or 'none'}"
        said += f", not {', '.join(large)}" if large else ""
        return f"{said}; the largest is {found.fit.largest} ({found.fit.largest_remat} with remat)"

    def pace(self, found: Plan) -> None:
        if found.paces:
            self.head("Pace")
        for name, pace in found.paces.items():
            what = "jaxgpt" if name == "jaxgpt" else "nanoGPT-class software"
            self.line(f"{what}: {pace.seconds:.3g} s per step ({pace.low:.3g} to {pace.high:.3g}); {pace.why}")

    def loss(self, found: Plan) -> None:
        expected, last = found.last.expectation, found.last
        self.head(f"Loss at {last.max_iters:,} steps: {last.loss:.3f} ({last.loss_low:.2f} to {last.loss_high:.2f})")
        parts = [f"{name} {value:.3f}" for name, value in expected.terms.items()]
        self.line(" + ".join(parts))
        spread = ", ".join(f"{name} {value:.3f}" for name, value in expected.sigmas.items() if value >= 0.0005)
        self.line(f"one standard deviation is {expected.sigma:.3f}: {spread}")
        for name, gain in found.gains.items():
            self.line(f"{name.replace('_', ' ')}: −{gain.nats:.3f} nats, {shown.flops(gain.flops)} in all")
        for name, loss in found.elsewhere.items():
            self.line(f"on {name} the same run would end at about {loss:.2f}, in nats of that text")
        table = self.table("nearest published runs", "corpus", "params", "tokens", "loss", left=2)
        for run in found.nearest:
            what = f"{run.what} [{run.source}]"
            table.add_row(
                Text(what), run.corpus, shown.count(run.parameters), shown.count(run.tokens), f"{run.loss:.3f}"
            )
        self._show(table)

    def plot(self, found: Plan) -> None:
        drawn = plot.terminal(found, WIDTH - 2)
        if drawn:
            self.head("Expected loss against hours, each length annealed")
            self._out.print(Text(drawn))

    def choice(self, choice: Choice) -> None:
        self.head(f"For {choice.goal}: the frontier")
        table = self.table("", "params", "layers", "width", "steps", "tokens", "D/N", "time", "kWh", "loss", left=1)
        for one in choice.frontier:
            model, row = one.config.model, one.row
            table.add_row(
                "→" if one is choice.best else "",
                shown.count(parameters(model)),
                str(model.n_layer),
                str(model.n_embd),
                f"{row.max_iters:,}",
                shown.count(row.tokens),
                f"{one.ratio:.0f}",
                shown.hours(row.seconds),
                shown.amount(row.energy_kwh, 1),
                f"{row.loss:.3f}" + ("*" if row.expectation.outside else ""),
            )
        self._show(table)
        config = choice.best.config
        self.line(
            f"chosen: micro-batch {config.data.micro_batch} × {config.data.accum}, {config.optim.schedule} from "
            f"{config.optim.learning_rate:g} to {config.optim.min_lr:g} after {config.optim.warmup_steps:,} steps of "
            "warmup; * lies outside the law's fitted range"
        )

    def claims(self, claims: Sequence[Claim]) -> None:
        self.head("Earlier claims")
        table = self.table("claimed", "here", "so", left=3)
        for claim in claims:
            table.add_row(*map(Text, (claim.claim, claim.here, claim.verdict)))
        self._show(table)

    def sentences(self, title: str, sentences: Sequence[str]) -> None:
        if sentences:
            self.head(title)
        for sentence in sentences:
            self.line(sentence)

    def head(self, title: str) -> None:
        self._out.print()
        self._out.print(Text(printable(title), style="bold"))

    def line(self, text: str) -> None:
        """A paragraph that hangs by two columns."""
        self._out.print(
            Text(textwrap.fill(printable(text), self._out.width, initial_indent="  ", subsequent_indent="  "))
        )

    def _show(self, table: Table) -> None:
        """The table without the blanks that fill its lines up, which would wrap where a terminal is narrower."""
        with self._out.capture() as drawn:
            self._out.print(table)
        print("\n".join(line.rstrip() for line in drawn.get().splitlines()), file=self._out.file)

    def table(self, *names: str, left: int = 0) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
        for number, name in enumerate(names):
            table.add_column(name, justify="left" if number < left else "right", overflow="fold")
        return table
