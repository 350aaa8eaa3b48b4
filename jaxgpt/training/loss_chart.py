"""The loss curve of a run in braille characters, for a terminal."""

from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

LABEL_WIDTH = 8  # characters of a loss on the vertical axis, with the axis
DOT_COLUMNS = 2  # of a braille character
DOT_ROWS = 4
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # the bits of a braille character
BRAILLE = 0x2800
EVALUATION = "●"
CLIPPED_FRACTION = 0.05  # of the curve, at its top: the first steps would flatten all others
LINE_STYLE = "cyan"
EVALUATION_STYLE = "yellow"

Floats = NDArray[np.float64]


def loss_chart(losses: Mapping[int, float], evaluations: Mapping[int, float], width: int, height: int) -> Text:
    """A chart of `width` x `height` characters: the mean training loss as a line, evaluations as points.

    Both are losses by step. The first steps are cut off at the top. Values that are not finite are skipped. Empty with
    fewer than two losses, or if the chart would be too small to read.
    """
    steps, values = _finite(losses)
    cells = width - LABEL_WIDTH
    rows = height - 3  # without the legend, the axis and its labels
    if len(steps) < 2 or cells < LABEL_WIDTH or rows < 2:
        return Text()
    first, last = int(steps[0]), int(steps[-1])
    curve = _columns(steps, values, cells * DOT_COLUMNS)
    points_steps, points = _finite({step: loss for step, loss in evaluations.items() if first <= step - 1 <= last})
    low, high = _limits(curve, points)
    canvas = _draw_line((high - curve) / (high - low), rows)
    styled = [[(character, LINE_STYLE) for character in row] for row in _braille(canvas)]
    for step, loss in zip(points_steps, points, strict=True):
        column = int((step - 1 - first) / (last - first) * (cells - 1))
        row = int(np.clip((high - loss) / (high - low) * rows, 0, rows - 1))
        styled[row][column] = (EVALUATION, EVALUATION_STYLE)
    return _with_axes(styled, (low, high), (first, last))


def _finite(losses: Mapping[int, float]) -> tuple[Floats, Floats]:
    """The steps and the losses that are finite."""
    steps = np.array(list(losses.keys()), np.float64)
    values = np.array(list(losses.values()), np.float64)
    is_finite = np.isfinite(values)
    return steps[is_finite], values[is_finite]


def _columns(steps: Floats, losses: Floats, count: int) -> Floats:
    """The mean loss of the steps of each of `count` columns; columns without a step are interpolated."""
    position = (steps - steps[0]) / (steps[-1] - steps[0]) * (count - 1)
    column = np.round(position).astype(np.int64)
    steps_in_column = np.bincount(column, minlength=count)
    means = np.bincount(column, losses, minlength=count) / np.maximum(steps_in_column, 1)
    filled = np.flatnonzero(steps_in_column)
    return np.interp(np.arange(count), filled, means[filled])


def _limits(curve: Floats, points: Floats) -> tuple[float, float]:
    """The lowest and the highest loss of the chart."""
    low = float(min([curve.min(), *points]))
    high = float(max([np.quantile(curve, 1 - CLIPPED_FRACTION), *points[len(points) // 2 :]]))
    return low, max(high, low + 1e-3)


def _draw_line(depth: Floats, rows: int) -> NDArray[np.bool_]:
    """The dots of a continuous line; `depth` is that of each column below the top, as a fraction of the height."""
    height = rows * DOT_ROWS
    levels = np.clip(np.round(depth * (height - 1)), 0, height - 1).astype(np.int64)
    canvas = np.zeros((height, len(levels)), bool)
    previous = levels[0]
    for column, level in enumerate(levels):
        canvas[min(previous, level) : max(previous, level) + 1, column] = True
        previous = level
    return canvas


def _braille(canvas: NDArray[np.bool_]) -> list[str]:
    """The dots [4 x rows, 2 x columns] as rows of braille characters."""
    blocks = canvas.reshape(canvas.shape[0] // DOT_ROWS, DOT_ROWS, -1, DOT_COLUMNS)
    codes = np.einsum("rick,ik->rc", blocks.astype(np.int64), DOTS)
    return ["".join(chr(BRAILLE + code) for code in row) for row in codes]


def _with_axes(cells: list[list[tuple[str, str]]], limits: tuple[float, float], steps: tuple[int, int]) -> Text:
    low, high = limits
    text = Text(no_wrap=True)
    text.append(" " * LABEL_WIDTH + "loss per token:  ")
    text.append("━ training", LINE_STYLE)
    text.append("  ")
    text.append(f"{EVALUATION} evaluation\n", EVALUATION_STYLE)
    labels = {0: high, len(cells) // 2: (low + high) / 2, len(cells) - 1: low}
    for number, row in enumerate(cells):
        label = f"{labels[number]:.3f} ┤" if number in labels else "│"
        text.append(label.rjust(LABEL_WIDTH), "dim")
        for style, run in groupby(row, itemgetter(1)):
            text.append("".join(character for character, _ in run), style)
        text.append("\n")
    width = len(cells[0])
    first, last = (f"{step:,}" for step in steps)
    text.append(" " * (LABEL_WIDTH - 1) + "└" + "─" * width + "\n", "dim")
    text.append(" " * LABEL_WIDTH + f"step {first}" + last.rjust(width - len(first) - 5), "dim")
    return text
