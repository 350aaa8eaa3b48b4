"""The plan for a terminal: tables of at most 80 columns, plain where the output is piped."""

from collections.abc import Sequence

from rich.text import Text

from jaxgpt.budget import plot, step_time
from jaxgpt.budget.claims import Claim
from jaxgpt.budget.memory import GIB
from jaxgpt.budget.plan import Plan, Row
from jaxgpt.budget.recommend import Recommendation
from jaxgpt.budget.search import Choice
from jaxgpt.config.model_size import parameters
from jaxgpt.utils import formatting
from jaxgpt.utils.terminal import WIDTH, Sheet, table


def row_cells(row: Row, digits: int) -> tuple[str, ...]:
    """A length of the plan as cells: steps, tokens, epochs, EFLOP, time, its 80 %, kWh, cost, loss, its 80 %, gain."""
    return (
        f"{row.max_iters:,}",
        formatting.format_count(row.tokens),
        formatting.format_number(row.epochs),
        f"{row.flops / 1e18:.3g}",
        formatting.format_hours(row.seconds),
        formatting.format_hours_range(row.seconds_low, row.seconds_high, row.seconds),
        formatting.format_number(row.energy_kwh, 1),
        formatting.format_number(row.cost),
        f"{row.loss:.{digits}f}",
        formatting.format_loss_range(row.loss_low, row.loss_high),
        per_hour(row.gain_per_hour),
    )


def per_hour(gain: float | None) -> str:
    """Nats per hour; a run of minutes gains so much that only its size is of use."""
    if gain is None:
        return ""
    return f"{gain:.4f}" if gain < 1 else f"{gain:,.0f}"


class Printer(Sheet):
    """Prints the parts of a plan in order."""

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
        return held.source if held.unique is None else f"{formatting.format_count(held.unique)} ({held.source})"

    def rows(self, found: Plan) -> None:
        self.head("By length (each run's learning rate falls until its own end)")
        drawn = table("steps", "tokens", "epochs", "EFLOP", "time", "80 %", "kWh", "cost", "loss", "80 %", "per h")
        for row in found.rows:
            *cells, gain = row_cells(row, digits=2)
            drawn.add_row(*cells, gain.replace("0.", ".", 1))
        self.show(drawn)
        self.line(
            f"time, energy and cost are jaxgpt's, with evaluations and start; board at {step_time.BOARD_SHARE:.0%} and "
            f"{step_time.HOST_WATTS:g} W for the rest; {found.inputs.price:g} per kWh; "
            "'per h': nats gained per extra hour against the row above"
        )

    def memory(self, found: Plan) -> None:
        fit, batch = found.fit, found.inputs.config.data.micro_batch
        self.head(f"Memory at micro-batch {batch}, GiB")
        names = ("parameters", "gradients", "optimizer", "activations", "logits", "workspace")
        drawn = table(*names, "total", "with remat")
        held = [getattr(fit.need, name) / GIB for name in names]
        drawn.add_row(*(f"{gib:.2f}" for gib in held), f"{fit.need.total / GIB:.2f}", f"{fit.remat.total / GIB:.2f}")
        self.show(drawn)
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
            self.line(f"{name.replace('_', ' ')}: −{gain.nats:.3f} nats, {formatting.format_flops(gain.flops)} in all")
        for name, loss in found.elsewhere.items():
            self.line(f"on {name} the same run would end at about {loss:.2f}, in nats of that text")
        drawn = table("nearest published runs", "corpus", "params", "tokens", "loss", left=2)
        for run in found.nearest:
            what = f"{run.what} [{run.source}]"
            drawn.add_row(
                Text(what),
                run.corpus,
                formatting.format_count(run.parameters),
                formatting.format_count(run.tokens),
                f"{run.loss:.3f}",
            )
        self.show(drawn)

    def plot(self, found: Plan) -> None:
        lines = plot.terminal(found, WIDTH - 2)
        if lines:
            self.head("Expected loss against hours, each length annealed")
            self._out.print(Text(lines))

    def choice(self, choice: Choice) -> None:
        self.head(f"For {choice.goal}: the frontier")
        drawn = table("", "params", "layers", "width", "steps", "tokens", "D/N", "time", "kWh", "loss", left=1)
        for one in choice.frontier:
            model, row = one.config.model, one.row
            drawn.add_row(
                "→" if one is choice.best else "",
                formatting.format_count(parameters(model)),
                str(model.n_layer),
                str(model.n_embd),
                f"{row.max_iters:,}",
                formatting.format_count(row.tokens),
                f"{one.ratio:.0f}",
                formatting.format_hours(row.seconds),
                formatting.format_number(row.energy_kwh, 1),
                f"{row.loss:.3f}" + ("*" if row.expectation.outside else ""),
            )
        self.show(drawn)
        config = choice.best.config
        self.line(
            f"chosen: micro-batch {config.data.micro_batch} × {config.data.accum}, {config.optim.schedule} from "
            f"{config.optim.learning_rate:g} to {config.optim.min_lr:g} after {config.optim.warmup_steps:,} steps of "
            "warmup; * lies outside the law's fitted range"
        )

    def claims(self, claims: Sequence[Claim]) -> None:
        self.head("Earlier claims")
        drawn = table("claimed", "here", "so", left=3)
        for claim in claims:
            drawn.add_row(*map(Text, (claim.claim, claim.here, claim.verdict)))
        self.show(drawn)

    def sentences(self, title: str, sentences: Sequence[str]) -> None:
        if sentences:
            self.head(title)
        for sentence in sentences:
            self.line(sentence)
