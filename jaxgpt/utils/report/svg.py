"""Figures as SVG. Their colors are variables of the page's style, so that they suit a light and a dark page."""

import io
import re
from typing import TYPE_CHECKING, Any

from jaxgpt.errors import ConfigError
from jaxgpt.utils.report.document import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GRAY, NAVY = "#2b6cb0", "#c2571a", "#8a96a3", "#1a365d"  # of curves, in a light page
TEXT, MUTED, RULE = "#1c1e21", "#5a6068", "#e1e4e8"
VARIABLES = {
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GRAY: "var(--gray)",
    NAVY: "var(--navy)",
    TEXT: "var(--text)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
}
WIDTH, NARROW_WIDTH = 7.6, 4.2  # inches, which the page scales to its own width
MANY_LABELS = 7  # of an axis, which do not fit side by side into a narrow figure
PLOT: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,  # the grid is drawn behind bars
    "axes.edgecolor": MUTED,
    "axes.labelcolor": TEXT,
    "text.color": TEXT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
}


def draw_svg(figure: Figure, *, narrow: bool) -> str:
    """The figure as an SVG element for a wide or a narrow screen.

    Raises `ConfigError` C059 if matplotlib is missing.
    """
    try:
        import matplotlib  # takes half a second: only pages with figures load it
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        message = f"the figures of a page cannot be drawn: {error}"
        raise ConfigError("C059", message, "pip install matplotlib") from error

    name = "narrow" if narrow else "wide"
    with matplotlib.rc_context(PLOT | {"svg.hashsalt": name}):  # the same plot is the same bytes, with ids of its own
        canvas = Canvas(figsize=(NARROW_WIDTH if narrow else WIDTH, figure.height), layout="constrained")
        axes = canvas.add_subplot()
        figure.draw(axes)
        if narrow:
            _make_room(axes)
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    svg = text[text.index("<svg") :].replace("<svg", f'<svg class="{name}"', 1)
    return re.sub(r"#[0-9a-f]{6}\b", lambda color: VARIABLES.get(color[0], color[0]), svg)


def _make_room(axes: "Axes") -> None:
    """Turns the labels of the axis where they would overlap in a narrow figure."""
    from matplotlib.ticker import FixedLocator

    locator = axes.xaxis.get_major_locator()
    if isinstance(locator, FixedLocator) and len(axes.get_xticks()) > MANY_LABELS:
        axes.tick_params(axis="x", labelrotation=60)
