"""A run beside a clean twin: in what they differ, and whether that explains a difference of their losses."""

from typing import Literal

from jaxgpt.diagnose.verdict import Condition
from jaxgpt.diagnose.verdicts.case import Case
from jaxgpt.diagnose.verdicts.said import unknown

Cause = Literal["size", "rate", "decay", "tokens"]
SMALLER = 1.3  # times fewer parameters: the least that the law puts at a few hundredths of a nat
HIGHER = 2.0  # times the peak rate
LATER = 0.2  # of the peak that the rate stands above the twin's at its end
FEWER = 2.0  # times fewer different tokens


def smaller(case: Case) -> Condition:
    asks = f"the twin has {SMALLER:g} times as many parameters or more"
    mine, other = case.setting.parameters, case.twin.setting.parameters if case.twin else None
    if mine is None or other is None:
        return unknown(asks, "the size of both: --params, or run folders")
    return Condition(asks, f"{mine:,.0f} against {other:,.0f}", other >= SMALLER * mine)


def higher_rate(case: Case) -> Condition:
    asks = f"the peak learning rate is {HIGHER:g} times the twin's or more"
    mine, other = case.setting.optim.learning_rate, case.twin.setting.optim.learning_rate if case.twin else 0.0
    return Condition(asks, f"{mine:g} against {other:g}", mine >= HIGHER * other > 0)


def later_decay(case: Case) -> Condition:
    asks = f"the learning rate stands {LATER:.0%} of the peak or more above the twin's"
    step = case.done - 1
    mine, other = case.share(step), case.twin.share(step) if case.twin else None
    if mine is None or other is None or case.twin is None:
        return unknown(asks, "the schedules of both")
    warm = max(case.setting.optim.warmup_steps, case.twin.setting.optim.warmup_steps)
    if step < warm:
        return Condition(asks, f"a warmup lasts until step {warm:,}", False)
    return Condition(asks, f"{mine:.0%} against {other:.0%} of the peak at step {step:,}", mine - other >= LATER)


def fewer_tokens(case: Case) -> Condition:
    asks = f"it repeats text and has {FEWER:g} times fewer different tokens than the twin"
    epochs, mine = case.epochs, case.setting.unique_tokens
    other = case.twin.setting.unique_tokens if case.twin else None
    if epochs is None or mine is None or other is None:
        return unknown(asks, "the different tokens of both: --unique-tokens, or run folders")
    return Condition(asks, f"{epochs:.1f} epochs of {mine:,.0f}", epochs > 1 and other >= FEWER * mine)


CAUSES = {"size": smaller, "rate": higher_rate, "decay": later_decay, "tokens": fewer_tokens}


def otherwise_equal(case: Case, but: Cause | None = None) -> Condition:
    """Whether no difference to the twin, except `but`, explains a loss above its own."""
    asks = "nothing else that differs from the twin explains it"
    found = {name: ask(case) for name, ask in CAUSES.items() if name != but}
    guilty = [name for name, condition in found.items() if condition.holds]
    if guilty:
        return Condition(asks, "; ".join(f"{name}: {found[name].found}" for name in guilty), False)
    known = [name for name, condition in found.items() if condition.holds is not None]
    return Condition(asks, f"{', '.join(known) or 'nothing'} as in the twin", True)
