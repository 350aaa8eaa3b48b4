"""A run beside a clean baseline: in what they differ, and whether that explains a difference of their losses."""

from typing import Literal

from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.finding import Condition, unknown

Cause = Literal["size", "rate", "decay", "tokens"]
SMALLER = 1.3  # times fewer parameters: the least that the law puts at a few hundredths of a nat
HIGHER = 2.0  # times the peak rate
LATER = 0.2  # of the peak that the rate stands above the baseline's at its end
FEWER = 2.0  # times fewer different tokens


def smaller(run: RunAnalysis) -> Condition:
    question = f"the baseline has {SMALLER:g} times as many parameters or more"
    mine, other = run.context.parameters, run.baseline.context.parameters if run.baseline else None
    if mine is None or other is None:
        return unknown(question, "the size of both: --params, or run folders")
    return Condition(question, f"{mine:,.0f} against {other:,.0f}", other >= SMALLER * mine)


def higher_rate(run: RunAnalysis) -> Condition:
    question = f"the peak learning rate is {HIGHER:g} times the baseline's or more"
    mine, other = run.context.optim.learning_rate, run.baseline.context.optim.learning_rate if run.baseline else 0.0
    return Condition(question, f"{mine:g} against {other:g}", mine >= HIGHER * other > 0)


def later_decay(run: RunAnalysis) -> Condition:
    question = f"the learning rate stands {LATER:.0%} of the peak or more above the baseline's"
    step = run.steps_done - 1
    mine, other = run.lr_fraction(step), run.baseline.lr_fraction(step) if run.baseline else None
    if mine is None or other is None or run.baseline is None:
        return unknown(question, "the schedules of both")
    warm = max(run.context.optim.warmup_steps, run.baseline.context.optim.warmup_steps)
    if step < warm:
        return Condition(question, f"a warmup lasts until step {warm:,}", False)
    return Condition(question, f"{mine:.0%} against {other:.0%} of the peak at step {step:,}", mine - other >= LATER)


def fewer_tokens(run: RunAnalysis) -> Condition:
    question = f"it repeats text and has {FEWER:g} times fewer different tokens than the baseline"
    epochs, mine = run.epochs, run.context.unique_tokens
    other = run.baseline.context.unique_tokens if run.baseline else None
    if epochs is None or mine is None or other is None:
        return unknown(question, "the different tokens of both: --unique-tokens, or run folders")
    return Condition(question, f"{epochs:.1f} epochs of {mine:,.0f}", epochs > 1 and other >= FEWER * mine)


CAUSES = {"size": smaller, "rate": higher_rate, "decay": later_decay, "tokens": fewer_tokens}


def otherwise_equal(run: RunAnalysis, but: Cause | None = None) -> Condition:
    """Whether no difference to the baseline, except `but`, explains a loss above its own."""
    question = "nothing else that differs from the baseline explains it"
    found = {name: ask(run) for name, ask in CAUSES.items() if name != but}
    guilty = [name for name, condition in found.items() if condition.result]
    if guilty:
        return Condition(question, "; ".join(f"{name}: {found[name].evidence}" for name in guilty), False)
    known = [name for name, condition in found.items() if condition.result is not None]
    return Condition(question, f"{', '.join(known) or 'nothing'} as in the baseline", True)
