"""The learning rate, and plateaus that it or an evaluation's noise makes."""

from jaxgpt.diagnose.checks import baseline, recipe
from jaxgpt.diagnose.checks.analysis import CALM, RunAnalysis
from jaxgpt.diagnose.checks.repetition import worse
from jaxgpt.diagnose.finding import Condition, Finding, unknown
from jaxgpt.utils.stats import Z80

MUCH_LEFT = 0.05  # nats that annealing would take off: clean runs have .128 +- .025 at the peak and .02 at 0.3 of it
WORTH = 0.01  # nats: what is left to anneal is worth a sentence
ANNEALED = 0.15  # of the peak; the law's runs end at 0 to 10 %
OVER = 0.99  # of the steps: a run that has come so far is over
AROSE = 0.5  # of the distance to the baseline must have come about while its rate fell

SCHEDULE = "the schedule: --schedule … --warmup N --total-steps N"
TWO = "two evaluations after step 0, and their size (--eval-tokens N)"


def too_high(run: RunAnalysis) -> Finding:
    """Whether the rate is so high that the loss stands still above where it would fall to."""
    if run.baseline is not None:
        conditions = (baseline.higher_rate(run), worse(run), baseline.otherwise_equal(run, but="rate"))
        return Finding(id="lr-too-high", conditions=conditions, weight=_excess(run))
    alone = (_much_left(run), _standing(run), *_unlearned(run))
    return Finding(id="lr-too-high", conditions=alone, weight=_left(run))


def not_annealed(run: RunAnalysis) -> Finding:
    """Whether part of the loss is only that the rate has not come down."""
    if run.baseline is not None:
        conditions = (baseline.later_decay(run), worse(run), _arose(run), baseline.otherwise_equal(run, but="decay"))
        return Finding(id="not-annealed", conditions=conditions, weight=_excess(run))
    alone = (_still_high(run), _worth(run), *_unlearned(run))
    return Finding(id="not-annealed", conditions=alone, weight=_left(run))


def noise(run: RunAnalysis) -> Finding:
    """Whether what looks like a plateau is what the noise of an evaluation makes of a slow fall."""
    return Finding(id="noise-not-plateau", conditions=(_goes_on(run), _looks_flat(run), _hidden(run)), weight=1e-3)


def _unlearned(run: RunAnalysis) -> tuple[Condition, ...]:
    """A refutation where the run has learned nothing yet: what annealing takes off such a loss is not known."""
    found = recipe.stuck(run)
    if not found.result:
        return ()
    return (Condition("it has learned more than how frequent each token is", found.evidence, False, found.lines),)


def _excess(run: RunAnalysis) -> float:
    return run.loss_above_baseline.value if run.loss_above_baseline else 0.0


def _left(run: RunAnalysis) -> float:
    return run.annealing_gain.value if run.annealing_gain else 0.0


def _much_left(run: RunAnalysis) -> Condition:
    question = f"annealing would take off more than {MUCH_LEFT:g} nats"
    left = run.annealing_gain
    if left is None:
        return unknown(question, SCHEDULE)
    return Condition(question, f"{left.value:.3f} ± {left.error:.3f} nats", left.value > MUCH_LEFT)


def _standing(run: RunAnalysis) -> Condition:
    question = "at this rate the loss falls by less than an evaluation's standard error"
    flat = run.plateau_window
    if flat is None or flat.error is None:
        return unknown(question, TWO)
    warm = run.context.optim.warmup_steps
    if flat.first.step < warm:
        return Condition(question, f"the warmup lasts until step {warm:,}", False)
    return Condition(question, _fell(run), flat.fall < (run.eval_stderr or 0.0), (flat.first.line, flat.last.line))


def _fell(run: RunAnalysis) -> str:
    flat = run.plateau_window
    if flat is None:
        return ""
    error = "" if run.eval_stderr is None else f"; one evaluation is known to ± {run.eval_stderr:.4f}"
    return f"{-flat.fall:+.4f} nats from step {flat.first.step:,} to {flat.last.step:,}{error}"


def _still_high(run: RunAnalysis) -> Condition:
    question = f"the learning rate is past its warmup and above {ANNEALED:.0%} of its peak"
    share = run.lr_fraction_now
    if share is None:
        return unknown(question, SCHEDULE)
    past = run.steps_done > run.context.optim.warmup_steps
    found = f"{share:.0%} of the peak at step {run.steps_done:,}" + ("" if past else ", in the warmup")
    return Condition(question, found, past and share > ANNEALED)


def _worth(run: RunAnalysis) -> Condition:
    question = f"annealing now would take off {WORTH:g} nats or more, and surely some"
    left = run.annealing_gain
    if left is None:
        return unknown(question, SCHEDULE)
    found = f"{left.value:.3f} ± {left.error:.3f} nats"
    return Condition(question, found, left.value >= WORTH and left.value > Z80 * left.error)


def _arose(run: RunAnalysis) -> Condition:
    question = "most of the distance to the baseline came about while the baseline's rate fell"
    baseline, excess = run.baseline, run.loss_above_baseline
    if baseline is None or excess is None:
        return unknown(question, "a baseline whose evaluations cover the same steps")
    before = run.loss_above_baseline_where(lambda step: (baseline.lr_fraction(step) or 0.0) >= 0.7)
    if before is None:
        return unknown(question, "evaluations while the baseline's rate was high")
    found = f"{before.value:+.3f} while its rate was above 70 % of its peak, {excess.value:+.3f} now"
    return Condition(question, found, before.value <= (1 - AROSE) * excess.value, before.lines)


def _goes_on(run: RunAnalysis) -> Condition:
    total = run.context.total_steps
    if total is None:
        return unknown("the run is not over", "how long the run is: --total-steps N")
    return Condition("the run is not over", f"{run.steps_done:,} of {total:,} steps", run.steps_done < OVER * total)


def _looks_flat(run: RunAnalysis) -> Condition:
    question = "the last evaluations differ by less than their noise"
    flat = run.plateau_window
    if flat is None or flat.error is None:
        return unknown(question, TWO)
    return Condition(question, _fell(run), abs(flat.fall) < flat.error, (flat.first.line, flat.last.line))


def _hidden(run: RunAnalysis) -> Condition:
    question = "a fall is expected there, and one too small for these evaluations to show"
    flat, fall = run.plateau_window, run.expected_decrease
    if flat is None or run.eval_stderr is None or fall is None:
        return unknown(question, TWO)
    found = f"expected {-fall:+.4f}; below {CALM * run.eval_stderr:.3f} nothing can be seen"
    return Condition(question, found, 0 < fall < CALM * run.eval_stderr, (flat.first.line, flat.last.line))
