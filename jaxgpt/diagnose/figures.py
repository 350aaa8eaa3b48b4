"""Figures of a run: its loss with the forecast, learning rate, step time, throughput, gradient norm and loss gap."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxgpt.diagnose.analysis.gap import Gap
from jaxgpt.diagnose.analysis.series import Series, grad_norms
from jaxgpt.diagnose.completion import StepTimes, trend
from jaxgpt.diagnose.context import schedule_detection
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.utils.formatting import format_loss
from jaxgpt.utils.report import Figure
from jaxgpt.utils.report.svg import BLUE, GRAY, MUTED, ORANGE
from jaxgpt.utils.stats import Z80, Z95, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VAL, TRAIN, MODEL = ORANGE, GRAY, BLUE
SETTLED = 0.2  # of the steps done: earlier losses do not count for the limits of the axis
FEW_EVALUATIONS = 60  # that are drawn as points
POINTS = 400  # of a curve: more are not visible
LR_POINTS = 40  # logged learning rates that are drawn
LATE_START = 0.05  # of the run: a log that begins later belongs to a fork or lost its start


def loss_figures(diagnosis: Diagnosis) -> Iterator[Figure]:
    """The loss with its forecast, where the log has losses."""
    losses = diagnosis.analysis.losses
    if len(losses.val) or len(losses.train):
        yield _loss_figure(diagnosis)


def schedule_figures(diagnosis: Diagnosis) -> Iterator[Figure]:
    """The learning rate and the gap between validation and training loss, as far as there is something to draw."""
    if len(diagnosis.context.lr_fractions) > 1:
        yield _learning_rate_figure(diagnosis)
    if len(diagnosis.analysis.gap.points) > 1:
        yield _gap_figure(diagnosis, diagnosis.analysis.gap.points)


def step_time_figure(diagnosis: Diagnosis) -> Iterator[Figure]:
    """The step times, where the log has at least three."""
    caption = "Seconds per step: medians of adjacent lines, without evaluation and saving."
    yield from _speed_figure(diagnosis, caption, "s per step", lambda seconds: seconds)


def throughput_figure(diagnosis: Diagnosis) -> Iterator[Figure]:
    """The tokens per second, where the log has at least three step times."""
    tokens = diagnosis.context.tokens_per_step
    if tokens:
        caption = "Tokens per second: medians of adjacent steps, without evaluation and saving."
        yield from _speed_figure(diagnosis, caption, "tokens/s", lambda seconds: tokens / seconds)


def _speed_figure(
    diagnosis: Diagnosis, caption: str, unit: str, convert: Callable[[Floats], Floats]
) -> Iterator[Figure]:
    """A figure of the step times, which `convert` converts from seconds to `unit`."""
    step_times = StepTimes.from_history(diagnosis.history)
    if len(step_times.steps) <= 2:
        return
    step_times = step_times.step_only_or_all()
    blocks = trend.median_blocks(step_times.steps, step_times.seconds)
    values = convert(blocks.seconds)
    change = diagnosis.completion.trend if diagnosis.completion else None

    def draw(axes: "Axes") -> None:
        axes.plot(blocks.steps, values, color=MODEL, lw=1.2)
        if change:
            axes.axvline(change.since, color=VAL, lw=1, ls="--")
            text = f"{change.change:+.0%} time"
            axes.annotate(text, (change.since, values.max()), (4, -4), color=VAL, textcoords="offset points", va="top")
        middle = float(np.median(values))
        axes.set(ylabel=unit, ylim=(min(0.9 * middle, 0.95 * values.min()), max(1.1 * middle, 1.05 * values.max())))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        _set_step_axis(axes, diagnosis)

    yield Figure(caption, draw, height=2.2)


def grad_norm_figure(diagnosis: Diagnosis) -> Iterator[Figure]:
    """The gradient norms, where the log has at least three."""
    norms = grad_norms(diagnosis.history)
    if len(norms) <= 2:
        return
    shown = downsample(norms)
    config = diagnosis.context.config
    clip = config.optim.grad_clip if config else 0.0

    def draw(axes: "Axes") -> None:
        axes.plot(shown.steps, shown.values, color=MODEL, lw=1.0)
        if clip and norms.values.max() > clip / 2:
            axes.axhline(clip, color=MUTED, lw=0.8, ls=":")
        axes.set(ylabel="gradient norm", yscale="log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(
            lambda value, _: f"{value:g}" if shown.values.max() < 10 * shown.values.min() else ""
        )
        _set_step_axis(axes, diagnosis)

    dots = f" The dotted line is optim.grad_clip, {clip:g}." if clip else ""
    yield Figure(f"Gradient norm before clipping: medians of adjacent steps.{dots}", draw, height=2.2)


def _loss_figure(diagnosis: Diagnosis) -> Figure:
    losses = diagnosis.analysis.losses
    limits = _loss_limits(diagnosis)
    caption = "Validation loss so far and its forecast: the bands contain 80 % and 95 %."
    if diagnosis.final_evaluation is not None:
        caption = "Validation loss, and the loss model fitted to it."
    if diagnosis.posterior is None:
        caption = "The losses of the log, without a forecast."
    if max(*losses.val.values, *losses.train.values, limits[1]) > limits[1]:
        caption += " Higher losses are cut off."

    def draw(axes: "Axes") -> None:
        if len(losses.train):
            train = downsample(losses.train)
            axes.plot(train.steps, train.values, color=TRAIN, lw=0.8, label="training batches", zorder=1)
        _draw_forecast(axes, diagnosis)
        marker = "o" if len(losses.val) <= FEW_EVALUATIONS else "-"
        axes.plot(losses.val.steps, losses.val.values, marker, ms=4, lw=1.2, color=VAL, label="validation", zorder=4)
        axes.set(ylabel="nats per token", ylim=limits)
        _set_step_axis(axes, diagnosis)
        axes.legend(frameon=False)

    return Figure(caption, draw, height=4.0)


def _draw_forecast(axes: "Axes", diagnosis: Diagnosis) -> None:
    posterior = diagnosis.posterior
    if posterior is None:
        return
    total = len(diagnosis.context.lr_fractions)
    done = min(diagnosis.history.steps_done, total)
    first = max(1, diagnosis.context.optim.warmup_steps, total // 50, first_step(diagnosis))
    steps = np.unique(np.linspace(first, total, POINTS).round().astype(np.int64))
    mean, sd = posterior.predict(steps)
    axes.plot(steps, mean, color=MODEL, lw=1.4, label="loss model", zorder=3)
    ahead = steps >= done
    if ahead.sum() > 1:
        for width, alpha in ((Z95, 0.12), (Z80, 0.22)):
            low = (mean - width * sd)[ahead]
            high = (mean + width * sd)[ahead]
            axes.fill_between(steps[ahead], low, high, color=MODEL, alpha=alpha, lw=0, zorder=2)
    _label_end(axes, diagnosis, total, float(mean[-1]))


def _label_end(axes: "Axes", diagnosis: Diagnosis, total: int, forecast: float) -> None:
    """The final loss as a number at the right: measured if the run is over, else forecast."""
    last = diagnosis.final_evaluation
    loss, text, color = forecast, f"{forecast:.3f}", MODEL
    if last is not None and last.val is not None:
        loss, text, color = last.val, format_loss(last.val), VAL
    axes.annotate(text, (total, loss), (4, 0), textcoords="offset points", color=color, va="center")


def _loss_limits(diagnosis: Diagnosis) -> tuple[float, float]:
    """Limits for the losses after the first fifth: the initial decrease would hide everything else.

    Validation losses and forecast take at least a third of the axis, whatever the training losses are.
    """
    val = diagnosis.analysis.losses.val
    train = diagnosis.analysis.losses.train
    main = val if min(len(val), 2) >= min(len(train), 2) else train
    start = SETTLED * float(main.steps[-1])
    late = main.between(start, float("inf")).values
    ends = [diagnosis.forecast.low95, diagnosis.forecast.high95] if diagnosis.forecast else []
    low = min(*late, *ends, float(late[0]))
    high = max(*late, *ends, float(late[0]))
    span = max(high - low, 0.02)
    trained = downsample(train).between(start, float("inf")).values
    if len(trained):
        low = max(min(low, float(trained.min())), low - span)
        high = min(max(high, float(trained.max())), high + span)
    margin = 0.08 * max(high - low, span)
    return low - margin, high + margin


def _learning_rate_figure(diagnosis: Diagnosis) -> Figure:
    context = diagnosis.context
    source = "as the log and the config say" if context.schedule_known else "as assumed"
    logged = list(zip(*schedule_detection.logged_rates(diagnosis.history.steps)))
    has_dots = bool(logged) and not diagnosis.history.traits.lr_is_relative
    dots = "; the dots are those of the log" if has_dots else ""

    def draw(axes: "Axes") -> None:
        ends = first_step(diagnosis), len(context.lr_fractions) - 1
        steps = np.unique(np.linspace(*ends, POINTS).round().astype(np.int64))
        axes.plot(steps, context.optim.learning_rate * context.lr_fractions[steps], color=MODEL)
        if has_dots:
            shown = logged[:: -(-len(logged) // LR_POINTS)]
            axes.plot(*zip(*shown), "o", ms=2.5, color=VAL)
        axes.axvline(diagnosis.history.steps_done, color=MUTED, lw=0.8, ls=":")
        axes.set(ylabel="learning rate", ylim=(0, None))
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        _set_step_axis(axes, diagnosis)

    return Figure(f"Learning rate, {source}{dots}.", draw, height=2.2)


def _gap_figure(diagnosis: Diagnosis, gaps: Sequence[Gap]) -> Figure:
    first_epoch = diagnosis.analysis.first_epoch_steps

    def draw(axes: "Axes") -> None:
        steps, values, errors = zip(*((gap.step, gap.value, gap.stderr) for gap in gaps))
        axes.axhline(0, color=MUTED, lw=0.8)
        axes.errorbar(steps, values, yerr=errors, fmt="o", ms=3.5, lw=1, color=VAL)
        if first_epoch and first_epoch < steps[-1]:
            axes.axvline(first_epoch, color=MUTED, lw=0.8, ls=":")
            transform = axes.get_xaxis_transform()
            axes.text(first_epoch, 0.98, " epoch 1 ends", color=MUTED, fontsize=8, va="top", transform=transform)
        axes.set(ylabel="nats per token")
        _set_step_axis(axes, diagnosis)

    caption = "Validation loss minus train loss, with standard errors: it grows where text is memorized."
    return Figure(caption, draw, height=2.4)


def downsample(series: Series, count: int = POINTS) -> Series:
    """At most `count` points: medians of adjacent ones."""
    size = -(-len(series) // count)
    if size <= 1:
        return series
    starts = np.arange(0, len(series), size)
    steps = np.array([np.median(series.steps[start : start + size]) for start in starts])
    values = np.array([np.median(series.values[start : start + size]) for start in starts])
    return Series(steps, values, series.lines[starts])


def _set_step_axis(axes: "Axes", diagnosis: Diagnosis) -> None:
    """The same axis of steps for all figures, from the first step (of a fork, its own first step) to the last."""
    first = first_step(diagnosis)
    end = max(len(diagnosis.context.lr_fractions), diagnosis.history.steps_done)
    axes.set(xlabel="steps", xlim=(first - 0.02 * (end - first), end + 0.08 * (end - first)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def first_step(diagnosis: Diagnosis) -> int:
    """The step at which the figures start: 0 unless the log starts clearly later, as that of a fork does."""
    history = diagnosis.history
    logged = [record.step for records in (history.steps, history.evaluations) for record in records[:1]]
    first = min(logged, default=0)
    length = len(diagnosis.context.lr_fractions)
    return first if LATE_START * length < first < length else 0
