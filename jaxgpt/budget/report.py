"""The plan as a report: printed, written as a page and dumped as JSON from the same object."""

from jaxgpt.budget import plot, step_time
from jaxgpt.budget.memory import GIB
from jaxgpt.budget.plan import Plan, Row
from jaxgpt.budget.recommend import Recommendation
from jaxgpt.budget.search import SearchResult
from jaxgpt.budget.to_json import plan_to_dict
from jaxgpt.config.model_size import parameters
from jaxgpt.utils.formatting import (
    format_count,
    format_flops,
    format_hours,
    format_hours_range,
    format_loss_range,
    format_number,
)
from jaxgpt.utils.report import Block, Figure, Items, Paragraph, Report, Section, Table

SOFTWARE_NAMES = {"jaxgpt": "jaxgpt", "nanogpt": "nanoGPT-class software"}
MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "workspace")


def plan_report(planned: Plan, advice: Recommendation, result: SearchResult | None = None) -> Report:
    """Summary, tables, figure, recommendations and warnings of a plan; `result` is the search that chose its run."""
    return Report(
        title=f"Plan of {planned.inputs.name}",
        summary=tuple(_summary(planned, result)),
        sections=(
            *([_search_section(result)] if result else []),
            Section("Run", tuple(_run_blocks(planned))),
            Section("By length", tuple(_length_blocks(planned))),
            Section("Recommendations", (Items(advice.sentences),)),
            Section("Memory", tuple(_memory_blocks(planned))),
            Section("Step time", tuple(_step_time_blocks(planned))),
            Section(f"Loss after {planned.last.total_steps:,} steps", tuple(_loss_blocks(planned))),
            Section("Warnings", (Items(planned.warnings),) if planned.warnings else ()),
        ),
        data=plan_to_dict(planned, advice, result),
    )


def _summary(planned: Plan, result: SearchResult | None) -> list[str]:
    """What a reader came for: time, loss and memory of the longest run."""
    last = planned.last
    device = planned.inputs.device
    fit = planned.fit
    sentences = []
    if result:
        sentences.append(f"The best run for {result.goal}: {_describe(result)}.")
    length = f"{last.total_steps:,} steps train on {format_count(last.tokens)} tokens"
    epochs = "" if last.epochs is None else f" ({last.epochs:.2f} epochs)"
    if last.seconds is None:
        sentences.append(f"{length}{epochs}; how long that takes must be measured (--measure).")
    else:
        time_range = format_hours_range(last.seconds_low, last.seconds_high, last.seconds)
        energy = "" if last.energy_kwh is None else f" and {last.energy_kwh:.1f} kWh"
        where = device.name if device else "this CPU"
        sentences.append(f"{length}{epochs} in {format_hours(last.seconds)} ({time_range}){energy} on {where}.")
    sentences.append(
        f"Predicted validation loss: {last.loss:.3f} nats per token ({last.loss_low:.2f} to {last.loss_high:.2f}) on "
        f"{planned.inputs.corpus.name}. Intervals are 80 % intervals."
    )
    if fit.usable_gib is not None:
        verb = "fits" if fit.fits else "does not fit"
        batch = planned.inputs.config.data.micro_batch
        sentences.append(
            f"A micro-batch of {batch:,} {verb}: {fit.memory.total / GIB:.1f} of {fit.usable_gib:.1f} GiB usable."
        )
    return sentences


def _describe(result: SearchResult) -> str:
    config = result.best.config
    return (
        f"{parameters(config.model) / 1e6:.1f}M parameters ({config.model.n_layer} layers of width "
        f"{config.model.n_embd}), micro-batch {config.data.micro_batch} × {config.data.accum}, {config.optim.schedule} "
        f"from {config.optim.learning_rate:g} to {config.optim.min_lr:g} after {config.optim.warmup_steps:,} steps of "
        "warmup"
    )


def _run_blocks(planned: Plan) -> list[Block]:
    model = planned.model
    inputs = planned.inputs
    six_n = 6 * model.parameters
    unique = inputs.tokens.source
    if inputs.tokens.unique is not None:
        unique = f"{format_count(inputs.tokens.unique)} ({unique})"
    return [
        Items(
            (
                f"{model.parameters / 1e6:.2f}M parameters without learned positions, "
                f"{model.non_embedding_parameters / 1e6:.2f}M of them outside embedding and head",
                f"{model.tokens_per_step:,} tokens per step; {model.flops_per_token / 1e6:.1f} MFLOP per token: 6N "
                f"{six_n / 1e6:.1f} + attention {(model.flops_per_token - six_n) / 1e6:.1f} "
                f"(without the causal half: {model.flops_per_token_causal / 1e6:.1f} in all)",
                f"device: {_describe_device(planned)}",
                f"corpus: {inputs.corpus.name} ({inputs.corpus_source}; {inputs.corpus.evidence})",
                f"unique tokens: {unique}",
            )
        )
    ]


def _describe_device(planned: Plan) -> str:
    device = planned.inputs.device
    reason = planned.inputs.device_reason
    if device is None:
        return f"cpu, to be measured ({reason})"
    figures = f"{device.tflops:g} TFLOP/s bf16, {device.bandwidth:g} GB/s, {device.memory:g} GiB, {device.watts:g} W"
    return f"{device.name} ({reason}): {figures}"


def _length_blocks(planned: Plan) -> list[Block]:
    columns = ("steps", "tokens", "epochs", "EFLOP", "time", "80 %", "kWh", "cost", "loss", "80 %", "per h")
    blocks: list[Block] = [
        Table(columns, tuple(_length_cells(row) for row in planned.rows)),
        Paragraph(
            "Each row is a run of its own whose learning rate decays until its end. Time, energy and cost are "
            f"jaxgpt's, with evaluations and start; the board at {step_time.BOARD_FRACTION:.0%} of its power and "
            f"{step_time.HOST_WATTS:g} W for the rest; {planned.inputs.price:g} per kWh. 'per h': nats gained per "
            "extra hour compared with the row above."
        ),
    ]
    if "jaxgpt" in planned.step_times:
        blocks.append(
            Figure(
                "Expected loss against hours, each run with a full decay; the band is the 80 % interval.",
                lambda axes: plot.draw_axes(planned, axes),
                as_text=lambda width: plot.draw_text(planned, width),
            )
        )
    return blocks


def _length_cells(row: Row) -> tuple[str, ...]:
    gain = ""
    if row.gain_per_hour is not None:
        gain = f"{row.gain_per_hour:.4f}" if row.gain_per_hour < 1 else f"{row.gain_per_hour:,.0f}"
    return (
        f"{row.total_steps:,}",
        format_count(row.tokens),
        format_number(row.epochs),
        f"{row.flops / 1e18:.3g}",
        format_hours(row.seconds),
        format_hours_range(row.seconds_low, row.seconds_high, row.seconds),
        format_number(row.energy_kwh, 1),
        format_number(row.cost),
        f"{row.loss:.3f}",
        format_loss_range(row.loss_low, row.loss_high),
        gain,
    )


def _memory_blocks(planned: Plan) -> list[Block]:
    fit = planned.fit
    cells = [f"{getattr(fit.memory, part) / GIB:.2f}" for part in MEMORY_PARTS]
    totals = (f"{fit.memory.total / GIB:.2f}", f"{fit.memory_with_remat.total / GIB:.2f}")
    blocks: list[Block] = [Table((*MEMORY_PARTS, "total", "with remat"), ((*cells, *totals),))]
    text = (
        f"GiB at micro-batch {planned.inputs.config.data.micro_batch:,}. With remat: --model.remat blocks, which "
        "recomputes each block's activations in the backward pass."
    )
    if fit.usable_gib is not None and planned.inputs.device is not None:
        desktop = " and a desktop" if planned.inputs.device.drives_screen else ""
        fitting = ", ".join(str(size.size) for size in fit.micro_batches if size.fits) or "none"
        text += (
            f" {fit.usable_gib:.1f} GiB are usable beside the driver{desktop}. Micro-batches that fit: {fitting}; the "
            f"largest is {fit.max_micro_batch} ({fit.max_micro_batch_with_remat} with remat)."
        )
    return [*blocks, Paragraph(text)]


def _step_time_blocks(planned: Plan) -> list[Block]:
    texts = []
    for software, time in planned.step_times.items():
        interval = f"{time.low:.3g} to {time.high:.3g}"
        texts.append(f"{SOFTWARE_NAMES[software]}: {time.seconds:.3g} s per step ({interval}); {time.basis}")
    return [Items(tuple(texts))] if texts else []


def _loss_blocks(planned: Plan) -> list[Block]:
    prediction = planned.last.prediction
    terms = " + ".join(f"{name} {value:.3f}" for name, value in prediction.terms.items())
    sigmas = ", ".join(f"{name} {value:.3f}" for name, value in prediction.sigmas.items() if value >= 0.0005)
    texts = [
        f"{planned.last.loss:.3f} = {terms}",
        f"standard deviation {prediction.sigma:.3f}: {sigmas}",
    ]
    for name, gain in planned.gains.items():
        texts.append(f"{name.replace('_', ' ')}: −{gain.nats:.3f} nats, {format_flops(gain.flops)} in all")
    for name, loss in planned.loss_on_other_corpora.items():
        texts.append(f"on {name} the same run would end at about {loss:.2f}, in nats of that text")
    rows = []
    for run in planned.nearest_runs:
        description = f"{run.description} [{run.source}]"
        sizes = (format_count(run.parameters), format_count(run.tokens), f"{run.loss:.3f}")
        rows.append((description, run.corpus, *sizes))
    nearest = Table(("nearest published runs", "corpus", "params", "tokens", "loss"), tuple(rows))
    return [Items(tuple(texts)), nearest]


def _search_section(result: SearchResult) -> Section:
    rows = []
    for candidate in result.candidates:
        model = candidate.config.model
        row = candidate.row
        rows.append(
            (
                "→" if candidate is result.best else "",
                format_count(parameters(model)),
                str(model.n_layer),
                str(model.n_embd),
                f"{row.total_steps:,}",
                format_count(row.tokens),
                f"{candidate.ratio:.0f}",
                format_hours(row.seconds),
                format_number(row.energy_kwh, 1),
                f"{row.loss:.3f}" + ("*" if row.prediction.outside else ""),
            )
        )
    columns = ("", "params", "layers", "width", "steps", "tokens", "D/N", "time", "kWh", "loss")
    note = Paragraph("D/N: tokens per parameter. * outside the scaling law's fitted range.")
    return Section(f"Runs for {result.goal}", (Table(columns, tuple(rows)), note))
