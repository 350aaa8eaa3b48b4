"""Checks of the learning rate, and of plateaus that it or the noise of evaluations makes."""

import math

from jaxgpt.budget.scaling_law import tuned_learning_rate
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.analysis.losses import VISIBLE
from jaxgpt.diagnose.checks import baseline, invalid_losses, repetition, stagnation
from jaxgpt.diagnose.finding import Condition, Finding, compare, unknown
from jaxgpt.utils.formatting import pluralize
from jaxgpt.utils.stats import Z80

LARGE_GAIN = 0.05  # nats that annealing would gain: 0.128 ± 0.025 at the peak in healthy runs, 0.02 at 0.3 of it
MIN_DECREASE = 0.001  # nats: a smaller decrease of the fitted curve is within its misfit
WORTHWHILE_GAIN = 0.01  # nats that annealing would gain and that are worth reporting
DECAYED = 0.15  # of the peak: the runs that the scaling law was fitted to end at 0 to 10 %
NEARLY_OVER = 0.99  # of the steps: a run that has come so far is over
HIGH_LR = 0.7  # of the peak: the baseline run's learning rate before its decay
UNTUNED_LR = 3.0  # times the tuned rate; runs of one size are tuned within a factor of two to three of each other
WIDENED = 0.05  # nats of growth of the gap between validation and training loss
# Standard errors of a decrease that shows that a curve falls. The noise is estimated within 25 % from 32 evaluations,
# within 50 % from 8, so that 0.6 % and 3 % of curves that do not fall seem to fall by more (by two: 3 % and 6 %).
CLEAR = 3.0
UNEXPECTED = 0.5  # of the expected decrease: a curve that falls by more looks as it should
AROSE_IN_DECAY = 0.5  # of the distance to the baseline run must have arisen during its decay

GAIN = "{0.value:.3f} ± {0.stderr:.3f} nats"
NEVER_DECAYED = "the learning rate had not decayed at the end of the run, which cost loss"
TWO_EVALUATIONS = "two evaluations after step 0"


def lr_too_high(run: RunAnalysis) -> Finding:
    """Confirmed if the learning rate is so high that the loss stagnates above where annealing would bring it."""
    conditions: tuple[Condition, ...] = (
        _is_untuned(run),
        _stays_high(run),
        _has_large_gain(run),
        _stagnates(run),
        *stagnation.has_learned(run),
    )
    if run.baseline is not None:
        is_otherwise_equal = baseline.is_otherwise_equal(run, except_for="learning rate")
        conditions = (baseline.has_higher_lr(run), baseline.is_worse(run), is_otherwise_equal)
    return Finding(id="lr-too-high", conditions=conditions, cost=_cost(run))


def not_annealed(run: RunAnalysis) -> Finding:
    """Confirmed if part of the loss is only due to a learning rate that has not decayed yet."""
    conditions: tuple[Condition, ...] = (
        _is_still_high(run),
        _has_worthwhile_gain(run),
        _can_fall(run),
        *stagnation.has_learned(run),
        *_has_valid_losses(run),
    )
    if run.baseline is not None:
        is_otherwise_equal = baseline.is_otherwise_equal(run, except_for="decay")
        conditions = (baseline.decays_later(run), baseline.is_worse(run), _arose_in_decay(run), is_otherwise_equal)
    return Finding(id="not-annealed", conditions=conditions, cost=_cost(run), meaning=NEVER_DECAYED * run.is_finished)


def noise_not_plateau(run: RunAnalysis) -> Finding:
    """Confirmed if an apparent plateau is a slow decrease hidden by the noise of the evaluations."""
    conditions = (
        _is_not_over(run),
        _looks_flat(run),
        _still_looks_flat(run),
        _expects_hidden_decrease(run),
        _fits_training(run),
        *stagnation.has_learned(run),
        *_has_valid_losses(run),
    )
    return Finding(id="noise-not-plateau", conditions=conditions)


def _has_valid_losses(run: RunAnalysis) -> tuple[Condition, ...]:
    """A false condition where the losses show a fault of the measurement."""
    invalid = invalid_losses.is_invalid(run)
    return (Condition("the losses are valid", invalid.evidence, False, invalid.lines),) if invalid.result else ()


def _cost(run: RunAnalysis) -> float | None:
    estimate = run.loss_above_baseline if run.baseline is not None else run.annealing_gain
    return estimate.value if estimate else None


def _needs(run: RunAnalysis) -> str:
    """What an annealing gain needs: the schedule, and steps that were done."""
    return run.context.missing_schedule or "a first step"


def _is_untuned(run: RunAnalysis) -> Condition:
    """Whether the peak learning rate is far above what tuned runs of this size have."""
    question = f"the peak learning rate is more than {UNTUNED_LR:g} times that of tuned AdamW runs of this size"
    size = run.context.parameters
    peak = run.context.optim.learning_rate
    if (run.context.sources or {}).get("peak_lr") == "assumption":
        return unknown(question, "the peak learning rate (--peak-lr)")
    if size is None or run.context.optimizer is None:
        return unknown(question, run.context.missing("parameters", "optimizer"))
    if run.context.optimizer != "adamw":
        return unknown(question, "a run at a lower learning rate to compare with (--baseline RUN)")
    tuned = tuned_learning_rate(size)
    return Condition(
        question, f"{peak:g}; tuned runs of {size / 1e6:,.0f}M peak at {tuned:.2g}", peak > UNTUNED_LR * tuned
    )


def _stays_high(run: RunAnalysis) -> Condition:
    """Whether the learning rate is not the constant part of a schedule that decays later."""
    question = "this is not the constant part of a schedule whose decay is still to come"
    fraction = run.current_lr_fraction
    if fraction is None or run.context.missing_schedule:
        return unknown(question, _needs(run))
    holds = run.context.optim.schedule == "wsd" and fraction >= HIGH_LR
    return Condition(question, f"{run.context.optim.schedule}, {fraction:.0%} of the peak now", not holds)


def _has_large_gain(run: RunAnalysis) -> Condition:
    question = f"annealing would gain more than {LARGE_GAIN:g} nats"
    return compare(question, run.annealing_gain, lambda gain: gain.value > LARGE_GAIN, GAIN, _needs(run))


def _stagnates(run: RunAnalysis) -> Condition:
    question = "at this learning rate the loss decreases by less than an evaluation's standard error"
    window = run.losses.plateau_window
    if window is None or window.stderr is None:
        return unknown(question, _missing_for_window(run))
    warmup = run.context.optim.warmup_steps
    if window.first.step < warmup:
        return Condition(question, f"the warmup lasts until step {warmup:,}", False)
    stagnates = window.decrease < (run.losses.eval_stderr or 0.0)
    return Condition(question, _change(run), stagnates, (window.first.line, window.last.line))


def _missing_for_window(run: RunAnalysis) -> str:
    """What a comparison of the last evaluations with their noise needs."""
    if run.losses.plateau_window is None:
        return TWO_EVALUATIONS
    return run.context.missing("eval_tokens") if run.losses.eval_stderr is None else "a forecast"


def _change(run: RunAnalysis) -> str:
    """The change of the loss over the plateau window, as text."""
    window = run.losses.plateau_window
    if window is None:
        return ""
    stderr = run.losses.eval_stderr
    noise = "" if stderr is None else f"; the standard error of an evaluation is {stderr:.4f}"
    return f"{-window.decrease:+.4f} nats from step {window.first.step:,} to {window.last.step:,}{noise}"


def _is_still_high(run: RunAnalysis) -> Condition:
    question = f"the learning rate is past its warmup and above {DECAYED:.0%} of its peak"
    fraction = run.current_lr_fraction
    if fraction is None:
        return unknown(question, _needs(run))
    is_past_warmup = run.steps_done > run.context.optim.warmup_steps
    evidence = f"{fraction:.0%} of the peak at step {run.steps_done:,}"
    if not is_past_warmup:
        evidence += ", in the warmup"
    return Condition(question, evidence, is_past_warmup and fraction > DECAYED)


def _has_worthwhile_gain(run: RunAnalysis) -> Condition:
    question = f"annealing now would gain at least {WORTHWHILE_GAIN:g} nats, and more than its uncertainty"
    return compare(
        question,
        run.annealing_gain,
        lambda gain: gain.value >= max(WORTHWHILE_GAIN, Z80 * gain.stderr),
        GAIN,
        _needs(run),
    )


def _can_fall(run: RunAnalysis) -> Condition:
    """Whether repeated text leaves room for a decrease: while it is memorized, annealing does not lower the loss."""
    question = "validation has not risen, nor is it expected to rise from repetition"
    memorized = repetition.costs_unknown(run)
    if memorized:
        return Condition(question, memorized, False)
    latest = run.losses.latest_val
    if run.forecast is not None and latest is not None and run.forecast.mean > latest.value + WORTHWHILE_GAIN:
        return Condition(question, f"{latest.value:.3f} now, forecast {run.forecast.mean:.3f}", False, latest.lines)
    risen = repetition.has_risen(run)
    return Condition(question, risen.evidence, not risen.result, risen.lines)


def _arose_in_decay(run: RunAnalysis) -> Condition:
    question = "most of the distance to the baseline run arose while the baseline's learning rate decayed"
    other = run.baseline
    excess = run.loss_above_baseline
    if other is None or excess is None:
        return unknown(question, "a baseline run whose evaluations cover the same steps")
    before = run.loss_above_baseline_where(lambda step: (other.lr_fraction(step) or 0.0) >= HIGH_LR)
    if before is None:
        return unknown(question, "evaluations while the baseline's learning rate was high")
    evidence = f"{before.value:+.3f} while it was above {HIGH_LR:.0%} of its peak, {excess.value:+.3f} now"
    return Condition(question, evidence, before.value <= (1 - AROSE_IN_DECAY) * excess.value, before.lines)


def _is_not_over(run: RunAnalysis) -> Condition:
    question = "the run is not over"
    total = run.context.total_steps
    if total is None:
        return unknown(question, run.context.missing("total_steps"))
    evidence = f"{run.steps_done:,} of {pluralize(total, 'step')}"
    return Condition(question, evidence, run.steps_done < NEARLY_OVER * total)


def _looks_flat(run: RunAnalysis) -> Condition:
    question = "the last evaluations differ by less than their noise, and by less than half of what is expected"
    window = run.losses.plateau_window
    if window is None or window.stderr is None:
        return unknown(question, _missing_for_window(run))
    expected = run.expected_decrease or math.inf
    is_flat = abs(window.decrease) < window.stderr and window.decrease < UNEXPECTED * expected
    return Condition(question, _change(run), is_flat, (window.first.line, window.last.line))


def _still_looks_flat(run: RunAnalysis) -> Condition:
    """Whether a longer look shows no decrease either: a curve that visibly improves has no plateau."""
    question = "the last quarter of the steps shows no decrease either"
    recent = run.losses.recent_decrease
    if recent is None:
        return Condition(question, "one evaluation", True)
    evidence = f"{-recent.value:+.4f} ± {recent.stderr:.4f} nats"
    return Condition(question, evidence, recent.value < CLEAR * recent.stderr, recent.lines)


def _fits_training(run: RunAnalysis) -> Condition:
    """Whether the training loss is no lower, compared with validation, than it was: else the plateau is overfitting."""
    question = "the gap to the training loss has not widened meanwhile"
    points = [gap for gap in run.gap.points if gap.step >= run.steps_done / 2]
    if len(points) < 2:
        return Condition(question, "fewer than two gaps in the second half of the steps", True)
    first, last = points[0], points[-1]
    growth = last.value - first.value
    limit = max(WIDENED, VISIBLE * math.hypot(first.stderr, last.stderr))
    evidence = f"{growth:+.3f} nats since step {first.step:,}"
    return Condition(question, evidence, growth < limit, (*first.lines, *last.lines))


def _expects_hidden_decrease(run: RunAnalysis) -> Condition:
    question = "the forecast decreases there, by less than these evaluations can show"
    window = run.losses.plateau_window
    decrease = run.expected_decrease
    if window is None or window.stderr is None or decrease is None:
        return unknown(question, _missing_for_window(run))
    evidence = f"expected {-decrease:+.4f}; changes below {VISIBLE * window.stderr:.3f} are not visible"
    is_hidden = MIN_DECREASE < decrease < VISIBLE * window.stderr
    return Condition(question, evidence, is_hidden, (window.first.line, window.last.line))
