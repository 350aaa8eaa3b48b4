"""`plan.json` in a run's folder: written when the run starts, compared with what the run did when it ends."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.budget import devices, query
from jaxgpt.budget.plan import Inputs, make_plan
from jaxgpt.budget.query import TokenCount
from jaxgpt.budget.recommend import recommend
from jaxgpt.budget.report import plan_report
from jaxgpt.budget.scaling_law import MAX_INTERVAL
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.runs import log as runlog
from jaxgpt.runs.folder import RunFolder
from jaxgpt.utils import formatting
from jaxgpt.utils.files import read_json, write_text
from jaxgpt.utils.report import Report, to_json

NAME = "plan.json"


@dataclass(frozen=True, kw_only=True)
class ComparisonLine:
    """One quantity of a run as planned and as it was; `inside` tells whether it is in the planned interval."""

    quantity: str
    planned: str
    actual: str
    inside: bool | None


def write_plan(folder: RunFolder, config: Config, tokens: int, device: str, gpus: int = 1) -> None:
    """Writes the `plan.json` of a run on `gpus` devices unless it has one.

    A plan that fails costs a warning, never the run.
    """
    path = folder.path / NAME
    if path.exists():
        return
    try:
        values = to_json(plan_of_run(config, count_tokens(config, tokens), device, gpus))
        write_text(path, json.dumps(values, indent=2) + "\n")
    except Exception as error:  # whatever it is, the run matters more than its plan
        runlog.warn(f"no {NAME}: {getattr(error, 'message', error)}")


def plan_of_run(config: Config, tokens: TokenCount, device: str, gpus: int = 1) -> Report:
    """The plan of `config` on `gpus` devices of that name (docs/budget.md)."""
    corpus, corpus_source = query.config_corpus(config)
    inputs = Inputs(
        config=config,
        name=config.run.name,
        device=devices.lookup(device),
        device_reason=device,
        gpus=gpus,
        lengths=(config.run.steps,),
        tokens=tokens,
        corpus=corpus,
        corpus_source=corpus_source,
    )
    planned = make_plan(inputs)
    return plan_report(planned, recommend(planned))


def count_tokens(config: Config, count: int) -> TokenCount:
    """What an audit of the run's data folder says, else all `count` tokens that the run has opened."""
    try:
        return query.count_tokens(Path(config.data.path), config.model.block_size)
    except JaxgptError:
        return TokenCount(unique=float(count), raw=float(count), source=f"the run's tokens in {config.data.path}")


def compare_with_actual(folder: RunFolder) -> list[ComparisonLine]:
    """The plan and what the run has done so far. Raises `ConfigError` C046 without its own plan and log."""
    try:
        values: dict[str, Any] = read_json(folder.path / NAME)
        row = values["rows"][-1]
        time = values["step_time"].get("jaxgpt")
        total_steps = int(row["total_steps"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        help = "train writes one when it starts a run"
        raise ConfigError("C046", f"'{folder.path}' has no readable {NAME}", help) from error
    if foreign := folder.foreign_fields(values.get("config")):
        message = f"{folder.path / NAME} is the plan of another run: {', '.join(foreign)}"
        raise ConfigError("C046", message, "put back the run's own file")
    if problem := folder.log_problem():
        raise ConfigError("C046", f"{folder.log_file}: {problem}", "put back the run's own file, or resume the run")
    records = runlog.read_log(folder.log_file) if folder.log_file.is_file() else []
    seconds_of_step = {}
    losses = []
    for record in records:
        if record.get("kind") == "step" and "seconds" in record:
            seconds_of_step[int(record["step"])] = float(record["seconds"])
        if record.get("kind") == "eval":
            losses.append(record.get("val_loss", record.get("train_loss")))
    steps = max(seconds_of_step, default=-1) + 1  # a fork starts after those of its parent
    lines = [ComparisonLine(quantity="steps", planned=f"{total_steps:,}", actual=f"{steps:,}", inside=None)]
    if steps:
        lines.append(_step_time_line(list(seconds_of_step.values()), time))
    if losses and isinstance(losses[-1], float):
        is_law_run = not folder.config().run.init_from  # the scaling law holds for random weights
        lines.append(_loss_line(losses[-1], row, finished=steps >= total_steps, is_law_run=is_law_run))
    return lines


def _step_time_line(seconds: list[float], time: dict[str, Any] | None) -> ComparisonLine:
    quantity = "seconds per step"
    median = statistics.median(seconds)
    if time is None:
        planned = "none (no data on this device)"
        return ComparisonLine(quantity=quantity, planned=planned, actual=f"{median:.3g}", inside=None)
    low = time["seconds_low"]
    high = time["seconds_high"]
    return ComparisonLine(
        quantity=quantity,
        planned=f"{time['seconds_per_step']:.3g} ({low:.3g} to {high:.3g})",
        actual=f"{median:.3g}; {formatting.format_hours(sum(seconds))} of training so far",
        inside=low <= median <= high,
    )


def _loss_line(loss: float, row: dict[str, Any], *, finished: bool, is_law_run: bool) -> ComparisonLine:
    quantity = "final loss"
    low = row["loss_low"]
    high = row["loss_high"]
    if not is_law_run or high - low > MAX_INTERVAL:
        reason = "too far outside the range of the scaling law" if is_law_run else "the run starts from given weights"
        planned = f"none ({reason})"
        return ComparisonLine(quantity=quantity, planned=planned, actual=f"{loss:.3f}", inside=None)
    return ComparisonLine(
        quantity=quantity,
        planned=f"{row['loss']:.3f} ({low:.2f} to {high:.2f})",
        actual=f"{loss:.3f}" + ("" if finished else " so far"),
        inside=low <= loss <= high if finished else None,
    )


def format_comparison(lines: list[ComparisonLine]) -> str:
    """The comparison as text."""
    words = {True: " (inside)", False: " (outside)", None: ""}
    rows = [f"  {line.quantity}: planned {line.planned}; actual {line.actual}{words[line.inside]}" for line in lines]
    return "\n".join(["plan and actual run:", *rows])


def final_comparison(folder: RunFolder) -> str:
    """The comparison as text; empty, after a warning, if it cannot be made: a run must not fail over its plan."""
    try:
        return format_comparison(compare_with_actual(folder))
    except Exception as error:
        runlog.warn(f"no comparison with the plan: {getattr(error, 'message', error)}")
        return ""
