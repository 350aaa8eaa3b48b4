"""A run compared with a baseline run: how they differ, and whether that explains a higher loss."""

from typing import Literal

from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.finding import Condition, unknown

Difference = Literal["size", "learning rate", "decay", "tokens"]
MIN_EXCESS = 0.02  # nats above the baseline run that count
SMALLER = 1.3  # times fewer parameters: the least that the scaling law puts at a few hundredths of a nat
HIGHER_LR = 2.0  # times the peak learning rate
LATER_DECAY = 0.2  # of the peak: how far the learning rate is above the baseline's at the last step
FEWER_TOKENS = 2.0  # times fewer unique tokens


def is_worse(run: RunAnalysis) -> Condition:
    """Whether the validation loss is above the baseline run's."""
    question = f"validation is at least {MIN_EXCESS:g} nats above the baseline run at the same steps"
    excess = run.loss_above_baseline
    if excess is None:
        return unknown(question, "a baseline run whose evaluations cover the same steps")
    return Condition(question, excess.text, excess.value >= max(MIN_EXCESS, 2 * excess.stderr), excess.lines)


def is_smaller(run: RunAnalysis) -> Condition:
    """Whether the baseline run has a larger model."""
    question = f"the baseline run has at least {SMALLER:g} times as many parameters"
    own = run.context.parameters
    other = run.baseline.context.parameters if run.baseline else None
    if own is None or other is None:
        return unknown(question, "the size of both: --params, or run folders")
    return Condition(question, f"{own:,.0f} against {other:,.0f}", other >= SMALLER * own)


def has_higher_lr(run: RunAnalysis) -> Condition:
    """Whether the peak learning rate is far above the baseline run's."""
    question = f"the peak learning rate is at least {HIGHER_LR:g} times the baseline run's"
    own = run.context.optim.learning_rate
    other = run.baseline.context.optim.learning_rate if run.baseline else 0.0
    return Condition(question, f"{own:g} against {other:g}", own >= HIGHER_LR * other > 0)


def decays_later(run: RunAnalysis) -> Condition:
    """Whether the learning rate has decayed less than the baseline run's."""
    question = f"the learning rate is at least {LATER_DECAY:.0%} of the peak above the baseline run's"
    step = run.steps_done - 1
    own = run.lr_fraction(step)
    other = run.baseline.lr_fraction(step) if run.baseline else None
    if own is None or other is None or run.baseline is None:
        return unknown(question, "the schedules of both")
    warmup = max(run.context.optim.warmup_steps, run.baseline.context.optim.warmup_steps)
    if step < warmup:
        return Condition(question, f"a warmup lasts until step {warmup:,}", False)
    return Condition(
        question, f"{own:.0%} against {other:.0%} of the peak at step {step:,}", own - other >= LATER_DECAY
    )


def has_fewer_tokens(run: RunAnalysis) -> Condition:
    """Whether the run repeats its text and has far fewer unique tokens than the baseline run."""
    question = f"it repeats text and has {FEWER_TOKENS:g} times fewer unique tokens than the baseline run"
    epochs = run.epochs
    own = run.context.unique_tokens
    other = run.baseline.context.unique_tokens if run.baseline else None
    if epochs is None or own is None or other is None:
        return unknown(question, "the unique tokens of both: --unique-tokens, or run folders")
    return Condition(question, f"{epochs:.1f} epochs of {own:,.0f}", epochs > 1 and other >= FEWER_TOKENS * own)


DIFFERENCES = {"size": is_smaller, "learning rate": has_higher_lr, "decay": decays_later, "tokens": has_fewer_tokens}


def is_otherwise_equal(run: RunAnalysis, except_for: Difference | None = None) -> Condition:
    """Whether no difference from the baseline run, other than `except_for`, explains a higher loss."""
    question = "no other difference from the baseline run explains it"
    conditions = {name: check(run) for name, check in DIFFERENCES.items() if name != except_for}
    different = [f"{name}: {condition.evidence}" for name, condition in conditions.items() if condition.result]
    if different:
        return Condition(question, "; ".join(different), False)
    equal = [name for name, condition in conditions.items() if condition.result is not None]
    return Condition(question, f"{', '.join(equal) or 'nothing'} as in the baseline run", True)
