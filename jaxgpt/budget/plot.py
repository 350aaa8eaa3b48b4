"""Expected loss against hours, with its interval: as characters for a terminal, through matplotlib for a page."""

from typing import TYPE_CHECKING

from jaxgpt.budget.plan import Plan, Row, make_row
from jaxgpt.utils.report.svg import BLUE, NAVY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 48
TEXT_HEIGHT = 12
LABEL_WIDTH = 7
MIN_POINTS = 8


def loss_curve(planned: Plan, points: int = POINTS) -> list[Row]:
    """Runs from a tenth of the longest length, or three warmups, up; empty where the step time is unknown."""
    time = planned.step_times.get("jaxgpt")
    if time is None:
        return []
    longest = planned.last.total_steps
    warmup_fraction = planned.inputs.config.optim.warmup_steps / longest
    first = min(max(0.1, 3 * warmup_fraction), 0.5)
    fractions = [first + (1 - first) * n / (points - 1) for n in range(points)]
    lengths = sorted({max(1, round(longest * fraction)) for fraction in fractions})
    return [make_row(planned.inputs, time, steps) for steps in lengths]


def draw_text(planned: Plan, width: int) -> str:
    """The curve as lines of text: `•` the expectation, `·` the 80 % interval, the axis in hours below."""
    rows = loss_curve(planned, width - LABEL_WIDTH)
    if len(rows) < MIN_POINTS:
        return ""
    top = max(row.loss_high for row in rows)
    bottom = min(row.loss_low for row in rows)
    cells = [[" "] * len(rows) for _ in range(TEXT_HEIGHT)]

    def line_of(loss: float) -> int:
        line = round((top - loss) / max(top - bottom, 1e-9) * (TEXT_HEIGHT - 1))
        return min(max(line, 0), TEXT_HEIGHT - 1)

    for column, row in enumerate(rows):
        for line in range(line_of(row.loss_high), line_of(row.loss_low) + 1):
            cells[line][column] = "·"
        cells[line_of(row.loss)][column] = "•"
    lines = []
    for number, line_cells in enumerate(cells):
        loss = top - (top - bottom) * number / (TEXT_HEIGHT - 1)
        lines.append(f"{loss:5.2f} │" + "".join(line_cells).rstrip())
    return "\n".join([*lines, " " * 6 + "└" + "─" * len(rows), _time_axis(rows)])


def _time_axis(rows: list[Row]) -> str:
    """Hours at the left, in the middle and at the right."""
    seconds = [rows[n].seconds or 0.0 for n in (0, len(rows) // 2, -1)]
    unit, unit_seconds = ("h", 3600) if seconds[-1] >= 7200 else ("min", 60)
    left, middle, right = (f"{value / unit_seconds:.1f} {unit}" for value in seconds)
    start = (" " * LABEL_WIDTH + left).ljust(LABEL_WIDTH + len(rows) // 2 - len(middle) // 2)
    return start + middle.ljust(len(rows) - len(rows) // 2 + len(middle) // 2 - len(right)) + right


def draw_axes(planned: Plan, axes: "Axes") -> None:
    """The curve on matplotlib axes, with the plan's rows as points."""
    rows = loss_curve(planned)
    hours = [(row.seconds or 0.0) / 3600 for row in rows]
    axes.fill_between(hours, [r.loss_low for r in rows], [r.loss_high for r in rows], color=BLUE, alpha=0.15, lw=0)
    axes.plot(hours, [row.loss for row in rows], color=BLUE)
    for row in planned.rows:
        point = ((row.seconds or 0.0) / 3600, row.loss)
        axes.plot(*point, "o", color=NAVY, ms=5)
        axes.annotate(f"{row.total_steps:,}", point, (0, 8), textcoords="offset points")
    axes.set_xlabel("hours, with evaluations and start")
    axes.set_ylabel("validation loss, nats per token")
