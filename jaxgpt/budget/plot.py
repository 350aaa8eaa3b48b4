"""Expected loss against hours, with its interval: for a terminal in characters, for a page through matplotlib."""

from typing import TYPE_CHECKING

from jaxgpt.budget import plan
from jaxgpt.budget.plan import Plan, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 48
HEIGHT = 12


def curve(found: Plan, points: int = POINTS) -> list[Row]:
    """Runs from a tenth of the longest length, or three warmups, up; empty where no pace is known."""
    pace = found.paces.get("jaxgpt")
    if pace is None:
        return []
    longest = found.last.max_iters
    first = min(max(0.1, 3 * found.inputs.config.optim.warmup_steps / longest), 0.5)
    lengths = sorted({max(1, round(longest * (first + (1 - first) * n / (points - 1)))) for n in range(points)})
    return [plan.row(found.inputs, pace, iters) for iters in lengths]


def terminal(found: Plan, width: int) -> str:
    """The curve as lines of text: `•` the expectation, `·` the 80 % interval, the axis in hours below."""
    label = 7
    rows = curve(found, width - label)
    if len(rows) < 8:
        return ""
    top, bottom = max(row.loss_high for row in rows), min(row.loss_low for row in rows)
    cells = [[" "] * len(rows) for _ in range(HEIGHT)]

    def line(loss: float) -> int:
        place = round((top - loss) / max(top - bottom, 1e-9) * (HEIGHT - 1))
        return min(max(place, 0), HEIGHT - 1)

    for column, row in enumerate(rows):
        for height in range(line(row.loss_high), line(row.loss_low) + 1):
            cells[height][column] = "·"
        cells[line(row.loss)][column] = "•"
    drawn = []
    for number, places in enumerate(cells):
        value = top - (top - bottom) * number / (HEIGHT - 1)
        drawn.append(f"{value:5.2f} │" + "".join(places).rstrip())
    return "\n".join([*drawn, " " * 6 + "└" + "─" * len(rows), _axis(rows, label)])


def _axis(rows: list[Row], label: int) -> str:
    """Hours at the left, in the middle and at the right."""
    seconds = [rows[n].seconds or 0.0 for n in (0, len(rows) // 2, -1)]
    unit, per = ("h", 3600) if seconds[-1] >= 7200 else ("min", 60)
    left, middle, right = (f"{value / per:.1f} {unit}" for value in seconds)
    return (
        (" " * label + left).ljust(label + len(rows) // 2 - len(middle) // 2)
        + middle.ljust(len(rows) - len(rows) // 2 + len(middle) // 2 - len(right))
        + right
    )


def draw(found: Plan, axes: "Axes") -> None:
    """The curve on a page's axes, with the plan's rows as points."""
    rows = curve(found)
    hours = [(row.seconds or 0.0) / 3600 for row in rows]
    axes.fill_between(hours, [r.loss_low for r in rows], [r.loss_high for r in rows], color="#2b6cb0", alpha=0.15, lw=0)
    axes.plot(hours, [row.loss for row in rows], color="#2b6cb0")
    for row in found.rows:
        axes.plot((row.seconds or 0.0) / 3600, row.loss, "o", color="#1a365d", ms=5)
        axes.annotate(f"{row.max_iters:,}", ((row.seconds or 0.0) / 3600, row.loss), (0, 8), textcoords="offset points")
    axes.set_xlabel("hours of jaxgpt, evaluations and start included")
    axes.set_ylabel("validation loss, nats per token")
