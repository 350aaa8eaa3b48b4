"""The learning rate, and plateaus that it or an evaluation's noise makes."""

from jaxgpt.diagnose.verdict import Condition, Verdict
from jaxgpt.diagnose.verdicts import recipe, twins
from jaxgpt.diagnose.verdicts.case import CALM, Case
from jaxgpt.diagnose.verdicts.repetition import worse
from jaxgpt.diagnose.verdicts.said import unknown
from jaxgpt.utils.stats import Z80

MUCH_LEFT = 0.05  # nats that annealing would take off: clean runs have .128 +- .025 at the peak and .02 at 0.3 of it
WORTH = 0.01  # nats: what is left to anneal is worth a sentence
ANNEALED = 0.15  # of the peak; the law's runs end at 0 to 10 %
OVER = 0.99  # of the steps: a run that has come so far is over
AROSE = 0.5  # of the distance to the twin must have come about while its rate fell

SCHEDULE = "the schedule: --schedule … --warmup N --total-steps N"
TWO = "two evaluations after step 0, and their size (--eval-tokens N)"


def too_high(case: Case) -> Verdict:
    """Whether the rate is so high that the loss stands still above where it would fall to."""
    if case.twin is not None:
        conditions = (twins.higher_rate(case), worse(case), twins.otherwise_equal(case, but="rate"))
        return Verdict(id="lr-too-high", conditions=conditions, weight=_excess(case))
    alone = (_much_left(case), _standing(case), *_unlearned(case))
    return Verdict(id="lr-too-high", conditions=alone, weight=_left(case))


def not_annealed(case: Case) -> Verdict:
    """Whether part of the loss is only that the rate has not come down."""
    if case.twin is not None:
        conditions = (twins.later_decay(case), worse(case), _arose(case), twins.otherwise_equal(case, but="decay"))
        return Verdict(id="not-annealed", conditions=conditions, weight=_excess(case))
    alone = (_still_high(case), _worth(case), *_unlearned(case))
    return Verdict(id="not-annealed", conditions=alone, weight=_left(case))


def noise(case: Case) -> Verdict:
    """Whether what looks like a plateau is what the noise of an evaluation makes of a slow fall."""
    return Verdict(id="noise-not-plateau", conditions=(_goes_on(case), _looks_flat(case), _hidden(case)), weight=1e-3)


def _unlearned(case: Case) -> tuple[Condition, ...]:
    """A refutation where the run has learned nothing yet: what annealing takes off such a loss is not known."""
    found = recipe.stuck(case)
    if not found.holds:
        return ()
    return (Condition("it has learned more than how frequent each token is", found.found, False, found.lines),)


def _excess(case: Case) -> float:
    return case.excess.value if case.excess else 0.0


def _left(case: Case) -> float:
    return case.anneal.value if case.anneal else 0.0


def _much_left(case: Case) -> Condition:
    asks = f"annealing would take off more than {MUCH_LEFT:g} nats"
    left = case.anneal
    if left is None:
        return unknown(asks, SCHEDULE)
    return Condition(asks, f"{left.value:.3f} ± {left.error:.3f} nats", left.value > MUCH_LEFT)


def _standing(case: Case) -> Condition:
    asks = "at this rate the loss falls by less than an evaluation's standard error"
    flat = case.flat
    if flat is None or flat.error is None:
        return unknown(asks, TWO)
    warm = case.setting.optim.warmup_steps
    if flat.first.step < warm:
        return Condition(asks, f"the warmup lasts until step {warm:,}", False)
    return Condition(asks, _fell(case), flat.fall < (case.error or 0.0), (flat.first.line, flat.last.line))


def _fell(case: Case) -> str:
    flat = case.flat
    if flat is None:
        return ""
    error = "" if case.error is None else f"; one evaluation is known to ± {case.error:.4f}"
    return f"{-flat.fall:+.4f} nats from step {flat.first.step:,} to {flat.last.step:,}{error}"


def _still_high(case: Case) -> Condition:
    asks = f"the learning rate is past its warmup and above {ANNEALED:.0%} of its peak"
    share = case.share_now
    if share is None:
        return unknown(asks, SCHEDULE)
    past = case.done > case.setting.optim.warmup_steps
    found = f"{share:.0%} of the peak at step {case.done:,}" + ("" if past else ", in the warmup")
    return Condition(asks, found, past and share > ANNEALED)


def _worth(case: Case) -> Condition:
    asks = f"annealing now would take off {WORTH:g} nats or more, and surely some"
    left = case.anneal
    if left is None:
        return unknown(asks, SCHEDULE)
    found = f"{left.value:.3f} ± {left.error:.3f} nats"
    return Condition(asks, found, left.value >= WORTH and left.value > Z80 * left.error)


def _arose(case: Case) -> Condition:
    asks = "most of the distance to the twin came about while the twin's rate fell"
    twin, excess = case.twin, case.excess
    if twin is None or excess is None:
        return unknown(asks, "a twin whose evaluations cover the same steps")
    before = case.excess_while(lambda step: (twin.share(step) or 0.0) >= 0.7)
    if before is None:
        return unknown(asks, "evaluations while the twin's rate was high")
    found = f"{before.value:+.3f} while its rate was above 70 % of its peak, {excess.value:+.3f} now"
    return Condition(asks, found, before.value <= (1 - AROSE) * excess.value, before.lines)


def _goes_on(case: Case) -> Condition:
    total = case.setting.total_steps
    if total is None:
        return unknown("the run is not over", "how long the run is: --total-steps N")
    return Condition("the run is not over", f"{case.done:,} of {total:,} steps", case.done < OVER * total)


def _looks_flat(case: Case) -> Condition:
    asks = "the last evaluations differ by less than their noise"
    flat = case.flat
    if flat is None or flat.error is None:
        return unknown(asks, TWO)
    return Condition(asks, _fell(case), abs(flat.fall) < flat.error, (flat.first.line, flat.last.line))


def _hidden(case: Case) -> Condition:
    asks = "a fall is expected there, and one too small for these evaluations to show"
    flat, fall = case.flat, case.expected_fall
    if flat is None or case.error is None or fall is None:
        return unknown(asks, TWO)
    found = f"expected {-fall:+.4f}; below {CALM * case.error:.3f} nothing can be seen"
    return Condition(asks, found, 0 < fall < CALM * case.error, (flat.first.line, flat.last.line))
