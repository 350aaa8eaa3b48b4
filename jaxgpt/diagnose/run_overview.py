"""What a run is and what it has reached: the first part of the page of a jaxgpt run."""

import shlex
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxgpt.budget import plan_file
from jaxgpt.config import Config
from jaxgpt.config.model_size import non_embedding_parameters, parameters
from jaxgpt.diagnose import figures
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.suggested_commands import train_command
from jaxgpt.errors import ConfigError
from jaxgpt.logs.reader import parse_finite, parse_step
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import read_log
from jaxgpt.runs.task_results import read_task_results
from jaxgpt.utils.files import read_json
from jaxgpt.utils.formatting import format_count, format_date, format_hours, format_loss
from jaxgpt.utils.report import Block, Code, Command, Paragraph, Section, Table

MAX_SAMPLES = 6
INSIDE = {True: " (inside the interval)", False: " (outside the interval)", None: ""}
ENDINGS = {"done": "all steps are done", "signal": "stopped by a signal"}

Record = Mapping[str, Any]


class RunOverview(NamedTuple):
    """The title of the run's page, the sentence on its result, and the sections about the run."""

    title: str
    result: str
    sections: tuple[Section, ...]


def describe_run(folder: RunFolder, diagnosis: Diagnosis) -> RunOverview:
    """The overview of the run in `folder`. Raises a `JaxgptError` if its log or config cannot be read."""
    records = read_log(folder.log_file)
    return RunOverview(
        title=f"Run {folder.path.resolve().name}",
        result=_result(records, diagnosis),
        sections=(
            Section("Plan and result", tuple(_plan_blocks(folder))),
            Section("Loss", tuple(figures.loss_figures(diagnosis))),
            Section("The run", tuple(_facts_blocks(folder, records, diagnosis))),
            Section("Throughput", tuple(figures.throughput_figure(diagnosis))),
            Section("Gradient norm", tuple(figures.grad_norm_figure(diagnosis))),
            Section("Tasks of lm-evaluation-harness", tuple(_task_blocks(folder))),
            Section("Samples", tuple(sample_blocks(records))),
        ),
    )


def _result(records: list[dict[str, Any]], diagnosis: Diagnosis) -> str:
    """The last loss, and after how many steps and how much training it was reached."""
    done = diagnosis.history.steps_done
    total = diagnosis.context.total_steps or done
    seconds = sum(step.seconds or 0.0 for step in diagnosis.history.steps)
    steps = f"all {done:,} steps" if done >= total else f"{done:,} of {total:,} steps"
    evaluations = [record for record in records if record.get("kind") == "eval"]
    evaluation = evaluations[-1] if evaluations else {}
    split = "val" if "val_loss" in evaluation else "train"
    loss = parse_finite(evaluation.get(f"{split}_loss"))
    if loss is None:
        return f"The run has done {steps} in {format_hours(seconds)} of training; no loss was evaluated."
    error = parse_finite(evaluation.get(f"{split}_standard_error"))
    bits = parse_finite(evaluation.get(f"{split}_bits_per_byte"))
    name = "validation" if split == "val" else "training"
    return (
        f"The {name} loss is {format_loss(loss)}"
        + ("" if error is None else f" ± {error:.3f}")
        + " nats per token"
        + ("" if bits is None else f" ({bits:.3f} bits per byte)")
        + f" after {steps}, {format_hours(seconds)} of training."
    )


def _plan_blocks(folder: RunFolder) -> Iterator[Block]:
    try:
        lines = plan_file.compare_with_actual(folder)
    except ConfigError:  # the run has no plan
        return
    rows = tuple((line.quantity, line.planned, line.actual + INSIDE[line.inside]) for line in lines)
    yield Table(("", "planned", "actual"), rows)


def _task_blocks(folder: RunFolder) -> Iterator[Block]:
    results = read_task_results(folder)
    if results:
        rows = tuple((f"{row.step:,}", row.task, row.metric, str(row), row.documents) for row in results)
        yield Table(("step", "task", "metric", "value", "on"), rows)


def _facts_blocks(folder: RunFolder, records: list[dict[str, Any]], diagnosis: Diagnosis) -> Iterator[Block]:
    config = folder.config()
    starts = [record for record in records if record.get("kind") == "start"]
    rows = [*_config_facts(config, _data_identity(folder)), *_process_facts(starts, records)]
    yield Table(("", ""), tuple(rows))
    command = train_command(diagnosis.history, diagnosis.context, {})
    fork = starts[0].get("fork") if starts else None
    if command and fork:
        command += f" --fork {shlex.quote(str(fork))}"
    if command:
        yield Paragraph("The command that trains it:")
        yield Command(command)


def _config_facts(config: Config, data: Record) -> Iterator[tuple[str, str]]:
    model, optim, batch = config.model, config.optim, config.data
    yield (
        "model",
        f"{model.architecture}, {model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, "
        f"context of {model.block_size:,} tokens",
    )
    outside = format_count(non_embedding_parameters(model))
    yield "parameters", f"{format_count(parameters(model))}, {outside} of them outside embeddings and head"
    tokens = f"{data.get('train_tokens', 0):,} tokens to train on, {data.get('val_tokens') or 0:,} for validation"
    yield "data", f"{batch.path}: {tokens}; tokenizer {data.get('tokenizer', 'unknown')}"
    accumulated = f" × {batch.accum} accumulated" if batch.accum > 1 else ""
    sequences = f"{batch.micro_batch} sequences × {model.block_size:,}{accumulated}"
    yield "batch", f"{config.tokens_per_step:,} tokens per step ({sequences})"
    total = config.tokens_per_step * config.run.steps
    epochs = total / data["train_tokens"] if data.get("train_tokens") else None
    repeats = "" if epochs is None else f", {epochs:.2g} epochs"
    yield "length", f"{config.run.steps:,} steps, {format_count(total)} tokens{repeats}"
    yield (
        "optimizer",
        f"{optim.optimizer}, learning rate {optim.learning_rate:g} to {optim.min_lr:g} ({optim.schedule}, "
        f"{optim.warmup_steps:,} warmup steps), weight decay {optim.weight_decay:g}",
    )


def _process_facts(starts: list[dict[str, Any]], records: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Where and when the run was trained, and why it ended."""
    if not starts:
        return
    first, last = starts[0], starts[-1]
    device = last.get("device") or {}
    yield "device", f"{device.get('count', 1)} × {device.get('kind', 'unknown')}"
    speeds = [parse_finite(record.get("tokens_per_second")) for record in records if record.get("kind") == "step"]
    known = [speed for speed in speeds if speed]
    if known:
        yield "throughput", f"{statistics.median(known):,.0f} tokens per second (median)"
    software = ", ".join(f"{name} {version}" for name, version in (last.get("versions") or {}).items())
    yield "software", software or "unknown"
    if first.get("fork"):
        yield "fork of", f"{first['fork']}, from step {parse_step(first.get('step')) or 0:,} on"
    yield "started", format_date(parse_finite(first.get("time")) or -1).removeprefix("on ")
    if len(starts) > 1:
        yield "resumed", ", ".join(f"at step {parse_step(start.get('step')) or 0:,}" for start in starts[1:])
    stop = records[-1] if records[-1].get("kind") == "stop" else {}
    reason = str(stop.get("reason", ""))
    detail = stop.get("detail")
    ending = ENDINGS.get(reason, reason or "still running, or killed")
    yield "end", f"stopped early: {detail}" if detail else ending


def sample_blocks(records: list[dict[str, Any]]) -> Iterator[Block]:
    """The texts that the run has sampled, at most six: the first, the last, and some between."""
    samples = [record for record in records if record.get("kind") == "sample"]
    count = min(len(samples), MAX_SAMPLES)
    shown = [samples[round(index * (len(samples) - 1) / max(count - 1, 1))] for index in range(count)]
    for sample in shown:
        yield Paragraph(f"After {parse_step(sample.get('step')) or 0:,} steps:", strong=True)
        yield Code(f"{sample.get('prompt', '')}{sample.get('text', '')}")


def _data_identity(folder: RunFolder) -> Record:
    """The run's `data.json`; empty if it cannot be read."""
    try:
        values = read_json(folder.data_file)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
