"""What a page shows of a run: its loss with the forecast's fan, its learning rate, its pace, its gap."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.checks.series import Series
from jaxgpt.diagnose.completion import StepTimes, trend
from jaxgpt.diagnose.context import RunContext, schedule_detection
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.forecast.annealing import Posterior
from jaxgpt.utils.html import Block, figure
from jaxgpt.utils.stats import Z80, Z95

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

VAL, TRAIN, LAW, QUIET = "#c2571a", "#8a96a3", "#2b6cb0", "#555555"
SETTLED = 0.2  # of the steps done: the loss before it is not drawn
FEW = 60  # evaluations that are drawn as points
POINTS = 400  # of a curve: more cannot be seen


def figures(found: Diagnosis) -> Iterable[Block]:
    """The figures for which there is something to draw."""
    case = RunAnalysis(found.history, found.context)
    if len(case.val_losses) or len(case.train_losses):
        yield _loss(found, case)
    if len(found.context.lr_fractions) > 1:
        yield _rate(found)
    if len(StepTimes.from_history(found.history).steps) > 2:
        yield _pace(found)
    if len(case.gaps) > 1:
        yield _gap(case)


def _loss(found: Diagnosis, case: RunAnalysis) -> Block:
    said = "Validation loss so far and as the law expects it to go on: the bands hold 80 % and 95 %."
    if found.posterior is None:
        said = "The losses of the log. There is no forecast."
    with figure(said, height=4.0) as drawn:
        axes = drawn.axes
        if len(case.train_losses):
            thin = thinned(case.train_losses)
            axes.plot(thin.steps, thin.values, color=TRAIN, lw=0.8, label="training batches", zorder=1)
        if found.posterior is not None:
            _fan(axes, found, found.posterior)
        mark = "o" if len(case.val_losses) <= FEW else "-"
        axes.plot(
            case.val_losses.steps, case.val_losses.values, mark, ms=4, lw=1.2, color=VAL, label="validation", zorder=4
        )
        axes.set(ylabel="nats per token", ylim=_limits(found, case))
        _updates(axes, found.context)
        axes.legend(frameon=False)
    return drawn.block


def _fan(axes: "Axes", found: Diagnosis, posterior: Posterior) -> None:
    total, done = len(found.context.lr_fractions), min(found.history.steps_done, len(found.context.lr_fractions))
    first = max(1, found.context.optim.warmup_steps, total // 50)
    steps = np.unique(np.linspace(first, total, POINTS).round().astype(np.int64))
    mean, sd = posterior.predict(steps)
    axes.plot(steps, mean, color=LAW, lw=1.4, label="the law", zorder=3)
    ahead = steps >= done
    if ahead.sum() > 1:
        for reach, alpha in ((Z95, 0.12), (Z80, 0.22)):
            band = (mean - reach * sd)[ahead], (mean + reach * sd)[ahead]
            axes.fill_between(steps[ahead], *band, color=LAW, alpha=alpha, lw=0, zorder=2)
    axes.annotate(f"{mean[-1]:.3f}", (total, mean[-1]), (4, 0), textcoords="offset points", color=LAW, va="center")


def _limits(found: Diagnosis, case: RunAnalysis) -> tuple[float, float]:
    """Where the loss stood after the first fifth, and all that came after: the fall from noise to text is of no use."""
    held = max(case.val_losses, case.train_losses, key=lambda series: (min(len(series), 2), series is case.val_losses))
    begin = SETTLED * float(held.steps[-1])
    late = held.between(begin, float("inf")).values
    ends = [found.forecast.low95, found.forecast.high95] if found.forecast else []
    low, high = min(*late, *ends, float(late[0])), max(*late, *ends, float(late[0]))
    trained = thinned(case.train_losses).between(begin, float("inf")).values
    low = max(min([low, *trained]), low - (high - low))  # training may fall far below: as far as validation rises
    room = 0.08 * max(high - low, 0.02)
    return low - room, high + room


def _rate(found: Diagnosis) -> Block:
    context = found.context
    told = "as the log and the config say" if context.schedule_known else "as it is assumed to go"
    logged = list(zip(*schedule_detection.logged_rates(found.history.steps)))
    dots = "; the dots are those of the log" if logged and not found.history.metadata.relative_rate else ""
    with figure(f"Learning rate, {told}{dots}.", height=2.2) as drawn:
        peak, total = context.optim.learning_rate, len(context.lr_fractions)
        places = np.unique(np.linspace(0, total - 1, POINTS).round().astype(np.int64))
        drawn.axes.plot(places, peak * context.lr_fractions[places], color=LAW)
        if dots:
            shown = logged[:: -(-len(logged) // 40)]
            drawn.axes.plot(*zip(*shown), "o", ms=2.5, color=VAL)
        drawn.axes.axvline(found.history.steps_done, color=QUIET, lw=0.8, ls=":")
        drawn.axes.set(ylabel="learning rate", ylim=(0, None))
        drawn.axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        _updates(drawn.axes, found.context)
    return drawn.block


def _pace(found: Diagnosis) -> Block:
    lines = StepTimes.from_history(found.history)
    ordinary = lines.ordinary
    held = trend.median_blocks(ordinary.steps, ordinary.seconds)
    with figure("Seconds per step: medians of neighbouring lines, without evaluation and saving.", 2.2) as drawn:
        drawn.axes.plot(held.steps, held.paces, color=LAW, lw=1.2)
        change = found.completion.trend if found.completion else None
        if change:
            drawn.axes.axvline(change.since, color=VAL, lw=1, ls="--")
            drawn.axes.annotate(f"{change.change:+.0%}", (change.since, held.paces.max()), (4, -4), color=VAL,
                                textcoords="offset points", va="top")  # fmt: skip
        middle = float(np.median(held.paces))
        drawn.axes.set(ylabel="s per step")
        drawn.axes.set_ylim(min(0.9 * middle, held.paces.min()), max(1.1 * middle, held.paces.max()))
        _updates(drawn.axes, found.context)
    return drawn.block


def _gap(case: RunAnalysis) -> Block:
    said = "Validation loss minus train loss, with standard errors: it grows where text is learned by heart."
    with figure(said, height=2.4) as drawn:
        steps, values, errors = zip(*((gap.step, gap.value, gap.error) for gap in case.gaps))
        drawn.axes.axhline(0, color=QUIET, lw=0.8)
        drawn.axes.errorbar(steps, values, yerr=errors, fmt="o", ms=3.5, lw=1, color=VAL)
        if case.first_epoch_steps and case.first_epoch_steps < steps[-1]:
            drawn.axes.axvline(case.first_epoch_steps, color=QUIET, lw=0.8, ls=":")
            above = drawn.axes.get_xaxis_transform()
            drawn.axes.text(
                case.first_epoch_steps, 0.98, " epoch 1 ends", color=QUIET, fontsize=8, va="top", transform=above
            )
        drawn.axes.set(ylabel="nats per token")
        _updates(drawn.axes, case.context)
    return drawn.block


def thinned(held: Series, most: int = POINTS) -> Series:
    """At most `most` points: medians of neighbours."""
    size = -(-len(held.steps) // most)
    if size <= 1:
        return held
    starts = np.arange(0, len(held.steps), size)
    parts = [slice(start, start + size) for start in starts]
    return Series(
        np.array([np.median(held.steps[part]) for part in parts]),
        np.array([np.median(held.values[part]) for part in parts]),
        held.lines[starts],
    )


def _updates(axes: "Axes", context: RunContext) -> None:
    """The whole run from left to right, so that the figures stand one below the other."""
    from matplotlib.ticker import FuncFormatter

    length = len(context.lr_fractions)
    axes.set(xlabel="updates", xlim=(-0.02 * length, 1.08 * length))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
