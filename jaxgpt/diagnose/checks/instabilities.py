"""Checks for instabilities: divergence, loss spikes, and data that a resume reads a second time."""

import math
from typing import NamedTuple

import numpy as np

from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.analysis.once import once_per_run
from jaxgpt.diagnose.analysis.series import (
    Estimate,
    Series,
    grad_norms,
    running_median,
    series,
    trailing_level,
)
from jaxgpt.diagnose.finding import Condition, Finding, unknown
from jaxgpt.utils.formatting import pluralize
from jaxgpt.utils.stats import MEDIAN_ERROR, Floats, is_valid, robust_sd

WIDTH = 25  # losses in a running median, in which a single step leaves no trace
MIN_TRAIN_LOSSES = 12  # in which a lasting rise can be seen
RISE_STDERRS = 6.0  # standard errors of a running median that a rise exceeds
FAST_RISE = 1.0  # nats between two evaluations; repetition raises a validation loss more slowly
MIN_RISE = 0.3  # nats above the lowest running median; repetition or hard text raise a train loss by less
STAYED_ABOVE = 0.8  # of the losses after a rise are above its middle
SUDDEN = 0.7  # of a rise that happens within one step
NORM_GROWTH = 3.0  # times the usual gradient norm: a precursor of a divergence
PRECURSOR_STEPS = 100  # before a rise, in which precursors are looked for
PRECURSOR_TAIL = 10  # the last of them, compared with those before
SPIKE_DEVIATIONS = 8.0  # robust standard deviations above the losses before
MIN_SPIKE = 0.15  # nats
SPIKE_WINDOW = 50  # losses before a spike that it is compared with
RESUME_WINDOW = 50  # losses before and after a resume
VISIBLE_JUMP = 3.0  # standard errors of a jump at a resume
MIN_JUMP = 0.02  # nats
SHOWN = 5  # spikes and resumes that are listed


class Rise(NamedTuple):
    """A rise of the loss that lasts until now: from `low` before `step` to `now`."""

    step: int
    low: float
    now: float
    is_sudden: bool  # most of it happened within one step
    line: int
    of_validation: bool = False  # of the validation loss, where there are too few training losses

    @property
    def height(self) -> float:
        return self.now - self.low


def divergence(run: RunAnalysis) -> Finding:
    """Confirmed if the loss is not finite or has risen for good, and training itself caused it."""
    rise = find_rise(run)
    cost = rise.height if rise else None
    if first_nonfinite(run) is not None:
        cost = math.inf
    return Finding(id="divergence", conditions=(_is_lost(run), _grew_from_training(run)), cost=cost)


@once_per_run
def find_rise(run: RunAnalysis) -> Rise | None:
    """The lasting rise of the training loss, or of the validation loss where there are too few training losses."""
    losses = run.losses.train
    if len(losses) >= MIN_TRAIN_LOSSES and (len(losses) >= 3 * WIDTH or not len(run.losses.val)):
        return _find_train_rise(losses, min(len(losses) // 3, WIDTH))
    return _find_val_rise(run)


def _find_train_rise(losses: Series, width: int) -> Rise | None:
    """The lasting rise of running medians of `width` training losses."""
    smooth = running_median(losses.values, width)
    lowest = int(np.argmin(smooth))
    low = float(smooth[lowest])
    now = float(smooth[-1])
    noise = _noise_of_decreasing(losses.values) * RISE_STDERRS * MEDIAN_ERROR / math.sqrt(width)
    if now - low < max(MIN_RISE, noise) or lowest > len(smooth) - width:
        return None
    middle = low + 0.5 * (now - low)
    last_below = int(np.flatnonzero(smooth <= middle)[-1])
    index = _find_jump(losses, max(last_below - width, 1), min(last_below + width, len(losses)), middle, width)
    is_sudden = _is_sudden(losses, index, low, now)
    return Rise(int(losses.steps[index]), low, now, is_sudden, int(losses.lines[index]))


def _find_jump(losses: Series, first: int, end: int, level: float, width: int) -> int:
    """The first index from `first` to `end` whose loss is above `level`, as are most of the `width` losses after it."""
    for index in range(first, end):
        following = losses.values[index : index + width]
        if losses.values[index] > level and float(np.mean(following > level)) > STAYED_ABOVE:
            return index
    return end - 1


def _is_sudden(losses: Series, index: int, low: float, now: float) -> bool:
    """Whether the loss rose most of the way within one step."""
    before = float(np.median(losses.values[max(index - 5, 0) : index])) if index else low
    return float(losses.values[index]) - before >= SUDDEN * (now - low)


def _find_val_rise(run: RunAnalysis) -> Rise | None:
    val = run.losses.val
    if len(val) < 3:
        return None
    lowest = int(np.argmin(val.values))
    low = float(val.values[lowest])
    now = float(val.values[-2:].min())
    if lowest > len(val) - 3 or now - low < MIN_RISE:
        return None
    first = int(np.flatnonzero(val.values <= low + 0.5 * (now - low))[-1]) + 1
    return Rise(int(val.steps[first]), low, now, False, int(val.lines[first]), of_validation=True)


def unstable_since(run: RunAnalysis) -> int | None:
    """The step from which the loss is not finite, or has risen for good; None if it is stable."""
    nonfinite = first_nonfinite(run)
    if nonfinite is not None:
        return nonfinite[0]
    rise = find_rise(run)
    return rise.step if rise else None


def first_nonfinite(run: RunAnalysis) -> tuple[int, int] | None:
    """Step and line of the first loss or gradient norm that is not finite and has no finite one after it."""
    return run.first_nonfinite


def nonfinite_before_update(run: RunAnalysis) -> tuple[int, int] | None:
    """Step and line of a loss that is not finite, measured before the first update of a process, and not since either.

    None if there is none. The loss of a process's first step comes before its update, as does an evaluation there.
    """
    if first_nonfinite(run) is None or not run.history.starts:
        return None
    start = run.history.starts[-1]
    losses = [(step.step, step.loss, step.line) for step in run.history.steps]
    losses += [(e.step, e.val, e.line) for e in run.history.evaluations]
    logged = [(step, value, line) for step, value, line in losses if step >= start and value is not None]
    if any(is_valid(value) for _, value, _ in logged):
        return None
    return min(((step, line) for step, _, line in logged if step == start), default=None)


def _has_losses(run: RunAnalysis) -> bool:
    return len(run.losses.train) > 0 or len(run.losses.val) > 0


def _is_lost(run: RunAnalysis) -> Condition:
    question = f"the loss is not finite, or stays {MIN_RISE:g} nats above its minimum"
    nonfinite = first_nonfinite(run)
    if nonfinite is not None:
        line = nonfinite[1]
        return Condition(question, f"NaN or infinite since line {line}", True, (line,))
    if not _has_losses(run):
        return unknown(question, "a log with losses")
    rise = find_rise(run)
    if rise is None:
        return Condition(question, "all finite, near their minimum", False)
    return Condition(question, f"{rise.low:.3f} before step {rise.step:,}, {rise.now:.3f} now", True, (rise.line,))


def _grew_from_training(run: RunAnalysis) -> Condition:
    """A divergence grows over steps. A jump within one step after calm gradients comes from the data."""
    question = "training itself caused it: it grew over several steps, or out of growing gradients"
    before = nonfinite_before_update(run)
    if before is not None:
        return Condition(question, f"it was so at step {before[0]:,}, before the first update", False, (before[1],))
    if first_nonfinite(run) is not None:
        return Condition(question, _precursors(run, None) or "no gradient norms in the log", True)
    if not _has_losses(run):
        return unknown(question, "a log with losses")
    rise = find_rise(run)
    if rise is None:
        return Condition(question, _precursors(run, None) or "nothing rose", False)
    if rise.of_validation:
        return _grew_alike(run, rise, question)
    precursors = _precursors(run, rise.step)
    if rise.is_sudden and not precursors:
        return Condition(question, f"it came at step {rise.step:,}, within one step, after calm gradients", False)
    return Condition(question, precursors or f"it grew over the steps after {rise.step:,}", True, (rise.line,))


def _grew_alike(run: RunAnalysis, rise: Rise, question: str) -> Condition:
    """Whether the training loss rose with the validation loss, which also rises alone, from repetition."""
    measured = series([(e.step, e.train, e.line) for e in run.losses.evaluations])
    train = measured if len(measured) else run.losses.train
    before, after = train.between(0, rise.step), train.between(rise.step, math.inf)
    if len(before) and len(after):
        change = float(np.median(after.last(3).values) - np.median(before.last(3).values))
        evidence = f"the training loss changed by {change:+.2f} meanwhile"
        return Condition(question, evidence, change > 0, (rise.line,))
    val = run.losses.val
    index = int(np.searchsorted(val.steps, rise.step))
    if float(val.values[index] - val.values[index - 1]) >= FAST_RISE:
        return Condition(question, "validation rose faster than repetition raises it", True, (rise.line,))
    if (run.epochs or 0.0) > 1:
        return unknown(question, "training losses: a validation loss alone also rises from repetition")
    return Condition(question, "validation rose, and no text was repeated", True)


def _precursors(run: RunAnalysis, step: int | None) -> str:
    """How gradient norms grew before `step` (None: the end); empty if they were calm or are not logged."""
    norms = grad_norms(run.history)
    end = float(step or 0)
    if step is None and len(norms):
        end = float(norms.steps[-1]) + 1
    tail = norms.between(max(end - PRECURSOR_TAIL, 0), end)
    usual = norms.between(end - PRECURSOR_STEPS, end - PRECURSOR_TAIL)
    if len(tail) < 3 or len(usual) < 10:
        return ""
    before = float(np.median(usual.values))
    after = float(np.median(tail.values))
    return f"the gradient norm grew from {before:.3g} to {after:.3g}" if after >= NORM_GROWTH * before else ""


def loss_spikes(run: RunAnalysis) -> Finding:
    """Confirmed if the training loss spikes and recovers. A single unusual batch is high for one step only."""
    question = (
        f"losses are {SPIKE_DEVIATIONS:g} robust deviations and {MIN_SPIKE:g} nats above those before, "
        "for more than one step"
    )
    outliers = _find_outliers(run.losses.train)
    if outliers is None:
        return Finding(id="loss-spikes", conditions=(unknown(question, f"{SPIKE_WINDOW} training losses or more"),))
    train = run.losses.train
    spikes = [index for index, is_lasting in outliers if is_lasting]
    shown = [f"{train.values[index]:.2f} at step {train.steps[index]:,.0f}" for index in spikes[:SHOWN]]
    evidence = f"{len(spikes)}: {', '.join(shown)}" if spikes else "none"
    if len(outliers) > len(spikes):
        single = pluralize(len(outliers) - len(spikes), "single high loss", "single high losses")
        evidence += f"; besides {single}, as unusual text has"
    spiked = Condition(question, evidence, bool(spikes), tuple(int(train.lines[index]) for index in spikes[:SHOWN]))
    has_recovered = find_rise(run) is None and first_nonfinite(run) is None
    recovered = Condition("the loss recovered after each", "it did" if has_recovered else "it has not", has_recovered)
    return Finding(id="loss-spikes", conditions=(spiked, recovered))


def _find_outliers(losses: Series) -> list[tuple[int, bool]] | None:
    """Indices of losses far above those before, and whether the next loss is high too; None for too few losses."""
    if len(losses) < SPIKE_WINDOW:
        return None
    values = losses.values
    smooth = running_median(values, WIDTH)
    candidates = np.flatnonzero(values[1:] - smooth[:-1] >= MIN_SPIKE) + 1
    outliers = list[tuple[int, bool]]()
    skip_until = 0
    for index in candidates.tolist():
        near = values[max(index - SPIKE_WINDOW, 0) : index]
        if index < skip_until or len(near) < SPIKE_WINDOW // 2:
            continue
        usual = float(np.median(near))
        noise = max(_noise_of_decreasing(near), 1e-3)
        if values[index] - usual >= SPIKE_DEVIATIONS * noise:
            after = float(values[min(index + 1, len(values) - 1)]) - usual
            outliers.append((index, after >= max(SPIKE_DEVIATIONS / 2 * noise, MIN_SPIKE / 2)))
            skip_until = index + WIDTH
    return outliers


def _noise_of_decreasing(values: Floats) -> float:
    """The noise of values that decrease, from their first differences."""
    return robust_sd(np.diff(values)) / math.sqrt(2)


def data_reused_after_resume(run: RunAnalysis) -> Finding:
    """Confirmed if a resumed run reads text again: known of its software, or visible as a jump of the loss."""
    history = run.history
    starts = {start for start in history.starts if start > 0}
    resumes = sorted(starts | {replay.first for replay in history.replays if replay.first})
    question = "the run was resumed"
    if not resumes:
        is_resumed = Condition(question, "one process, from the start", False)
        return Finding(id="data-reused-after-resume", conditions=(is_resumed,))
    evidence = f"at step {', '.join(f'{step:,}' for step in resumes[:SHOWN])}"
    if history.replays:
        repeated = sum(replay.last - replay.first + 1 for replay in history.replays)
        evidence += f", {pluralize(repeated, 'step')} done twice"
    is_resumed = Condition(question, evidence, True, tuple(replay.line for replay in history.replays))
    return Finding(id="data-reused-after-resume", conditions=(is_resumed, _repeats_text(run, resumes)))


def _repeats_text(run: RunAnalysis, resumes: list[int]) -> Condition:
    question = "text is repeated after it, or the loss jumps there"
    jumps = [(step, _loss_jump(run.losses.train, step)) for step in resumes]
    measured = [(step, jump) for step, jump in jumps if jump is not None]
    shown = [f"{jump.text} at step {step:,}" for step, jump in measured]
    if run.history.traits.repeats_data_on_resume:
        reason = "nanoGPT draws the batches of its start again after a resume"
        return Condition(question, "; ".join([reason, *shown]), True)
    if not measured:
        return unknown(question, f"{RESUME_WINDOW // 2} training losses before and after the resume")
    is_visible = any(abs(jump.value) >= max(MIN_JUMP, VISIBLE_JUMP * jump.stderr) for _, jump in measured)
    return Condition(question, "; ".join(shown), is_visible)


def _loss_jump(losses: Series, step: int) -> Estimate | None:
    """How far the losses after a resume are above the line through those before it; None for too few losses."""
    after = losses.between(step, math.inf)
    first = slice(None, RESUME_WINDOW)
    mirrored = Series(step - after.steps[first][::-1], after.values[first][::-1], after.lines[first][::-1])
    level_before = _level_at_end(losses, step)
    level_after = _level_at_end(mirrored, 1.0)
    if level_before is None or level_after is None or min(len(after), len(losses)) < RESUME_WINDOW // 2:
        return None
    stderr = math.hypot(level_before.stderr, level_after.stderr)
    return Estimate(level_after.value - level_before.value, stderr)


def _level_at_end(losses: Series, step: float) -> Estimate | None:
    """The level before `step` by a line through `RESUME_WINDOW` losses, with the bias of a line through a bent curve.

    A line through half as many losses has a quarter of the bias, so their difference is three quarters of it.
    """
    full = trailing_level(losses, step, RESUME_WINDOW)
    half = trailing_level(losses, step, RESUME_WINDOW // 2)
    if full is None or half is None:
        return None
    bias = (full.value - half.value) * 4 / 3
    return Estimate(full.value, math.hypot(full.stderr, bias), full.lines)
