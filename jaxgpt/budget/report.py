"""The plan as a report: printed, written as a page and dumped as JSON from the same object."""

from dataclasses import replace

from jaxgpt.budget import plot, query, step_time, tokens
from jaxgpt.budget.memory import GIB
from jaxgpt.budget.plan import Plan, Row
from jaxgpt.budget.recommend import Recommendation
from jaxgpt.budget.scaling_law import FITTED_RATIO
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
    format_rough_duration,
    format_signed,
    pluralize,
)
from jaxgpt.utils.report import Block, Command, Figure, Items, Paragraph, Report, Section, Table

SOFTWARE_NAMES = {"jaxgpt": "jaxgpt", "nanogpt": "nanoGPT-class software"}
USED_FRACTION = 0.9  # of a goal's time or energy: a run that takes less leaves a rest worth a sentence
MANY_STEPS = 100_000_000  # written in millions
NEIGHBORS = 3  # of the best candidate, on a small screen
MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "workspace")


def plan_report(planned: Plan, advice: Recommendation, result: SearchResult | None = None) -> Report:
    """Summary, tables, figure, recommendations and warnings of a plan; `result` is the search that chose its run."""
    return Report(
        title=f"Plan of {planned.inputs.name}",
        summary=tuple(_summary(planned, advice.advised, result)),
        sections=(
            _command_section(planned, result),
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


def brief_report(planned: Plan, advice: Recommendation, result: SearchResult | None = None) -> Report:
    """The part of a plan that fits a terminal of 24 lines; `plan_report` has the complete one."""
    full = plan_report(planned, advice, result)
    sections = [_command_section(planned, result)]
    if result:
        sections.append(_search_section(result, NEIGHBORS))
    else:
        sections.append(Section("By length", tuple(_length_blocks(planned)[:1])))
    more = "" if not planned.warnings else f" and {pluralize(len(planned.warnings), 'warning')}"
    hint = f"--verbose shows memory, step time, the parts of the loss{more}."
    sections.append(Section("Recommendations", (Items(advice.first_sentences), Paragraph(hint))))
    return replace(full, sections=tuple(sections))


def _command_section(planned: Plan, result: SearchResult | None) -> Section:
    command = "" if result else planned.inputs.command
    return Section("To train it", (Command(command),) if command else ())


def _summary(planned: Plan, advised: Row, result: SearchResult | None) -> list[str]:
    """What a reader came for: time and loss of the run to train, then its tokens, energy and memory."""
    fit = planned.fit
    facts = [f"{format_count(advised.tokens)} tokens"]
    if advised.epochs is not None:
        facts.append(f"{_short(advised.epochs, 0 if advised.epochs >= 10 else 1)} epochs")
    if advised.energy_kwh is not None:
        facts.append(f"{_short(advised.energy_kwh, 1)} kWh")
    if fit.usable_gib is not None:
        batch = planned.inputs.config.data.micro_batch // planned.inputs.gpus
        fits = "" if fit.fits else ", which does not fit"
        facts.append(f"{fit.memory.total / GIB:.1f} of {fit.usable_gib:.1f} GiB at micro-batch {batch:,}{fits}")
    sentences = [
        _headline(planned, advised, result),
        f"{'; '.join(facts)}. Losses are in nats per token, intervals 80 %.{_bits(planned, advised)}",
    ]
    sentences.append(_recipe_warning(planned, advised))
    if planned.inputs.calibration:
        sentences += planned.inputs.calibration.notes
    if result:
        sentences += [_unused_time(result), _describe(result)]
    return [sentence for sentence in sentences if sentence]


def _recipe_warning(planned: Plan, advised: Row) -> str:
    """That the learning rate is far from a tuned one or the warmup long, which costs loss; empty if neither is."""
    recipe = query.config_recipe(planned.inputs.config, advised.total_steps)
    costly = [text for text in recipe.differences if text.startswith(("a peak learning rate", "a warmup"))]
    return f"Unlike the runs behind the forecast, this one has {' and '.join(costly)}." if costly else ""


def _headline(planned: Plan, advised: Row, result: SearchResult | None) -> str:
    """`Train 20,000 steps: about 29 h on RTX 4070 (21 h to 40 h), validation loss 3.53 (3.48 to 3.58) on fineweb.`"""
    millions = planned.model.parameters / 1e6
    size = f"{millions:.0f}M" if millions >= 10 else f"{millions:.1f}M"
    model = f"a {size} model for " if result or planned.inputs.command else ""
    instead = "" if advised is planned.last else f", not {planned.last.total_steps:,}"
    time = _headline_time(planned, advised)
    corpus = planned.inputs.corpus.name
    on = "an unknown corpus" if corpus == "unknown" else corpus
    loss = f"validation loss {advised.loss:.2f} ({advised.loss_low:.2f} to {advised.loss_high:.2f}) on {on}"
    if not advised.prediction.is_informative:
        loss = "no loss can be predicted so far from published runs"
    return f"Train {model}{pluralize(advised.total_steps, 'step')}{instead}: {time}, {loss}."


def _bits(planned: Plan, advised: Row) -> str:
    """For another tokenizer than GPT-2's, the loss in bits per byte, and what the conversion was derived from."""
    scale = tokens.config_scale(planned.inputs.config)
    if not scale.note or not advised.prediction.is_informative:
        return ""
    known = "by" if "bytes per token" in scale.note else "assumed from"
    reason = scale.note.rpartition(": ")[2]
    return f" The loss is {scale.bits_per_byte(advised.loss):.2f} bits per byte, {known} {reason}."


def _headline_time(planned: Plan, row: Row) -> str:
    """`about 29 h on RTX 4070 (21 h to 40 h)`, with the reason of a device that is only assumed."""
    device = planned.inputs.device
    gpus = planned.inputs.gpus
    where = device.name if device else "this machine's CPU"
    if gpus > 1:
        where = f"{gpus} × {where}"
    if planned.inputs.device_reason.startswith("assumed"):
        where += f", {planned.inputs.device_reason}"
    if row.seconds is None or row.seconds_low is None or row.seconds_high is None:
        return "how long that takes must be measured (--measure)"
    precision = max((row.seconds_high - row.seconds_low) / 10, row.seconds / 20)
    durations = (row.seconds, row.seconds_low, row.seconds_high)
    middle, low, high = (format_rough_duration(seconds, precision) for seconds in durations)
    return f"about {middle} on {where} ({low} to {high})"


def _unused_time(result: SearchResult) -> str:
    """That and why the rest of the goal's time or energy is not used; empty if the run uses it."""
    row = result.best.row
    goal = result.goal
    used, unit, wanted = (row.seconds or 0.0) / 3600, "h", goal.hours
    if goal.kwh is not None:
        used, unit, wanted = row.energy_kwh or 0.0, "kWh", goal.kwh
    if wanted is None or used > USED_FRACTION * wanted:
        return ""
    rest = float(f"{wanted - used:.2g}")
    number = f"{rest:,.0f}" if rest >= 10 else f"{rest:g}"
    return (
        f"The other {number} {unit} are not used: after {format_number(row.epochs, 0)} epochs of this data, no longer "
        f"run and no other size tried, with {FITTED_RATIO:.0f} tokens per parameter or more, is expected to end lower. "
        "More data would help."
    )


def _describe(result: SearchResult) -> str:
    config = result.best.config
    return (
        f"{config.model.n_layer} layers of width {config.model.n_embd}, micro-batch {config.data.micro_batch} × "
        f"{config.data.accum}, {config.optim.schedule} from {config.optim.learning_rate:g} to {config.optim.min_lr:g} "
        f"after {pluralize(config.optim.warmup_steps, 'step')} of warmup."
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
        return f"cpu ({reason})"
    figures = f"{device.tflops:g} TFLOP/s bf16, {device.bandwidth:g} GB/s, {device.memory:g} GiB, {device.watts:g} W"
    count = planned.inputs.gpus
    several = f"{count} × " if count > 1 else ""
    return f"{several}{device.name} ({reason}): {figures}{' each' if several else ''}"


def _length_blocks(planned: Plan) -> list[Block]:
    columns = ("steps", "tokens", "epochs", "EFLOP", "time", "80 %", "kWh", "cost", "loss", "80 %", "Δloss/h")
    blocks: list[Block] = [
        Table(columns, tuple(_length_cells(row) for row in planned.rows)),
        Paragraph(
            "Each row is a run of its own whose learning rate decays until its end. Time, energy and cost are "
            f"jaxgpt's, with evaluations and start; the board at {step_time.BOARD_FRACTION:.0%} of its power and "
            f"{step_time.HOST_WATTS:g} W for the rest; {planned.inputs.price:g} per kWh. Δloss/h: change of the "
            "loss per extra hour compared with the row above."
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
        gain = format_signed(-row.gain_per_hour, 4 if abs(row.gain_per_hour) < 1 else 0)
    steps = row.total_steps
    return (
        f"{steps:,}" if steps < MANY_STEPS else format_count(steps),
        format_count(row.tokens),
        _short(row.epochs),
        _exaflops(row.flops),
        format_hours(row.seconds),
        format_hours_range(row.seconds_low, row.seconds_high, row.seconds),
        _short(row.energy_kwh, 1),
        _short(row.cost),
        f"{row.loss:.3f}",
        format_loss_range(row.loss_low, row.loss_high),
        gain,
    )


def _exaflops(flops: float) -> str:
    """FLOPs in EFLOP, to three digits: `3.15`, `0.0002`, `157k`."""
    value = flops / 1e18
    return f"{value:.3g}" if 0.01 <= value < 999.5 else _short(value)


def _short(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals, none from 1,000 on (`345k`); more for a smaller one than they can show."""
    if value is not None and value >= 10_000:
        return f"{value / 1000:,.0f}k"
    if value is not None and value >= 1000:
        return f"{value:,.0f}"
    if value is not None and 0 < value < 0.5 * 10**-digits:
        return f"{float(f'{value:.1g}'):f}".rstrip("0").rstrip(".") or "0"
    return format_number(value, digits)


def _memory_blocks(planned: Plan) -> list[Block]:
    fit = planned.fit
    cells = [f"{getattr(fit.memory, part) / GIB:.2f}" for part in MEMORY_PARTS]
    totals = (f"{fit.memory.total / GIB:.2f}", f"{fit.memory_with_remat.total / GIB:.2f}")
    blocks: list[Block] = [Table((*MEMORY_PARTS, "total", "with remat"), ((*cells, *totals),))]
    text = (
        f"GiB per device, at {planned.inputs.config.data.micro_batch // planned.inputs.gpus:,} sequences of the "
        "micro-batch. With remat: --model.remat blocks, which recomputes each block's activations in the backward pass."
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
        texts.append(f"{name.replace('_', ' ')}: {format_signed(-gain.nats)} nats, {format_flops(gain.flops)} in all")
    for name, loss in planned.loss_on_other_corpora.items():
        texts.append(f"on {name} the same run would end at about {loss:.2f}, in nats of that text")
    rows = []
    for run in planned.nearest_runs:
        description = f"{run.description} [{run.source}]"
        sizes = (format_count(run.parameters), format_count(run.tokens), f"{run.loss:.3f}")
        rows.append((description, run.corpus, *sizes))
    nearest = Table(("nearest published runs", "corpus", "params", "tokens", "loss"), tuple(rows))
    return [Items(tuple(texts)), nearest]


def _search_section(result: SearchResult, neighbors: int | None = None) -> Section:
    """The candidates; only `neighbors` smaller and larger ones than the best if a number is given."""
    rows = []
    best = next(n for n, candidate in enumerate(result.candidates) if candidate is result.best)
    first, end = (0, None) if neighbors is None else (max(0, best - neighbors), best + neighbors + 1)
    for candidate in result.candidates[first:end]:
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
