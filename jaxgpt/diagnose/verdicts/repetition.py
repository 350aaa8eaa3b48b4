"""Text read more than once: what it has cost, what it will cost, and what regularisation has to do with it."""

import math

from jaxgpt.diagnose.verdict import Condition, Verdict
from jaxgpt.diagnose.verdicts.case import Case
from jaxgpt.diagnose.verdicts.said import any_of, unknown
from jaxgpt.utils.stats import Z80

# datablations (Muennighoff et al., 2023): 2.8B runs of 2/3/4/5/7/14/44 epochs end with an excess gap of .011/.023/.042/
# .060/.075/.237/1.45 and a damage of .005/.008/.015/.025/.037/.123/.85 nats, which is about half of the gap.
GAP_GROWTH = 0.05
DAMAGE = 0.02
DAMAGE_OF_GROWTH = 0.5
# B, the drop from the peak rate to none, is .128 +- .025 in clean runs, .015 and -.08 after 14 epochs (datablations).
LEAST_DROP, NO_DROP = 0.06, 0.02
FALLEN = 0.5  # of the peak: a rate below it has shown what its fall brings; before, the prior alone speaks of B
EARLY_MINIMUM = 0.95  # of the steps done (datablations: minimum at .94 and .79 after 14 epochs, .23 after 44)
SURELY = math.exp(2 * 0.53)  # two of the repetition law's log standard deviations
LAW_FROM = 7e6  # parameters of the smallest model in the repetition law's 131 pairs
NO_GROWTH, FEW_EPOCHS = 0.02, 4.0  # chosen: what dropout costs such a run was not measured
LIGHT_DECAY = 0.1  # weight decay up to which more is worth trying (slowrun has 0.8 to 1.6 on 100M tokens)

TOKENS = "how many tokens differ and how many a step reads: --unique-tokens N --batch-tokens N"


def overfitting(case: Case) -> Verdict:
    conditions = (repeated(case), growth(case), damage(case))
    return Verdict(id="overfitting", conditions=conditions, weight=cost(case))


def severe(case: Case) -> Verdict:
    signs = any_of("the loss turns up again, or does not fall with the rate", (minimum(case), drop(case, NO_DROP)))
    return Verdict(
        id="severe-overfitting",
        conditions=(repeated(case), growth(case), damage(case), signs),
        weight=1.01 * cost(case) + 1e-3,
    )


def risk(case: Case) -> Verdict:
    total = case.total
    epochs, expected = case.setting.epochs(total), case.repetition(total)
    asks = "text will be read more than once by the end"
    first = (
        unknown(asks, TOKENS)
        if epochs is None
        else Condition(asks, f"{epochs:.2f} epochs at step {total:,}", epochs > 1)
    )
    asks = f"the repetition law expects it to cost more than {DAMAGE:g} nats by then"
    second = (
        unknown(asks, f"the model's size (--params) and {TOKENS}")
        if expected is None
        else Condition(asks, f"{expected:.4f} nats, times or divided by 1.7", expected > DAMAGE)
    )
    return Verdict(id="repetition-risk", conditions=(first, second), weight=expected or 0.0)


def missing_regularisation(case: Case) -> Verdict:
    decay = case.setting.weight_decay
    asks = f"weight decay is {LIGHT_DECAY:g} or less"
    light = (
        unknown(asks, "the weight decay: --config NAME")
        if decay is None
        else Condition(asks, f"weight decay {decay:g}", decay <= LIGHT_DECAY)
    )
    conditions = (repeated(case), growth(case), damage(case), light)
    return Verdict(id="missing-regularisation", conditions=conditions, weight=0.5 * cost(case))


def needless_regularisation(case: Case) -> Verdict:
    setting = case.setting
    epochs = setting.epochs(case.total)
    asks = "dropout is on"
    on = (
        unknown(asks, "the dropout: --config NAME")
        if setting.dropout is None
        else Condition(asks, f"dropout {setting.dropout:g}", setting.dropout > 0)
    )
    asks = f"the whole run reads its text fewer than {FEW_EPOCHS:g} times"
    few = unknown(asks, TOKENS) if epochs is None else Condition(asks, f"{epochs:.2f} epochs", epochs < FEW_EPOCHS)
    return Verdict(id="needless-regularisation", conditions=(on, few, _no_growth(case, epochs)))


def data_limited(case: Case) -> Verdict:
    """Whether new text would help more than a larger model would."""
    unique, size = case.setting.unique_tokens, case.setting.parameters
    if case.twin is not None:
        return _fewer_than_twin(case)
    asks = "twice the different tokens at the same steps gain more than twice the model"
    if not unique or not size or case.asked is None:
        return Verdict(id="data-limited", conditions=(unknown(asks, f"the model's size (--params) and {TOKENS}"),))
    data, model = case.gain(unique=2 * unique) or 0.0, case.gain(parameters=2 * size) or 0.0
    found = f"{data:.3f} nats against {model:.3f}"
    worth = Condition(f"and at least {DAMAGE:g} nats", f"{data:.3f}", data >= DAMAGE)
    missing = f"{case.unlicensed}: a run with more text to compare with (--twin RUN)" if _far(case) else ""
    more = Condition(asks, found, None if missing else data > model, (), missing)
    return Verdict(id="data-limited", conditions=(worth, more), weight=data)


def _far(case: Case) -> bool:
    """Whether the law does not reach this run: how two gains compare depends on no corpus's offset."""
    return case.law is None or bool(case.law.outside)


def _fewer_than_twin(case: Case) -> Verdict:
    twin = case.twin
    mine, other = case.setting.unique_tokens, twin.setting.unique_tokens if twin else None
    asks = "it has half of the twin's different tokens or fewer"
    if mine is None or other is None:
        fewer = unknown(asks, TOKENS)
    else:
        fewer = Condition(asks, f"{mine:,.0f} against {other:,.0f}", mine <= other / 2)
    return Verdict(id="data-limited", conditions=(repeated(case), fewer, worse(case)), weight=0.9 * cost(case))


def repeated(case: Case) -> Condition:
    asks = "text has been read more than once"
    epochs = case.epochs
    if epochs is None:
        return unknown(asks, TOKENS)
    return Condition(asks, f"{epochs:.2f} epochs at step {case.done:,}", epochs > 1)


def growth(case: Case) -> Condition:
    """How far the gap between validation and train has widened since each token had been read once."""
    asks = f"the gap of validation to train loss has grown by {GAP_GROWTH:g} since the end of epoch 1"
    end, gaps = case.first_epoch, case.gaps
    if end is None:
        return unknown(asks, TOKENS)
    if case.done <= end:
        return Condition(asks, "epoch 1 is not over", False)
    grown = case.growth
    if grown is None:
        have = stands(gaps[-1].value, gaps[-1].step) if gaps else "no train loss in the log"
        lines = gaps[-1].lines if gaps else ()
        return Condition(asks, have, None, lines, f"the train loss at the end of epoch 1 (step {end:,.0f}) and now")
    found = f"{grown.value:+.3f} ± {grown.error:.3f} ({grown.said})"
    surely = grown.value >= max(GAP_GROWTH, 2 * grown.error)
    if not surely and not grown.exact:
        return Condition(asks, found, None, grown.lines, f"the train loss at the end of epoch 1 (step {end:,.0f})")
    if not surely and grown.value >= GAP_GROWTH:
        return Condition(
            asks, found, None, grown.lines, "train losses that are less noisy: larger evaluations of train"
        )
    return Condition(asks, found, surely, grown.lines)


def stands(gap: float, step: int) -> str:
    """The gap of validation to train loss in words."""
    side = "above" if gap > 0 else "below"
    return f"the validation loss stands {abs(gap):.4f} {side} the train loss at step {step:,}"


def damage(case: Case) -> Condition:
    """Whether repetition has cost validation loss: by the forecast, the twin, the law, or because it rises."""
    asks = f"it has cost at least {DAMAGE:g} nats of validation loss"
    if case.twin is not None:
        return worse(case)
    signs = (rise(case), forecast_excess(case), drop(case, LEAST_DROP), expected(case))
    told = any_of(asks, signs)
    law = case.repetition(case.done)
    if told.holds is None and law is not None and _lawful(case) and law * SURELY < DAMAGE:
        found = f"repetition costs about {law:.4f} nats here, at most {law * SURELY:.3f}"
        return Condition(asks, found, False, told.lines)
    if told.holds is None and signs[0].holds is False and signs[1].holds is False and signs[2].holds is False:
        return told._replace(holds=False, missing="")
    return told


def worse(case: Case) -> Condition:
    """Whether the run's validation loss stands above its twin's."""
    asks = f"validation stands {DAMAGE:g} nats or more above the twin's at the same steps"
    excess = case.excess
    if excess is None:
        return unknown(asks, "a twin whose evaluations cover the same steps")
    found = f"{excess.value:+.3f} ± {excess.error:.3f}"
    return Condition(asks, found, excess.value >= max(DAMAGE, 2 * excess.error), excess.lines)


def expected(case: Case) -> Condition:
    """The repetition law's own expectation up to here."""
    asks = f"the repetition law expects {DAMAGE:g} nats or more"
    cost = case.repetition(case.done)
    if cost is None:
        return unknown(asks, f"the model's size (--params) and {TOKENS}", "")
    if not _lawful(case):
        return unknown(asks, "a run with more text to compare with (--twin RUN)", "")
    return Condition(asks, f"repetition is expected to have cost {cost:.4f} nats", cost >= DAMAGE)


def _lawful(case: Case) -> bool:
    return (case.setting.parameters or 0.0) >= LAW_FROM


def forecast_excess(case: Case) -> Condition:
    """Where the loss stands against what its first epoch led one to expect."""
    asks = f"validation stands {DAMAGE:g} above the forecast from epoch 1"
    over = case.over_first_epoch
    if over is None:
        return unknown(asks, "more evaluations within the first epoch", "")
    found = f"validation stands {over.value:+.3f} ± {over.error:.3f} from what epoch 1 foretold"
    return Condition(asks, found, over.value >= max(DAMAGE, Z80 * over.error), over.lines)


def drop(case: Case, least: float) -> Condition:
    """Whether the fall of the learning rate brings what it brings in clean runs."""
    asks = f"the drop to a rate of zero, B, is below {least:g} (clean runs: 0.128 ± 0.025)"
    if case.unaided is None:
        return unknown(asks, "evaluations after the warmup, three or more", "")
    mean, sd = case.unaided.drop
    found, below, above = f"B {mean:.3f} ± {sd:.3f}", mean + Z80 * sd < least, mean - Z80 * sd > least
    if below or (above and (case.share_now or 1.0) <= FALLEN):
        return Condition(asks, found, below)
    return unknown(asks, "evaluations while the learning rate falls", found)


def rise(case: Case) -> Condition:
    """Whether the validation loss has risen from its minimum."""
    asks = f"validation has risen {DAMAGE:g} from its minimum"
    if len(case.vals) < 3:
        return unknown(asks, "three evaluations or more", "")
    lowest = int(case.vals.values.argmin())
    up = float(case.vals.values[-3:].min() - case.vals.values[lowest])
    found = f"validation stands {up:.3f} above its minimum at step {case.vals.steps[lowest]:,.0f}"
    lines = (int(case.vals.lines[lowest]), int(case.vals.lines[-1]))
    return Condition(asks, found, up >= max(DAMAGE, 2.83 * (case.error or 0.0)), lines)


def minimum(case: Case) -> Condition:
    """Whether the best validation loss lies well behind, by more than an evaluation's noise."""
    asks = f"the lowest validation loss came before {EARLY_MINIMUM:.0%} of the steps done, and has risen since"
    if len(case.vals) < 3:
        return unknown(asks, "three evaluations or more")
    lowest = int(case.vals.values.argmin())
    place = float(case.vals.steps[lowest]) / max(case.done, 1)
    up = rise(case)
    found = f"minimum at {place:.0%} of the steps done; {up.found}"
    return Condition(asks, found, place < EARLY_MINIMUM and bool(up.holds), up.lines)


def cost(case: Case) -> float:
    """Nats that repetition has taken, as well as they are known."""
    if case.excess is not None:
        return max(case.excess.value, 0.0)
    grown = case.growth.value * DAMAGE_OF_GROWTH if case.growth else 0.0
    return max(grown, case.repetition(case.done) or 0.0, 0.0)


def _no_growth(case: Case, epochs: float | None) -> Condition:
    asks = f"the gap has grown by less than {NO_GROWTH:g}"
    if epochs is not None and epochs <= 1:
        return Condition(asks, "no token is read twice", True)
    grown = case.growth
    if grown is None or not grown.exact:
        end = f" (step {case.first_epoch:,.0f})" if case.first_epoch else ""
        return unknown(asks, f"the train loss at the end of epoch 1{end} and now")
    found = f"{grown.value:+.3f} ± {grown.error:.3f} ({grown.said})"
    return Condition(asks, found, grown.value < NO_GROWTH, grown.lines)
