"""The model as the limit."""

from jaxgpt.diagnose.verdict import Condition, Verdict
from jaxgpt.diagnose.verdicts import twins
from jaxgpt.diagnose.verdicts.case import Case
from jaxgpt.diagnose.verdicts.repetition import worse
from jaxgpt.diagnose.verdicts.said import unknown

RATIO = 3.0  # gain of twice the model over that of twice the tokens: 4.3 for the reference run, 2.3 at 20 tokens
# per parameter, by the law (`scaling`)
LEVEL = 2.0  # standard deviations of the law within which a level is normal for its size


def capacity_limited(case: Case) -> Verdict:
    """Whether the loss is where a model of this size ends, and only a larger one would help."""
    if case.twin is not None:
        smaller = twins.smaller(case)
        return Verdict(
            id="capacity-limited",
            conditions=(smaller, worse(case), twins.otherwise_equal(case, but="size")),
            weight=case.excess.value if case.excess else 0.0,
        )
    return Verdict(
        id="capacity-limited",
        conditions=(_level(case), _ratio(case)),
        weight=_gain(case, "parameters") or 0.0,
    )


def _gain(case: Case, what: str) -> float | None:
    return None if case.asked is None else case.gain(**{what: 2 * getattr(case.asked, what)})


def _level(case: Case) -> Condition:
    asks = "the loss is within two standard deviations of what the law expects of this size and text"
    level = case.level
    if level is None:
        why = case.unlicensed or "no validation loss after the warmup"
        return unknown(asks, f"{why}: a clean twin to compare with (--twin RUN)")
    found = f"{level.value:+.3f} ± {level.error:.3f} from the law"
    if case.forecast is not None and case.law is not None:
        found += f"; forecast of the end {case.forecast.mean:.3f}, the law's {case.law.loss:.3f}"
    return Condition(asks, found, abs(level.value) <= LEVEL * level.error, level.lines)


def _ratio(case: Case) -> Condition:
    asks = f"twice the model would gain more than {RATIO:g} times what twice the tokens would"
    size, tokens = _gain(case, "parameters"), _gain(case, "tokens")
    if size is None or tokens is None:
        return unknown(asks, "the model's size and tokens per step: --params, --batch-tokens, or --config NAME")
    if case.law is not None and case.law.outside:
        return unknown(asks, f"outside the law's fitted range: {case.law.outside[0]}: a clean twin (--twin RUN)")
    times = f", {size / tokens:.1f} times" if tokens > 0 else ""
    return Condition(asks, f"{size:.3f} against {tokens:.3f} nats{times}", size > max(RATIO * tokens, 0.0))
