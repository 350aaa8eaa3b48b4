"""The result of a sweep as a report: the best values, a table of all, and figures."""

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxgpt.config import Config
from jaxgpt.config.command_line import changed_options
from jaxgpt.config.files import load_config
from jaxgpt.config.options import format_value
from jaxgpt.errors import ConfigError
from jaxgpt.runs.folder import RunFolder
from jaxgpt.sweep.grid import Varied, describe, nest
from jaxgpt.sweep.results import Point, evaluations, step_seconds
from jaxgpt.utils.formatting import pluralize
from jaxgpt.utils.report import Block, Command, Figure, Paragraph, Report, Section, Table
from jaxgpt.utils.report.svg import BLUE, GRAY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIGNIFICANT = 2.0  # standard errors of a difference
WIDE_RANGE = 5.0  # largest over smallest value, from which an axis is logarithmic


def build_report(name: str, config_name: str, varied: Sequence[Varied], points: Sequence[Point]) -> Report:
    """The report of a sweep whose `points` are sorted, the best first, which has a loss."""
    labels = [field.label for field in varied]
    best = points[0]
    seeds = len(best.trials)
    summary = [f"The best: {describe(labels, best.values)}, with a loss of {_margin(labels, points)}."]
    if seeds == 1:
        summary.append("With one seed each, what another seed would change is not known: --seeds 3 measures it.")
    summary += [text for index, field in enumerate(varied) if (text := _edge(field, index, best))]
    finished = sum(point.loss is not None for point in points)
    if finished < len(points):
        summary.append(f"{finished} of {pluralize(len(points), 'setting')} finished; for the others see the table.")
    sections = (
        Section("Settings, the best first", (_table(labels, points), *_figures(varied, points))),
        Section("Next", _next(name, config_name, best.trials[0].config)),
    )
    return Report(f"Sweep {name}", tuple(summary), sections, {"version": 1, **_data(labels, points)})


def _margin(labels: Sequence[str], points: Sequence[Point]) -> str:
    """The best loss, and by how much it beats the next one relative to the noise."""
    best = points[0]
    loss = f"{_number(best.loss)}{_plus_minus(best)}"
    if len(points) == 1 or points[1].loss is None or best.loss is None:
        return f"{loss}; no other setting finished"
    gain = points[1].loss - best.loss
    text = f"{loss}, {gain:.4f} lower than the next ({describe(labels, points[1].values)})"
    if best.standard_error is None or points[1].standard_error is None:
        return text
    error = math.hypot(best.standard_error, points[1].standard_error)
    if gain < SIGNIFICANT * error:
        return f"{text}, which is within the noise: the difference has a standard error of {error:.4f}"
    return f"{text}, which is {gain / error:.1f} times the standard error of the difference"


def _edge(field: Varied, index: int, best: Point) -> str:
    """Which value to add if the best one is the largest or smallest of a numeric field; else an empty text."""
    numbers = sorted(value for value in field.values if isinstance(value, int | float) and not isinstance(value, bool))
    value = best.values[index]
    if len(numbers) < 2 or len(numbers) < len(field.values) or value not in (numbers[0], numbers[-1]):
        return ""
    which, neighbor = ("largest", numbers[-2]) if value == numbers[-1] else ("smallest", numbers[1])
    text = f"{field.label} {value:g} is the {which} value of the sweep, so that a better one may lie beyond it"
    if not value or not neighbor:
        return f"{text}."
    beyond = float(f"{value * value / neighbor:.1g}")
    added = round(beyond) if isinstance(value, int) else beyond
    try:
        best.trials[0].config.replace(nest({field.label: added}))
    except ConfigError:
        return f"{text}."
    return f"{text}: add {added:g}; the same command then trains only what is new."


def _table(labels: Sequence[str], points: Sequence[Point]) -> Table:
    columns = ("loss", "±", *labels, "s per step", "note")
    rows = []
    for point in points:
        seconds = step_seconds(point.trials[0])
        error = "–" if point.loss is None or point.standard_error is None else f"{point.standard_error:.4f}"
        values = [" ".join(format_value(value)) for value in point.values]
        rows.append((_number(point.loss), error, *values, "–" if seconds is None else f"{seconds:.3g}", point.note))
    return Table(columns, tuple(rows))


def _number(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


def _plus_minus(point: Point) -> str:
    """The error of a loss with what it is of."""
    if point.standard_error is None:
        return ""
    source = f"over {len(point.trials)} seeds" if len(point.trials) > 1 else "of the evaluation"
    return f" ± {point.standard_error:.4f} (standard error {source})"


def _next(name: str, config_name: str, best: Config) -> tuple[Block, ...]:
    """The best trial, and the command that trains its config."""
    base = load_config(config_name)
    own = {"run": {"name": f"{name[:95]}-best", "dir": base.run.dir, "sample_prompt": base.run.sample_prompt}}
    command = ["python", "-m", "jaxgpt.train", "--config", config_name, *changed_options(best.replace(own), base)]
    folder = RunFolder.from_config(best).path
    text = f"{folder} is a run like any other: sample, evaluate and diagnose take it. To train its config longer:"
    return Paragraph(text), Command(shlex.join(command))


def _figures(varied: Sequence[Varied], points: Sequence[Point]) -> Iterator[Figure]:
    for index, field in enumerate(varied):
        pairs = [(point.values[index], point) for point in points if point.loss is not None]
        if len({value for value, _ in pairs}) > 1 and all(type(value) in (int, float) for value, _ in pairs):
            yield _field_figure(field.label, pairs)
    yield _curves_figure(points)


def _field_figure(label: str, pairs: Sequence[tuple[float, Point]]) -> Figure:
    """The loss against the values of a field."""
    lowest: dict[float, Point] = {}
    for value, point in pairs:  # the best first
        lowest.setdefault(value, point)
    values = sorted(lowest)
    is_logarithmic = values[0] > 0 and values[-1] / values[0] >= WIDE_RANGE

    def draw(axes: "Axes") -> None:
        axes.plot(*zip(*((value, point.loss) for value, point in pairs)), "o", ms=4, color=GRAY)
        losses = [lowest[value].loss for value in values]
        errors = [lowest[value].standard_error or 0.0 for value in values]
        axes.errorbar(values, losses, yerr=errors, fmt="o-", ms=5, lw=1.4, color=BLUE)  # type: ignore[arg-type]
        axes.set(xlabel=label, ylabel="nats per token", xscale="log" if is_logarithmic else "linear")

    return Figure(f"Final loss by {label}: the line joins the best at each value, with standard errors.", draw)


def _curves_figure(points: Sequence[Point]) -> Figure:
    """The losses of the first seed of each point over its steps."""
    curves = [[(step, loss) for step, loss, _ in evaluations(point.trials[0]) if step] for point in points]

    def draw(axes: "Axes") -> None:
        for curve in reversed(curves[1:]):
            if curve:
                axes.plot(*zip(*curve), "-", lw=1.0, color=GRAY)
        axes.plot(*zip(*curves[0]), "o-", ms=4, lw=1.4, color=ORANGE, label="the best")
        axes.set(xlabel="steps", ylabel="nats per token")
        axes.legend(frameon=False)

    return Figure("Loss over the steps of each setting.", draw, height=3.6)


def _data(labels: Sequence[str], points: Sequence[Point]) -> dict[str, Any]:
    """The table as JSON values."""
    settings = [
        {
            "values": dict(zip(labels, point.values, strict=True)),
            "loss": point.loss,
            "standard_error": point.standard_error,
            "note": point.note,
            "trials": {
                trial.name: {"loss": outcome.loss, "note": outcome.note, "forecast": outcome.forecast}
                for trial, outcome in zip(point.trials, point.outcomes, strict=True)
            },
        }
        for point in points
    ]
    return {"best": settings[0], "settings": settings}
