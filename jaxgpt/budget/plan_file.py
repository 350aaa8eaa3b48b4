"""The plan beside the run: what was promised at its start, and how it stands against what was done.

`plan.json` holds `schema.document` of the run's own config, device and data. `against` reads it beside `log.jsonl`.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.budget import devices, query
from jaxgpt.budget import to_json as schema
from jaxgpt.budget.plan import Inputs, plan
from jaxgpt.budget.query import Tokens
from jaxgpt.budget.recommend import recommend
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.runs import log as runlog
from jaxgpt.runs.folder import RunFolder
from jaxgpt.utils import formatting
from jaxgpt.utils.files import write_text

NAME = "plan.json"
NO_PROMISE = 1.0  # nats of interval beyond which an expected loss says nothing


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure of a run: promised, with its interval, and what happened."""

    what: str
    promised: str
    actual: str
    inside: bool | None


def make(config: Config, tokens: Tokens, device: str) -> dict[str, Any]:
    """The plan of `config` on the device of that name with the different tokens at hand."""
    held = devices.lookup(device)
    corpus, why = query.config_corpus(config, "")
    inputs = Inputs(
        config=config,
        name=config.run.name,
        device=held,
        device_why=device,
        iters=(config.run.steps,),
        tokens=tokens,
        corpus=corpus,
        corpus_why=why,
    )
    found = plan(inputs)
    return schema.document(found, recommend(found))


def write_plan(folder: RunFolder, config: Config, tokens: int, device: str) -> None:
    """Writes the run's `plan.json` unless it has one; a plan that fails costs a warning, never the run."""
    path = folder.path / NAME
    if path.exists():
        return
    try:
        write_text(path, json.dumps(make(config, _tokens(config, tokens), device), indent=2) + "\n")
    except Exception as error:  # whatever it is, the run is worth more than its plan
        runlog.warn(f"no {NAME}: {error}")


def _tokens(config: Config, count: int) -> Tokens:
    """What an audit of the run's data folder says, else all `count` tokens that the run has opened."""
    try:
        return query.count_tokens(Path(config.data.path), config.model.block_size)
    except JaxgptError:
        return Tokens(unique=float(count), raw=float(count), source=f"the run's tokens in {config.data.path}")


def compare_with_actual(folder: RunFolder) -> list[Line]:
    """Plan against actual, as far as the run has come. Raises `ConfigError` C046 if it has no plan."""
    try:
        promised: dict[str, Any] = json.loads((folder.path / NAME).read_text(encoding="utf-8"))
        row, pace = promised["rows"][-1], promised["pace"].get("jaxgpt")
        steps_planned = int(row["max_iters"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        help = "train writes one when it starts a run"
        raise ConfigError("C046", f"'{folder.path}' has no readable {NAME}", help) from error
    records = runlog.read_log(folder.log_file) if folder.log_file.is_file() else []
    steps = {int(r["step"]): float(r["seconds"]) for r in records if r.get("kind") == "step" and "seconds" in r}
    losses = [r.get("val_loss", r.get("train_loss")) for r in records if r.get("kind") == "eval"]
    lines = [Line(what="steps", promised=f"{steps_planned:,}", actual=f"{len(steps):,}", inside=None)]
    if steps:
        lines.append(_pace_line(list(steps.values()), pace))
    if losses and isinstance(losses[-1], float):
        lines.append(_loss_line(losses[-1], row, done=len(steps) >= steps_planned))
    return lines


def _pace_line(seconds: list[float], pace: dict[str, Any] | None) -> Line:
    actual = statistics.median(seconds)
    if pace is None:
        return Line(what="seconds per step", promised="not known for this device", actual=f"{actual:.3g}", inside=None)
    low, high = pace["seconds_low"], pace["seconds_high"]
    promised = f"{pace['seconds_per_step']:.3g} ({low:.3g} to {high:.3g})"
    whole = f"{actual:.3g}; {formatting.format_hours(sum(seconds))} of training so far"
    return Line(what="seconds per step", promised=promised, actual=whole, inside=low <= actual <= high)


def _loss_line(loss: float, row: dict[str, Any], *, done: bool) -> Line:
    if row["loss_high"] - row["loss_low"] > NO_PROMISE:
        what = "nothing, so far outside the runs that the law knows"
        return Line(what="loss at the end", promised=what, actual=f"{loss:.3f}", inside=None)
    promised = f"{row['loss']:.3f} ({row['loss_low']:.2f} to {row['loss_high']:.2f})"
    inside = row["loss_low"] <= loss <= row["loss_high"] if done else None
    return Line(
        what="loss at the end", promised=promised, actual=f"{loss:.3f}" + ("" if done else " so far"), inside=inside
    )


def format_comparison(lines: list[Line]) -> str:
    """The comparison as text."""
    words = {True: "inside", False: "outside", None: ""}
    rows = [f"  {line.what}: promised {line.promised}; {line.actual} {words[line.inside]}".rstrip() for line in lines]
    return "\n".join(["plan against actual:", *rows])


def final_comparison(folder: RunFolder) -> str:
    """`said(against(folder))`, or nothing where there is no plan."""
    try:
        return format_comparison(compare_with_actual(folder))
    except Exception as error:  # the end of a run is no place to fail over its plan
        runlog.warn(f"no plan against actual: {error}")
        return ""
