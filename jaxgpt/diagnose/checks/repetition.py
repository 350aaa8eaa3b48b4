"""Checks of text that is read more than once: what it has cost, what it will cost, and how regularization matters."""

import math
from collections.abc import Callable

from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.analysis.gap import Gap
from jaxgpt.diagnose.checks import baseline, stagnation
from jaxgpt.diagnose.context.run_context import STATED_BY
from jaxgpt.diagnose.finding import Condition, Finding, any_of, compare, unknown
from jaxgpt.utils.stats import Z80

# datablations (Muennighoff et al., 2023): 2.8B runs of 2/3/4/5/7/14/44 epochs end with an excess gap of .011/.023/.042/
# .060/.075/.237/1.45 and a damage of .005/.008/.015/.025/.037/.123/.85 nats, which is about half of the gap.
MIN_GAP_GROWTH = 0.05  # nats
MIN_DAMAGE = 0.02  # nats
MEMORIZED = 0.15  # nats of growth of the gap that nothing but repeated text causes
SHOULD_SHOW = 0.1  # nats of predicted cost, which is about half of the gap
DAMAGE_PER_GAP_GROWTH = 0.5
# The annealing gain B from the peak learning rate to zero is 0.128 ± 0.025 nats in healthy runs, 0.015 and -0.08 after
# 14 epochs (datablations).
LOW_ANNEALING_GAIN = 0.06
NO_ANNEALING_GAIN = 0.02
HALF_DECAYED = 0.5  # of the peak: above this learning rate B comes from the prior rather than from the curve
EARLY_MINIMUM = 0.95  # of the steps done (datablations: minimum at .94 and .79 after 14 epochs, .23 after 44)
LAW_UNCERTAINTY = math.exp(2 * 0.53)  # two log standard deviations of the repetition law
LAW_MIN_PARAMETERS = 7e6  # the smallest model in the repetition law's 131 pairs
NO_GAP_GROWTH, FEW_EPOCHS = 0.02, 4.0  # chosen: what dropout costs such a run was not measured
LIGHT_DECAY = 0.1  # weight decay up to which more is worth trying (slowrun has 0.8 to 1.6 on 100M tokens)
RECOVERABLE = 0.5  # of the cost of repetition, by stronger regularization
RISE_STDERRS = 2.83  # standard errors of one evaluation that a rise of the validation loss must exceed

EPOCH_FACTS = ("unique_tokens", "tokens_per_step")
LAW_FACTS = ("parameters", *EPOCH_FACTS)
NEEDS_BASELINE = "a run with more text to compare with (--baseline RUN)"


def overfitting(run: RunAnalysis) -> Finding:
    """Confirmed if repeated text has been memorized and this has cost validation loss."""
    return Finding(id="overfitting", conditions=_overfitting_conditions(run), cost=_cost(run))


def severe_overfitting(run: RunAnalysis) -> Finding:
    """Confirmed if, on top of overfitting, the validation loss rises or does not fall as the learning rate decays."""
    signs = (_has_early_minimum(run), _has_low_annealing_gain(run, NO_ANNEALING_GAIN))
    severe = any_of("the validation loss rises again, or does not fall as the learning rate decays", signs)
    return Finding(id="severe-overfitting", conditions=(*_overfitting_conditions(run), severe), cost=_cost(run))


def repetition_risk(run: RunAnalysis) -> Finding:
    """Confirmed if the repetition law predicts a cost by the end of the run."""
    epochs = run.context.epochs(run.total_steps)
    question = "text will be read more than once by the end"
    evidence = f"{{:.2f}} epochs at step {run.total_steps:,}"
    repeats = compare(question, epochs, lambda epochs: epochs > 1, evidence, run.context.missing(*EPOCH_FACTS))
    question = f"the repetition law predicts that it costs more than {MIN_DAMAGE:g} nats by then"
    evidence = "{:.4f} nats, times or divided by 1.7"
    cost = run.law.repetition_cost(run.total_steps)
    if run.law.outside_repetition:
        evidence = f"more than any run that was measured: {run.law.outside_repetition}"
    costs = compare(question, cost, lambda cost: cost > MIN_DAMAGE, evidence, run.context.missing(*LAW_FACTS))
    conditions = (repeats, costs, _fits_gap(run), *stagnation.has_learned(run))
    return Finding(id="repetition-risk", conditions=conditions, cost=cost)


def _fits_gap(run: RunAnalysis) -> Condition:
    """Whether the gap does not contradict the cost that the law predicts for the repetition so far."""
    question = "the repetition so far shows, if it should have cost much"
    cost = run.law.repetition_cost(run.steps_done) or 0.0
    if cost < SHOULD_SHOW or not run.gap.points:
        return Condition(question, "", True)
    gap = run.gap.points[-1]
    evidence = f"{cost:.2f} nats are predicted by now; {_describe_gap(gap)}"
    return Condition(question, evidence, gap.value >= max(MIN_DAMAGE, 2 * gap.stderr), gap.lines)


def missing_regularization(run: RunAnalysis) -> Finding:
    """Confirmed if a run overfits with little weight decay."""
    question = f"weight decay is {LIGHT_DECAY:g} or less"
    is_light = _compare_logged(run, question, "weight_decay", lambda decay: decay <= LIGHT_DECAY, "weight decay {:g}")
    conditions = (*_overfitting_conditions(run), is_light)
    cost = RECOVERABLE * _cost(run)
    return Finding(id="missing-regularization", conditions=conditions, cost=cost, meaning=_describe_regularization(run))


def _compare_logged(
    run: RunAnalysis, question: str, name: str, is_true: Callable[[float], bool], evidence: str
) -> Condition:
    """Whether a hyperparameter meets a condition; unknown if only a config that a user named has it, not the log."""
    value = getattr(run.context, name)
    if value is not None and (run.context.sources or {}).get(name) == "config":
        return unknown(question, STATED_BY[name], f"{value:g} in the named config, not in the log")
    return compare(question, value, is_true, evidence, run.context.missing(name))


def _describe_regularization(run: RunAnalysis) -> str:
    """What regularization an overfitting run has."""
    decay = run.context.weight_decay
    if decay is None:
        return ""
    dropout = run.context.dropout
    text = f"the run overfits with a weight decay of {decay:g}"
    if dropout is None or (run.context.sources or {}).get("dropout") == "config":
        return text
    return f"{text} and a dropout of {dropout:g}" if dropout else f"{text} and no dropout"


def unneeded_dropout(run: RunAnalysis) -> Finding:
    """Confirmed if dropout is on although the run reads its text few times and does not overfit."""
    is_on = _compare_logged(run, "dropout is on", "dropout", lambda dropout: dropout > 0, "dropout {:g}")
    epochs = run.context.epochs(run.total_steps)
    question = f"the whole run reads its text fewer than {FEW_EPOCHS:g} times"
    repeats_little = compare(
        question, epochs, lambda epochs: epochs < FEW_EPOCHS, "{:.2f} epochs", run.context.missing(*EPOCH_FACTS)
    )
    return Finding(id="unneeded-dropout", conditions=(is_on, repeats_little, _gap_is_constant(run, epochs)))


def data_limited(run: RunAnalysis) -> Finding:
    """Confirmed if new text would help more than a larger model."""
    if run.baseline is not None:
        return _fewer_tokens_than_baseline(run)
    from_data = run.law.gain_of_doubling("unique")
    from_size = run.law.gain_of_doubling("parameters")
    question = "doubling the unique tokens at the same steps gains more than doubling the model"
    if from_data is None or from_size is None:
        return Finding(id="data-limited", conditions=(unknown(question, run.context.missing(*LAW_FACTS)),))
    is_worthwhile = Condition(f"it gains at least {MIN_DAMAGE:g} nats", f"{from_data:.3f}", from_data >= MIN_DAMAGE)
    evidence = f"{from_data:.3f} nats against {from_size:.3f}"
    gains_more = Condition(question, evidence, from_data > from_size)
    if run.law.is_out_of_range:
        missing = f"{run.law.out_of_range_reason}: {NEEDS_BASELINE}"
        gains_more = Condition(question, evidence, None, (), missing)
    return Finding(id="data-limited", conditions=(is_worthwhile, gains_more), cost=from_data)


def _fewer_tokens_than_baseline(run: RunAnalysis) -> Finding:
    own = run.context.unique_tokens
    other = run.baseline.context.unique_tokens if run.baseline else None
    question = "it has at most half of the baseline run's unique tokens"
    has_fewer = unknown(question, run.context.missing(*EPOCH_FACTS))
    if own is not None and other is not None:
        has_fewer = Condition(question, f"{own:,.0f} against {other:,.0f}", own <= other / 2)
    return Finding(
        id="data-limited", conditions=(_is_repeated(run), has_fewer, baseline.is_worse(run)), cost=_cost(run)
    )


def _overfitting_conditions(run: RunAnalysis) -> tuple[Condition, ...]:
    return _is_repeated(run), _gap_has_grown(run), _has_cost_loss(run)


def _cost(run: RunAnalysis) -> float:
    """What repetition has cost so far in nats, as far as it is known."""
    if run.loss_above_baseline is not None:
        return max(run.loss_above_baseline.value, 0.0)
    growth = run.gap.growth
    from_gap = growth.value * DAMAGE_PER_GAP_GROWTH if growth else 0.0
    from_rise = run.losses.rise.height if run.losses.rise else 0.0
    return max(from_gap, from_rise, run.law.repetition_cost(run.steps_done) or 0.0, 0.0)


def _is_repeated(run: RunAnalysis) -> Condition:
    question = "text has been read more than once"
    if run.epochs is None and _memorizes(run):
        evidence = "validation rises while the training loss falls, as it does on repeated text alone"
        return Condition(question, evidence, True, has_risen(run).lines)
    evidence = f"{{:.2f}} epochs at step {run.steps_done:,}"
    return compare(question, run.epochs, lambda epochs: epochs > 1, evidence, run.context.missing(*EPOCH_FACTS))


def costs_unknown(run: RunAnalysis) -> str:
    """What shows that text is memorized, in a run whose unique tokens are unknown; empty elsewhere."""
    points = run.gap.points
    if run.epochs is not None or len(points) < 2:
        return ""
    narrowest = min(points, key=lambda gap: gap.value)
    growth = run.gap.growth_since(narrowest.step)
    if growth is None or growth.value < max(MEMORIZED, 2 * growth.stderr):
        return ""
    return f"the gap between validation and training loss has grown by {growth.value:.2f} ({growth.description})"


def _memorizes(run: RunAnalysis) -> bool:
    """Whether validation has risen since its minimum while the training loss fell."""
    rise = run.losses.rise
    growth = run.gap.growth_since(rise.since) if rise else None
    return rise is not None and bool(has_risen(run).result) and growth is not None and growth.value > rise.height


def _gap_has_grown(run: RunAnalysis) -> Condition:
    """Whether the gap between validation and train loss has grown since every token was read once."""
    question = f"the gap between validation and train loss has grown by {MIN_GAP_GROWTH:g} since the end of epoch 1"
    end = run.first_epoch_steps
    if end is None and _memorizes(run) and run.losses.rise is not None:
        growth = run.gap.growth_since(run.losses.rise.since)
        if growth is not None and growth.value >= max(MIN_GAP_GROWTH, 2 * growth.stderr):
            return Condition(question, f"{growth.value:+.3f} ({growth.description})", True, growth.lines)
    if end is None:
        return unknown(question, run.context.missing(*EPOCH_FACTS))
    if run.steps_done <= end:
        return Condition(question, "epoch 1 is not over", False)
    train_loss_then = _train_loss_then(run, end)
    growth = run.gap.growth
    if growth is None:
        last = run.gap.points[-1] if run.gap.points else None
        evidence = _describe_gap(last) if last else "no train loss in the log"
        return Condition(question, evidence, None, last.lines if last else (), train_loss_then)
    evidence = f"{growth.value:+.3f} ± {growth.stderr:.3f} ({growth.description})"
    has_grown = growth.value >= max(MIN_GAP_GROWTH, 2 * growth.stderr)
    missing = ""
    if not has_grown and not growth.exact:
        missing = train_loss_then
    elif not has_grown and growth.value >= MIN_GAP_GROWTH:
        missing = "train losses that are less noisy: larger evaluations of train"
    return Condition(question, evidence, None if missing else has_grown, growth.lines, missing)


def _train_loss_then(run: RunAnalysis, end: float) -> str:
    """What a growth of the gap since the end of epoch 1 needs, without what the log has."""
    if not len(run.losses.val):
        return "validation losses"
    then = f"the train loss at the end of epoch 1 (step {end:,.0f})"
    points = run.gap.points
    return then if points and points[-1].step > end else f"{then} and now"


def _describe_gap(gap: Gap) -> str:
    side = "above" if gap.value > 0 else "below"
    return f"the validation loss is {abs(gap.value):.4f} {side} the train loss at step {gap.step:,}"


def _has_cost_loss(run: RunAnalysis) -> Condition:
    """Whether repetition has cost validation loss: by the baseline run, the curve or the repetition law."""
    if run.baseline is not None:
        return baseline.is_worse(run)
    question = f"it has cost at least {MIN_DAMAGE:g} nats of validation loss"
    from_curve = (has_risen(run), _exceeds_epoch1_forecast(run), _has_low_annealing_gain(run, LOW_ANNEALING_GAIN))
    condition = any_of(question, (*from_curve, _law_predicts_cost(run)))
    if condition.result is not None:
        return condition
    cost = run.law.repetition_cost(run.steps_done)
    if cost is not None and _law_applies(run) and cost * LAW_UNCERTAINTY < MIN_DAMAGE:
        evidence = f"repetition costs about {cost:.4f} nats here, at most {cost * LAW_UNCERTAINTY:.3f}"
        return Condition(question, evidence, False, condition.lines)
    if all(sign.result is False for sign in from_curve):
        return condition._replace(result=False, missing="")
    return condition


def _law_applies(run: RunAnalysis) -> bool:
    """Whether the model is as large as those that the repetition law was fitted to."""
    return (run.context.parameters or 0.0) >= LAW_MIN_PARAMETERS


def _law_predicts_cost(run: RunAnalysis) -> Condition:
    question = f"the repetition law predicts at least {MIN_DAMAGE:g} nats"
    cost = run.law.repetition_cost(run.steps_done)
    if cost is None:
        return unknown(question, run.context.missing(*LAW_FACTS))
    if not _law_applies(run):
        return unknown(question, NEEDS_BASELINE)
    return Condition(question, f"repetition is predicted to have cost {cost:.4f} nats", cost >= MIN_DAMAGE)


def _exceeds_epoch1_forecast(run: RunAnalysis) -> Condition:
    question = f"validation is {MIN_DAMAGE:g} above the forecast from epoch 1"
    if run.first_epoch_steps is None:
        return unknown(question, run.context.missing(*EPOCH_FACTS))
    return compare(
        question,
        run.excess_over_epoch1_forecast,
        lambda excess: excess.value >= max(MIN_DAMAGE, Z80 * excess.stderr),
        "validation is {0.text} from the forecast of epoch 1",
        "more evaluations within the first epoch",
    )


def _has_low_annealing_gain(run: RunAnalysis, limit: float) -> Condition:
    """Whether the decay of the learning rate lowers the loss less than in healthy runs."""
    question = f"the annealing gain to a learning rate of zero, B, is below {limit:g} (healthy runs: 0.128 ± 0.025)"
    if run.fit_without_prior is None:
        return unknown(question, run.context.missing("total_steps") or "evaluations after the warmup, three or more")
    mean, sd = run.fit_without_prior.annealing_gain
    evidence = f"B {mean:.3f} ± {sd:.3f}"
    is_below = mean + Z80 * sd < limit
    is_above = mean - Z80 * sd > limit
    fraction = run.current_lr_fraction
    has_decayed = fraction is not None and fraction <= HALF_DECAYED
    if is_below or (is_above and has_decayed):
        return Condition(question, evidence, is_below)
    if fraction is None:
        return unknown(question, run.context.missing_schedule, evidence)
    missing = "" if has_decayed else "evaluations while the learning rate decays"
    return unknown(question, missing, evidence)


def has_risen(run: RunAnalysis) -> Condition:
    """Whether the validation loss has risen from its minimum by more than its noise."""
    question = f"validation has risen {MIN_DAMAGE:g} from its minimum"
    rise = run.losses.rise
    if rise is None:
        return unknown(question, "three evaluations or more")
    limit = max(MIN_DAMAGE, RISE_STDERRS * (run.losses.eval_stderr or 0.0))
    evidence = f"validation is {rise.height:.3f} above its minimum at step {rise.since:,}"
    return Condition(question, evidence, rise.height >= limit, rise.lines)


def _has_early_minimum(run: RunAnalysis) -> Condition:
    question = f"the validation loss was lowest before {EARLY_MINIMUM:.0%} of the steps done, and has risen since"
    rise = run.losses.rise
    if rise is None:
        return unknown(question, "three evaluations or more")
    fraction = rise.since / max(run.steps_done, 1)
    risen = has_risen(run)
    evidence = f"minimum at {fraction:.0%} of the steps done; {risen.evidence}"
    return Condition(question, evidence, fraction < EARLY_MINIMUM and bool(risen.result), risen.lines)


def _gap_is_constant(run: RunAnalysis, epochs: float | None) -> Condition:
    question = f"the gap has grown by less than {NO_GAP_GROWTH:g}"
    if epochs is not None and epochs <= 1:
        return Condition(question, "no token is read twice", True)
    growth = run.gap.growth
    end = run.first_epoch_steps
    if end is None:
        return unknown(question, run.context.missing(*EPOCH_FACTS))
    if growth is None or not growth.exact:
        return unknown(question, _train_loss_then(run, end))
    evidence = f"{growth.value:+.3f} ± {growth.stderr:.3f} ({growth.description})"
    return Condition(question, evidence, growth.value < NO_GAP_GROWTH, growth.lines)
