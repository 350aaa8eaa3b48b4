"""Text read more than once: what it has cost, what it will cost, and what regularisation has to do with it."""

import math

from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.finding import Condition, Finding, any_of, unknown
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


def overfitting(run: RunAnalysis) -> Finding:
    conditions = (repeated(run), growth(run), damage(run))
    return Finding(id="overfitting", conditions=conditions, weight=cost(run))


def severe(run: RunAnalysis) -> Finding:
    signs = any_of("the loss turns up again, or does not fall with the rate", (minimum(run), drop(run, NO_DROP)))
    return Finding(
        id="severe-overfitting",
        conditions=(repeated(run), growth(run), damage(run), signs),
        weight=1.01 * cost(run) + 1e-3,
    )


def risk(run: RunAnalysis) -> Finding:
    total = run.total_steps
    epochs, expected = run.context.epochs(total), run.repetition_cost(total)
    question = "text will be read more than once by the end"
    first = (
        unknown(question, TOKENS)
        if epochs is None
        else Condition(question, f"{epochs:.2f} epochs at step {total:,}", epochs > 1)
    )
    question = f"the repetition law expects it to cost more than {DAMAGE:g} nats by then"
    second = (
        unknown(question, f"the model's size (--params) and {TOKENS}")
        if expected is None
        else Condition(question, f"{expected:.4f} nats, times or divided by 1.7", expected > DAMAGE)
    )
    return Finding(id="repetition-risk", conditions=(first, second), weight=expected or 0.0)


def missing_regularisation(run: RunAnalysis) -> Finding:
    decay = run.context.weight_decay
    question = f"weight decay is {LIGHT_DECAY:g} or less"
    light = (
        unknown(question, "the weight decay: --config NAME")
        if decay is None
        else Condition(question, f"weight decay {decay:g}", decay <= LIGHT_DECAY)
    )
    conditions = (repeated(run), growth(run), damage(run), light)
    return Finding(id="missing-regularization", conditions=conditions, weight=0.5 * cost(run))


def needless_regularisation(run: RunAnalysis) -> Finding:
    context = run.context
    epochs = context.epochs(run.total_steps)
    question = "dropout is on"
    on = (
        unknown(question, "the dropout: --config NAME")
        if context.dropout is None
        else Condition(question, f"dropout {context.dropout:g}", context.dropout > 0)
    )
    question = f"the whole run reads its text fewer than {FEW_EPOCHS:g} times"
    few = (
        unknown(question, TOKENS)
        if epochs is None
        else Condition(question, f"{epochs:.2f} epochs", epochs < FEW_EPOCHS)
    )
    return Finding(id="unneeded-dropout", conditions=(on, few, _no_growth(run, epochs)))


def data_limited(run: RunAnalysis) -> Finding:
    """Whether new text would help more than a larger model would."""
    unique, size = run.context.unique_tokens, run.context.parameters
    if run.baseline is not None:
        return _fewer_than_baseline(run)
    question = "twice the different tokens at the same steps gain more than twice the model"
    if not unique or not size or run.query is None:
        return Finding(id="data-limited", conditions=(unknown(question, f"the model's size (--params) and {TOKENS}"),))
    data, model = run.gain(unique=2 * unique) or 0.0, run.gain(parameters=2 * size) or 0.0
    found = f"{data:.3f} nats against {model:.3f}"
    worth = Condition(f"and at least {DAMAGE:g} nats", f"{data:.3f}", data >= DAMAGE)
    missing = (
        f"{run.law_inapplicable_reason}: a run with more text to compare with (--baseline RUN)" if _far(run) else ""
    )
    more = Condition(question, found, None if missing else data > model, (), missing)
    return Finding(id="data-limited", conditions=(worth, more), weight=data)


def _far(run: RunAnalysis) -> bool:
    """Whether the law does not reach this run: how two gains compare depends on no corpus's offset."""
    return run.predicted_loss is None or bool(run.predicted_loss.outside)


def _fewer_than_baseline(run: RunAnalysis) -> Finding:
    baseline = run.baseline
    mine, other = run.context.unique_tokens, baseline.context.unique_tokens if baseline else None
    question = "it has half of the baseline's different tokens or fewer"
    if mine is None or other is None:
        fewer = unknown(question, TOKENS)
    else:
        fewer = Condition(question, f"{mine:,.0f} against {other:,.0f}", mine <= other / 2)
    return Finding(id="data-limited", conditions=(repeated(run), fewer, worse(run)), weight=0.9 * cost(run))


def repeated(run: RunAnalysis) -> Condition:
    question = "text has been read more than once"
    epochs = run.epochs
    if epochs is None:
        return unknown(question, TOKENS)
    return Condition(question, f"{epochs:.2f} epochs at step {run.steps_done:,}", epochs > 1)


def growth(run: RunAnalysis) -> Condition:
    """How far the gap between validation and train has widened since each token had been read once."""
    question = f"the gap of validation to train loss has grown by {GAP_GROWTH:g} since the end of epoch 1"
    end, gaps = run.first_epoch_steps, run.gaps
    if end is None:
        return unknown(question, TOKENS)
    if run.steps_done <= end:
        return Condition(question, "epoch 1 is not over", False)
    grown = run.gap_growth
    if grown is None:
        have = stands(gaps[-1].value, gaps[-1].step) if gaps else "no train loss in the log"
        lines = gaps[-1].lines if gaps else ()
        return Condition(question, have, None, lines, f"the train loss at the end of epoch 1 (step {end:,.0f}) and now")
    found = f"{grown.value:+.3f} ± {grown.error:.3f} ({grown.said})"
    surely = grown.value >= max(GAP_GROWTH, 2 * grown.error)
    if not surely and not grown.exact:
        return Condition(question, found, None, grown.lines, f"the train loss at the end of epoch 1 (step {end:,.0f})")
    if not surely and grown.value >= GAP_GROWTH:
        return Condition(
            question, found, None, grown.lines, "train losses that are less noisy: larger evaluations of train"
        )
    return Condition(question, found, surely, grown.lines)


def stands(gap: float, step: int) -> str:
    """The gap of validation to train loss in words."""
    side = "above" if gap > 0 else "below"
    return f"the validation loss stands {abs(gap):.4f} {side} the train loss at step {step:,}"


def damage(run: RunAnalysis) -> Condition:
    """Whether repetition has cost validation loss: by the forecast, the baseline, the law, or because it rises."""
    question = f"it has cost at least {DAMAGE:g} nats of validation loss"
    if run.baseline is not None:
        return worse(run)
    signs = (rise(run), forecast_excess(run), drop(run, LEAST_DROP), expected(run))
    told = any_of(question, signs)
    law = run.repetition_cost(run.steps_done)
    if told.result is None and law is not None and _lawful(run) and law * SURELY < DAMAGE:
        found = f"repetition costs about {law:.4f} nats here, at most {law * SURELY:.3f}"
        return Condition(question, found, False, told.lines)
    if told.result is None and signs[0].result is False and signs[1].result is False and signs[2].result is False:
        return told._replace(result=False, missing="")
    return told


def worse(run: RunAnalysis) -> Condition:
    """Whether the run's validation loss stands above its baseline's."""
    question = f"validation stands {DAMAGE:g} nats or more above the baseline's at the same steps"
    excess = run.loss_above_baseline
    if excess is None:
        return unknown(question, "a baseline whose evaluations cover the same steps")
    found = f"{excess.value:+.3f} ± {excess.error:.3f}"
    return Condition(question, found, excess.value >= max(DAMAGE, 2 * excess.error), excess.lines)


def expected(run: RunAnalysis) -> Condition:
    """The repetition law's own expectation up to here."""
    question = f"the repetition law expects {DAMAGE:g} nats or more"
    cost = run.repetition_cost(run.steps_done)
    if cost is None:
        return unknown(question, f"the model's size (--params) and {TOKENS}", "")
    if not _lawful(run):
        return unknown(question, "a run with more text to compare with (--baseline RUN)", "")
    return Condition(question, f"repetition is expected to have cost {cost:.4f} nats", cost >= DAMAGE)


def _lawful(run: RunAnalysis) -> bool:
    return (run.context.parameters or 0.0) >= LAW_FROM


def forecast_excess(run: RunAnalysis) -> Condition:
    """Where the loss stands against what its first epoch led one to expect."""
    question = f"validation stands {DAMAGE:g} above the forecast from epoch 1"
    over = run.excess_over_epoch1_forecast
    if over is None:
        return unknown(question, "more evaluations within the first epoch", "")
    found = f"validation stands {over.value:+.3f} ± {over.error:.3f} from what epoch 1 foretold"
    return Condition(question, found, over.value >= max(DAMAGE, Z80 * over.error), over.lines)


def drop(run: RunAnalysis, least: float) -> Condition:
    """Whether the fall of the learning rate brings what it brings in clean runs."""
    question = f"the drop to a rate of zero, B, is below {least:g} (clean runs: 0.128 ± 0.025)"
    if run.fit_without_prior is None:
        return unknown(question, "evaluations after the warmup, three or more", "")
    mean, sd = run.fit_without_prior.annealing_gain
    found, below, above = f"B {mean:.3f} ± {sd:.3f}", mean + Z80 * sd < least, mean - Z80 * sd > least
    if below or (above and (run.lr_fraction_now or 1.0) <= FALLEN):
        return Condition(question, found, below)
    return unknown(question, "evaluations while the learning rate falls", found)


def rise(run: RunAnalysis) -> Condition:
    """Whether the validation loss has risen from its minimum."""
    question = f"validation has risen {DAMAGE:g} from its minimum"
    if len(run.val_losses) < 3:
        return unknown(question, "three evaluations or more", "")
    lowest = int(run.val_losses.values.argmin())
    up = float(run.val_losses.values[-3:].min() - run.val_losses.values[lowest])
    found = f"validation stands {up:.3f} above its minimum at step {run.val_losses.steps[lowest]:,.0f}"
    lines = (int(run.val_losses.lines[lowest]), int(run.val_losses.lines[-1]))
    return Condition(question, found, up >= max(DAMAGE, 2.83 * (run.eval_stderr or 0.0)), lines)


def minimum(run: RunAnalysis) -> Condition:
    """Whether the best validation loss lies well behind, by more than an evaluation's noise."""
    question = f"the lowest validation loss came before {EARLY_MINIMUM:.0%} of the steps done, and has risen since"
    if len(run.val_losses) < 3:
        return unknown(question, "three evaluations or more")
    lowest = int(run.val_losses.values.argmin())
    place = float(run.val_losses.steps[lowest]) / max(run.steps_done, 1)
    up = rise(run)
    found = f"minimum at {place:.0%} of the steps done; {up.evidence}"
    return Condition(question, found, place < EARLY_MINIMUM and bool(up.result), up.lines)


def cost(run: RunAnalysis) -> float:
    """Nats that repetition has taken, as well as they are known."""
    if run.loss_above_baseline is not None:
        return max(run.loss_above_baseline.value, 0.0)
    grown = run.gap_growth.value * DAMAGE_OF_GROWTH if run.gap_growth else 0.0
    return max(grown, run.repetition_cost(run.steps_done) or 0.0, 0.0)


def _no_growth(run: RunAnalysis, epochs: float | None) -> Condition:
    question = f"the gap has grown by less than {NO_GROWTH:g}"
    if epochs is not None and epochs <= 1:
        return Condition(question, "no token is read twice", True)
    grown = run.gap_growth
    if grown is None or not grown.exact:
        end = f" (step {run.first_epoch_steps:,.0f})" if run.first_epoch_steps else ""
        return unknown(question, f"the train loss at the end of epoch 1{end} and now")
    found = f"{grown.value:+.3f} ± {grown.error:.3f} ({grown.said})"
    return Condition(question, found, grown.value < NO_GROWTH, grown.lines)
