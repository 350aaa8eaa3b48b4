"""The check for a loss that neither model size nor text explains: a fault of the recipe, the data or the code."""

import math

from jaxgpt.budget.query import FITTED_BATCH
from jaxgpt.budget.scaling_law import tuned_learning_rate
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.analysis.series import Estimate
from jaxgpt.diagnose.checks import baseline, instabilities, invalid_losses, repetition, stagnation
from jaxgpt.diagnose.finding import Condition, Finding, any_of, compare
from jaxgpt.utils.formatting import pluralize

ABOVE_LAW = 0.10  # nats: 2.5 sigma of the scaling law, whose own runs, each left out in turn, miss by at most .056
EXCESS_SDS = 2.5  # standard deviations of the distance from the prediction
BEFORE_END = 0.05  # nats by which healthy runs deviate from the prediction while their learning rate is still high
LONG_WARMUP = 0.35  # of the run
SCHEDULE_MISMATCH = 0.05  # of the run by which the end of the schedule may differ from the end of the run
SMALL_WARMUP = 0.5  # of the baseline run's


def recipe_or_bug(run: RunAnalysis) -> Finding:
    """Confirmed if the loss or the recipe shows a fault that no other finding explains."""
    level = baseline.is_worse(run) if run.baseline is not None else is_above_law(run)
    signs = (
        was_never_finite(run),
        stagnation.stays_flat(run),
        stagnation.is_stuck_at_unigrams(run),
        stagnation.stops_learning(run),
        invalid_losses.is_zero(run),
        invalid_losses.is_constant(run),
        has_sudden_jump(run),
        has_mismatched_schedule(run),
        has_long_warmup(run),
        level,
    )
    fault = any_of("the loss or the recipe is not what this model and text allow", signs)
    remarks = _remarks(run) if fault.result else []
    if remarks:
        fault = fault._replace(evidence=f"{fault.evidence} ({'; '.join(remarks)})")
    conditions = (fault, _is_unexplained(run))
    return Finding(id="recipe-or-bug", conditions=conditions, cost=_cost(run), meaning=_meaning(run))


def _meaning(run: RunAnalysis) -> str:
    """What the fault is in one phrase, where the loss alone shows it; empty elsewhere."""
    never_finite = was_never_finite(run)
    if never_finite.result:
        return f"{never_finite.evidence}: the fault is in the weights it started from, or in the data"
    jump = has_sudden_jump(run)
    if jump.result:
        return jump.evidence
    if invalid_losses.is_zero(run).result:
        return f"{invalid_losses.is_zero(run).evidence}: the model sees its targets, or the targets are masked"
    if invalid_losses.is_constant(run).result:
        return f"{invalid_losses.is_constant(run).evidence}: a fault of the evaluation"
    stuck = stagnation.learns_nothing(run)
    if stuck.result:
        return _describe_stuck(run, stuck)
    return "" if is_above_law(run).result or run.baseline is not None else _describe_recipe(run)


def _describe_stuck(run: RunAnalysis, stuck: Condition) -> str:
    start = stagnation.describe(run)
    start = start if start == stagnation.STOPPED else "nothing is learned"
    return f"{start} ({stuck.evidence}): a fault of the recipe, the data or the code"


def _describe_recipe(run: RunAnalysis) -> str:
    """What the schedule shows; empty where it shows no fault."""
    if has_mismatched_schedule(run).result:
        return f"the schedule does not fit the run: {has_mismatched_schedule(run).evidence}"
    return f"a very long warmup: {has_long_warmup(run).evidence}" if has_long_warmup(run).result else ""


def _cost(run: RunAnalysis) -> float | None:
    """The loss that the fault costs in nats, as far as it is known."""
    broken = (was_never_finite(run), stagnation.learns_nothing(run), invalid_losses.is_invalid(run))
    if any(sign.result for sign in broken):
        return math.inf
    excess = run.loss_above_baseline or run.law.residual or run.law.excess
    rise = instabilities.find_rise(run)
    cost = max(excess.value if excess else 0.0, rise.height if rise else 0.0)
    return cost or None


def _is_unexplained(run: RunAnalysis) -> Condition:
    """Whether no other finding explains the loss: repetition, a smaller model, a high learning rate, divergence."""
    question = "no other finding explains it"
    if run.baseline is not None:
        equal = baseline.is_otherwise_equal(run)
        if equal.result is False:
            return equal._replace(question=question)
    elif repetition.overfitting(run).status == "confirmed":
        return Condition(question, "repeated text does", False)
    if instabilities.divergence(run).status == "confirmed":
        return Condition(question, "the run diverged", False)
    return Condition(question, "nothing found", True)


def was_never_finite(run: RunAnalysis) -> Condition:
    """Whether the loss was not finite before the first update of a process: training did not cause that."""
    question = "the loss was not finite before the first update"
    first = instabilities.nonfinite_before_update(run)
    if first is None:
        return Condition(question, "", False)
    step, line = first
    return Condition(question, f"the loss was not finite at step {step:,}, before the first update", True, (line,))


def has_sudden_jump(run: RunAnalysis) -> Condition:
    """Whether the loss rose within one step and stayed high, without growing gradients: other data."""
    question = "the loss jumped within one step and stayed high"
    if len(run.losses.train) < instabilities.MIN_TRAIN_LOSSES:
        return Condition(question, "", False)
    rise = instabilities.find_rise(run)
    if rise is None or not rise.is_sudden:
        return Condition(question, "no jump that stayed", False)
    evidence = (
        f"the loss jumped from {rise.low:.2f} at step {rise.step:,} and stayed near {rise.now:.2f}: "
        "inspect the data from there on"
    )
    return Condition(question, evidence, True, (rise.line,))


def has_mismatched_schedule(run: RunAnalysis) -> Condition:
    """Whether the learning-rate schedule ends at another step than the run."""
    question = "the schedule ends at another step than the run"
    optim = run.context.optim
    total = run.total_steps
    if not run.context.schedule_known:
        return Condition(question, "", False)
    end = optim.decay_steps if optim.schedule in ("cosine", "linear") else None
    if end is None or abs(end - total) <= SCHEDULE_MISMATCH * total:
        return Condition(question, "the schedule ends with the run", False)
    return Condition(question, f"the decay ends at step {end:,}, the run at step {total:,}", True)


def has_long_warmup(run: RunAnalysis) -> Condition:
    """Whether the warmup takes a large part of the run."""
    question = f"the warmup takes more than {LONG_WARMUP:.0%} of the run"
    steps = run.context.optim.warmup_steps
    is_long = run.context.schedule_known and steps > LONG_WARMUP * run.total_steps
    return Condition(question, f"warmup {steps:,} of {pluralize(run.total_steps, 'step')}", is_long)


def has_short_warmup(run: RunAnalysis) -> bool:
    """Whether the warmup is less than half as long as the baseline run's."""
    other = run.baseline
    return other is not None and run.context.optim.warmup_steps < SMALL_WARMUP * other.context.optim.warmup_steps


def is_above_law(run: RunAnalysis) -> Condition:
    """Whether the loss is far above what the scaling law predicts for this size and these tokens."""
    question = f"the loss after annealing is {ABOVE_LAW:g} nats above the predicted one"
    evidence = "{0.text} from the predicted loss"
    missing = run.law.missing_for_residual
    excess = run.law.excess
    if run.law.residual is None and excess is not None and excess.value > max(ABOVE_LAW, EXCESS_SDS * excess.stderr):
        return Condition(question, evidence.format(excess), True, excess.lines)
    return compare(question, run.law.residual, lambda residual: _is_excess(run, residual), evidence, missing)


def _is_excess(run: RunAnalysis, residual: Estimate) -> bool:
    """Whether a distance from the predicted loss is larger than those of healthy runs."""
    stderr = residual.stderr if run.is_over else math.hypot(residual.stderr, BEFORE_END)
    return residual.value > max(ABOVE_LAW, EXCESS_SDS * stderr)


def _remarks(run: RunAnalysis) -> list[str]:
    """Unusual values of the recipe that are not faults by themselves."""
    context = run.context
    peak_lr = context.optim.learning_rate
    remarks = []
    if context.tokens_per_step and context.tokens_per_step < FITTED_BATCH[0]:
        remarks.append(
            f"{context.tokens_per_step:,.0f} tokens per step are few for a learning rate of {peak_lr:g}; "
            "the runs behind the scaling law have 131,072 to 2,097,152"
        )
    if context.parameters and peak_lr > 3 * tuned_learning_rate(context.parameters):
        remarks.append(f"tuned runs of this size peak at {tuned_learning_rate(context.parameters):.1e}")
    if run.baseline is not None and has_short_warmup(run):
        own = pluralize(context.optim.warmup_steps, "step")
        remarks.append(f"a warmup of {own}, the baseline run's {run.baseline.context.optim.warmup_steps:,}")
    return remarks
