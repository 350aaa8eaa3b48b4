"""The plan as one HTML page: the same parts as on the terminal, and a plot."""

from collections.abc import Iterable, Sequence

from jaxgpt.budget import plot
from jaxgpt.budget.claims import Claim
from jaxgpt.budget.memory import GIB
from jaxgpt.budget.plan import Plan
from jaxgpt.budget.recommend import Recommendation, format_tokens
from jaxgpt.budget.search import Choice
from jaxgpt.budget.text import row_cells
from jaxgpt.config.model_size import parameters
from jaxgpt.utils import formatting
from jaxgpt.utils import html as report
from jaxgpt.utils.html import Block


def page(found: Plan, advice: Recommendation, claims: Sequence[Claim], choice: Choice | None) -> str:
    """The whole report."""
    blocks = [*_opening(found), *_rows(found), *_plot(found)]
    blocks += [report.heading("What to do"), *(report.paragraph(text) for text in advice.sentences)]
    blocks += [*(_choice(choice) if choice else ()), *_memory(found), *_loss(found), *_pace(found)]
    if claims:
        cells = [(claim.claim, claim.here, claim.verdict) for claim in claims]
        blocks += [report.heading("Earlier claims"), report.table(("claimed", "here", "so"), cells)]
    if found.warnings:
        blocks += [report.heading("Beware"), *(report.paragraph(text) for text in found.warnings)]
    return report.page(f"Plan of {found.inputs.name}", blocks)


def _opening(found: Plan) -> Iterable[Block]:
    facts, inputs, last = found.facts, found.inputs, found.last
    device = inputs.device.name if inputs.device else "a CPU"
    between = formatting.format_hours_range(last.seconds_low, last.seconds_high, last.seconds)
    yield report.paragraph(
        f"{facts.parameters / 1e6:.2f}M parameters ({facts.non_embedding_parameters / 1e6:.2f}M outside embedding and "
        f"head) on {device}: {last.max_iters:,} steps read {format_tokens(last.tokens)} tokens, take "
        f"{formatting.format_hours(last.seconds)} ({between}) and end at a validation loss of {last.loss:.2f} "
        f" ({last.loss_low:.2f} to {last.loss_high:.2f}) on {inputs.corpus.name} "
        f"({inputs.corpus_why}). Intervals hold 80 %."
    )


def _rows(found: Plan) -> Iterable[Block]:
    yield report.heading("By length")
    header = ("steps", "tokens", "epochs", "EFLOP", "time", "80 %", "kWh", "cost", "loss", "80 %", "gain per hour")
    yield report.table(header, [row_cells(row, digits=3) for row in found.rows])
    yield report.paragraph(f"Different tokens: {found.inputs.tokens.source}. {found.inputs.price:g} per kWh.")


def _plot(found: Plan) -> Iterable[Block]:
    if "jaxgpt" not in found.paces:
        return
    with report.figure("Expected loss of runs that are annealed at their own end; the band holds 80 %.") as figure:
        plot.draw(found, figure.axes)
    yield figure.block


def _memory(found: Plan) -> Iterable[Block]:
    fit = found.fit
    yield report.heading("Memory")
    names = ("parameters", "gradients", "optimizer", "activations", "logits", "workspace")
    cells = [f"{getattr(fit.need, name) / GIB:.2f}" for name in names]
    total = (f"{fit.need.total / GIB:.2f}", f"{fit.remat.total / GIB:.2f}")
    yield report.table((*(f"{name}, GiB" for name in names), "total", "with remat"), [(*cells, *total)])
    if fit.usable_gib is not None:
        rows = [(n, f"{gib:.2f}", "fits" if fits else "does not fit") for n, gib, fits in fit.table]
        yield report.table(("micro-batch", "GiB", f"of {fit.usable_gib:.1f} GiB usable"), rows)


def _loss(found: Plan) -> Iterable[Block]:
    expected = found.last.expectation
    yield report.heading("Loss, taken apart")
    yield report.table(tuple(expected.terms), [[f"{value:.3f}" for value in expected.terms.values()]])
    rows = [
        (name.replace("_", " "), f"{g.nats:.3f}", formatting.format_flops(g.flops)) for name, g in found.gains.items()
    ]
    yield report.table(("change", "gain, nats", "whole run"), rows)
    runs = [
        (
            run.what,
            run.corpus,
            formatting.format_count(run.parameters),
            formatting.format_count(run.tokens),
            f"{run.loss:.3f}",
            run.source,
        )
        for run in found.nearest
    ]
    yield report.table(("nearest published run", "corpus", "parameters", "tokens", "loss", "source"), runs)


def _pace(found: Plan) -> Iterable[Block]:
    yield report.heading("Pace")
    rows = [
        (name, f"{pace.seconds:.3g}", f"{pace.low:.3g}–{pace.high:.3g}", pace.why) for name, pace in found.paces.items()
    ]
    yield report.table(("software", "s per step", "80 %", "rests on"), rows)
    kernels = found.paces["jaxgpt"].kernels if "jaxgpt" in found.paces else ()
    if kernels:
        parts = [
            (k.name, f"{k.flops / 1e12:,.1f}", f"{k.bytes / 1e9:,.1f}", f"{1e3 * k.seconds:,.0f}") for k in kernels
        ]
        yield report.table(("kernels of a step", "TFLOP", "GB", "ms at best"), parts)


def _choice(choice: Choice) -> Iterable[Block]:
    yield report.heading(f"Chosen for {choice.goal}")
    rows = [
        (
            "chosen" if one is choice.best else "",
            formatting.format_count(parameters(one.config.model)),
            f"{one.config.model.n_layer} × {one.config.model.n_embd}",
            f"{one.row.max_iters:,}",
            formatting.format_count(one.row.tokens),
            formatting.format_hours(one.row.seconds),
            f"{one.row.loss:.3f}",
        )
        for one in choice.frontier
    ]
    yield report.table(("", "parameters", "layers × width", "steps", "tokens", "time", "loss"), rows)
