"""What breaks a run: divergence, spikes, and seams where it was resumed."""

import math
from typing import NamedTuple

import numpy as np

from jaxgpt.diagnose.checks import series
from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.checks.series import Estimate, Floats, Series
from jaxgpt.diagnose.finding import Condition, Finding, unknown
from jaxgpt.utils.stats import robust_sd

WIDTH = 25  # losses in a running median: what one step does leaves no trace in it
RISEN = 0.3  # nats above the lowest running median; repetition or a hard stretch of text lifts a train loss by less
NORM_GROWTH = 3.0  # times the usual gradient norm: a precursor
BEFORE = 100  # updates before a rise in which precursors are looked for
SPIKE = 8.0  # robust standard deviations above the losses around it
LEAST_SPIKE = 0.15  # nats
AROUND = 50  # losses before a spike that it is measured against
SEAM = 50  # losses on either side of a resume
VISIBLE = 3.0  # standard errors of a jump at a resume
LEAST_SEAM = 0.02  # nats
REPEATS = ("nanogpt",)  # formats of software whose resume draws the batches of its start again


class Rise(NamedTuple):
    """A rise of the loss that stayed: when, from where to where, and whether it came at once."""

    step: int
    low: float
    now: float
    at_once: bool
    line: int

    @property
    def height(self) -> float:
        return self.now - self.low


def divergence(run: RunAnalysis) -> Finding:
    conditions = (_lost(run), _grew(run))
    broken = _broken_line(run)
    found = rise(run)
    weight = 10.0 if broken else found.height if found else 0.0
    return Finding(id="divergence", conditions=conditions, weight=weight)


def rise(run: RunAnalysis) -> Rise | None:
    """The rise of the training loss (validation where there is none) that has stayed until now."""
    losses = run.train_losses if len(run.train_losses) >= 3 * WIDTH else None
    if losses is None:
        return _rise_of_validation(run)
    smooth = series.running_median(losses.values, WIDTH)
    lowest = int(np.argmin(smooth))
    now = float(smooth[-1])
    if now - smooth[lowest] < RISEN or lowest > len(smooth) - WIDTH:
        return None
    level = smooth[lowest] + 0.5 * (now - smooth[lowest])
    below = np.flatnonzero(smooth <= level)
    start = int(below[-1])  # since then it has stayed in the upper half
    jump = _jump(losses, max(start - WIDTH, 1), min(start + WIDTH, len(losses)), level)
    step, line = int(losses.steps[jump]), int(losses.lines[jump])
    return Rise(step, float(smooth[lowest]), now, _at_once(losses, jump, float(smooth[lowest]), now), line)


def _jump(losses: Series, first: int, last: int, level: float) -> int:
    """The first loss in `first` to `last` above `level` of which most that follow are too."""
    for place in range(first, last):
        ahead = losses.values[place : place + WIDTH]
        if losses.values[place] > level and float(np.mean(ahead > level)) > 0.8:
            return place
    return min(last, len(losses)) - 1


def _at_once(losses: Series, place: int, low: float, now: float) -> bool:
    """Whether the loss went most of the way from one step to the next."""
    before = float(np.median(losses.values[max(place - 5, 0) : place])) if place else low
    return float(losses.values[place]) - before >= 0.7 * (now - low)


def _rise_of_validation(run: RunAnalysis) -> Rise | None:
    vals = run.val_losses
    if len(vals) < 3:
        return None
    lowest = int(np.argmin(vals.values))
    now = float(vals.values[-2:].min())
    if lowest > len(vals) - 3 or now - vals.values[lowest] < RISEN:
        return None
    return Rise(int(vals.steps[lowest + 1]), float(vals.values[lowest]), now, False, int(vals.lines[lowest + 1]))


def broken_at(run: RunAnalysis) -> int | None:
    """The step since when the loss is not finite, or stands above where it was; None if neither is so."""
    broken, found = _broken(run), rise(run)
    return broken[0] if broken else found.step if found else None


def _broken_line(run: RunAnalysis) -> int | None:
    broken = _broken(run)
    return broken[1] if broken else None


def _broken(run: RunAnalysis) -> tuple[int, int] | None:
    """Step and line of the first loss or norm that is not finite, if none after it is."""
    updates = [(step.loss, step.step, step.line) for step in run.history.steps]
    norms = [(step.grad_norm, step.step, step.line) for step in run.history.steps]
    for rows in (updates, norms, [(e.val, e.step, e.line) for e in run.history.evaluations]):
        told = [row for row in rows if row[0] is not None]
        finite = [place for place, row in enumerate(told) if row[0] is not None and series.number(row[0])]
        first = finite[-1] + 1 if finite else 0
        if first < len(told):
            return told[first][1:]
    return None


def _lost(run: RunAnalysis) -> Condition:
    question = f"the loss is not finite, or {RISEN:g} nats above its lowest and has stayed there"
    broken = _broken_line(run)
    if broken is not None:
        return Condition(question, f"NaN or infinite since line {broken}", True, (broken,))
    if not len(run.train_losses) and not len(run.val_losses):
        return unknown(question, "a log with losses")
    found = rise(run)
    if found is None:
        return Condition(question, "all finite, near their lowest", False)
    said = f"{found.low:.3f} before step {found.step:,}, {found.now:.3f} now"
    return Condition(question, said, True, (found.line,))


def _grew(run: RunAnalysis) -> Condition:
    """A divergence grows over steps; what comes from one step to the next with calm gradients came with the data."""
    question = "it grew out of the training itself: over several steps, or from growing gradients"
    if _broken_line(run) is not None:
        return Condition(question, _precursors(run, None) or "no gradient norms in the log", True)
    found = rise(run)
    if not len(run.train_losses) and not len(run.val_losses):
        return unknown(question, "a log with losses")
    if found is None:
        return Condition(question, _precursors(run, None) or "nothing rose", False)
    if not len(run.train_losses):
        if (run.epochs or 0.0) > 1:
            return unknown(question, "training losses: a validation loss alone also rises from repetition")
        return Condition(question, "validation rose, and no text was repeated", True)
    told = _precursors(run, found.step)
    if found.at_once and not told:
        return Condition(question, f"it came at step {found.step:,}, from one to the next, after calm gradients", False)
    return Condition(question, told or f"it grew over the steps after {found.step:,}", True, (found.line,))


def _precursors(run: RunAnalysis, step: int | None) -> str:
    """What gradient norms did before `step` (None: before the end); empty if they were calm or are not logged."""
    norms = series.grad_norms(run.history)
    end = float(norms.steps[-1]) + 1 if step is None and len(norms) else float(step or 0)
    before = norms.between(max(end - 10, 0), end)
    usual = norms.between(end - BEFORE, end - 10)
    if len(before) < 3 or len(usual) < 10:
        return ""
    middle, top = float(np.median(usual.values)), float(np.median(before.values))
    if top < NORM_GROWTH * middle:
        return ""
    return f"the gradient norm grew from {middle:.3g} to {top:.3g}"


def spikes(run: RunAnalysis) -> Finding:
    """Whether training itself stumbled. One odd batch has a high loss too, but leaves the next one as it was."""
    found = _outliers(run)
    question = (
        f"losses stand {SPIKE:g} robust deviations and {LEAST_SPIKE:g} nats above those before, for more than one step"
    )
    if found is None:
        return Finding(id="loss-spikes", conditions=(unknown(question, f"{AROUND} training losses or more"),))
    lasting, odd = [place for place, lasts in found if lasts], sum(not lasts for _, lasts in found)
    told = [f"{run.train_losses.values[p]:.2f} at step {run.train_losses.steps[p]:,.0f}" for p in lasting[:5]]
    said = f"{len(lasting)}: {', '.join(told)}" if lasting else "none"
    said += f"; besides {odd} single high losses, as odd text has" if odd else ""
    seen = Condition(question, said, bool(lasting), tuple(int(run.train_losses.lines[p]) for p in lasting[:5]))
    question = "the loss came back after each"
    back = rise(run) is None and _broken_line(run) is None
    came = Condition(question, "it did" if back else "it has not", back)
    return Finding(id="loss-spikes", conditions=(seen, came), weight=2e-3 * len(lasting))


def _outliers(run: RunAnalysis) -> list[tuple[int, bool]] | None:
    """Places where losses leave those before them, and whether the next one is high as well; None for too few."""
    losses = run.train_losses
    if len(losses) < AROUND:
        return None
    values, found, quiet = losses.values, list[tuple[int, bool]](), 0
    smooth = series.running_median(values, WIDTH)
    height = values[1:] - smooth[:-1]
    for place in (np.flatnonzero(height >= LEAST_SPIKE) + 1).tolist():
        near = values[max(place - AROUND, 0) : place]
        if place < quiet or len(near) < AROUND // 2:
            continue
        usual, noise = float(np.median(near)), max(_noise(near), 1e-3)
        if values[place] - usual >= SPIKE * noise:
            after = float(values[min(place + 1, len(values) - 1)]) - usual
            found.append((place, after >= max(SPIKE / 2 * noise, LEAST_SPIKE / 2)))
            quiet = place + WIDTH
    return found


def _noise(values: Floats) -> float:
    """Of losses that fall: from their first differences."""
    return robust_sd(np.diff(values)) / math.sqrt(2)


def seam(run: RunAnalysis) -> Finding:
    history = run.history
    resumes = sorted({start for start in history.starts if start > 0} | {r.first for r in history.replays if r.first})
    question = "the run was resumed"
    lines = tuple(replay.line for replay in history.replays)
    if not resumes:
        return Finding(
            id="data-reused-after-resume", conditions=(Condition(question, "one process, from the start", False),)
        )
    again = f", {sum(r.last - r.first + 1 for r in history.replays):,} updates done twice" if history.replays else ""
    first = Condition(question, f"at step {', '.join(f'{step:,}' for step in resumes[:5])}{again}", True, lines)
    return Finding(id="data-reused-after-resume", conditions=(first, _seen(run, resumes)), weight=3e-3)


def _seen(run: RunAnalysis, resumes: list[int]) -> Condition:
    question = "text is repeated after it, or the loss jumps there"
    jumps = [jump for step in resumes if (jump := _step_in_loss(run, step))]
    told = [f"{value:+.3f} ± {error:.3f} at step {step:,}" for step, value, error in jumps]
    if run.history.format in REPEATS:
        said = "nanoGPT's resume draws the batches of its start again"
        return Condition(question, "; ".join([said, *told]), True)
    if not jumps:
        return unknown(question, f"{SEAM // 2} training losses on either side of the resume")
    visible = [jump for jump in jumps if abs(jump[1]) >= max(LEAST_SEAM, VISIBLE * jump[2])]
    return Condition(question, "; ".join(told), bool(visible))


def _step_in_loss(run: RunAnalysis, step: int) -> tuple[int, float, float] | None:
    """By how much the losses after a resume stand above the line through those before it, and the error of that."""
    before = _at_end(run.train_losses, step)
    after = run.train_losses.between(step, math.inf)
    mirrored = Series(step - after.steps[:SEAM][::-1], after.values[:SEAM][::-1], after.lines[:SEAM][::-1])
    behind = _at_end(mirrored, 1.0)
    if before is None or behind is None or min(len(after), len(run.train_losses)) < SEAM // 2:
        return None
    return step, behind.value - before.value, math.hypot(before.error, behind.error)


def _at_end(losses: Series, step: float) -> Estimate | None:
    """The level before `step` by a line through `SEAM` losses; its error also holds what their bend does to a line.

    A line through half of them strays a quarter as far: the difference of both is three quarters of what is wrong.
    """
    whole, half = series.trailing(losses, step, SEAM), series.trailing(losses, step, SEAM // 2)
    if whole is None or half is None:
        return None
    return Estimate(whole.value, math.hypot(whole.error, (whole.value - half.value) * 4 / 3), whole.lines)
