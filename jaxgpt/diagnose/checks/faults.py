"""The check for a loss that neither model size nor text explains: a fault of the recipe, the data or the code."""

from jaxgpt.budget.query import FITTED_BATCH
from jaxgpt.budget.scaling_law import GPT2_VOCAB_SIZES, tuned_learning_rate
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.checks import baseline, instabilities, repetition
from jaxgpt.diagnose.finding import Condition, Finding, any_of, compare, unknown
from jaxgpt.utils.formatting import pluralize

ABOVE_LAW = 0.10  # nats: 2.5 sigma of the scaling law, whose own runs, each left out in turn, miss by at most .056
UNIGRAM_ENTROPY = 7.6  # nats: of GPT-2 tokens of web text, 7.5 to 7.7
NEAR_UNIGRAM = 0.3  # nats: a model that learns anything from context is further below within some hundred steps
MIN_STEPS = 100  # before a loss can be called stuck
LEARNED = 2.0  # nats of decrease that show learning beyond unigrams, whatever their entropy
LONG_WARMUP = 0.35  # of the run
SCHEDULE_MISMATCH = 0.05  # of the run by which the end of the schedule may differ from the end of the run
SMALL_WARMUP = 0.5  # of the baseline run's


def recipe_or_bug(run: RunAnalysis) -> Finding:
    """Confirmed if the loss or the recipe shows a fault that no other finding explains."""
    level = baseline.is_worse(run) if run.baseline is not None else _is_above_law(run)
    signs = (
        is_stuck_at_unigrams(run),
        has_sudden_jump(run),
        has_mismatched_schedule(run),
        has_long_warmup(run),
        level,
    )
    fault = any_of("the loss or the recipe is not what this model and text allow", signs)
    remarks = _remarks(run) if fault.result else []
    if remarks:
        fault = fault._replace(evidence=f"{fault.evidence} ({'; '.join(remarks)})")
    return Finding(id="recipe-or-bug", conditions=(fault, _is_unexplained(run)), cost=_cost(run))


def _cost(run: RunAnalysis) -> float | None:
    """The loss that the fault costs in nats, as far as it is known."""
    excess = run.loss_above_baseline or run.law.residual
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


def unigram_entropy(run: RunAnalysis) -> tuple[float | None, str]:
    """The loss in nats per token of a unigram model, which predicts by token frequency alone, and its source."""
    entropy = run.context.unigram_entropy
    rows = run.context.vocab_size
    if entropy is not None:
        return entropy, "by the data's audit"
    if rows is not None and GPT2_VOCAB_SIZES[0] <= rows <= GPT2_VOCAB_SIZES[1]:
        return UNIGRAM_ENTROPY, "of GPT-2 tokens"
    return None, ""


def is_stuck_at_unigrams(run: RunAnalysis) -> Condition:
    """Whether the model has learned nothing but the frequencies of the tokens."""
    question = f"the loss is within {NEAR_UNIGRAM:g} nats of the unigram entropy"
    entropy, source = unigram_entropy(run)
    latest = run.losses.latest_val
    if latest is None:
        return unknown(question, "a validation loss")
    if run.steps_done < max(MIN_STEPS, 2 * run.context.optim.warmup_steps):
        return Condition(question, f"too early to tell: {pluralize(run.steps_done, 'step')}", False)
    if entropy is None:
        val = run.losses.val
        decrease = float(val.values[0]) - latest.value
        if len(val) > 2 and decrease > LEARNED:
            return Condition(question, f"it has decreased by {decrease:.2f} nats", False)
        return unknown(question, "an audit of the data: python -m jaxgpt.audit")
    evidence = f"loss {latest.value:.3f}, unigram entropy {entropy:.2f} ({source})"
    return Condition(question, evidence, latest.value > entropy - NEAR_UNIGRAM, latest.lines)


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


def _is_above_law(run: RunAnalysis) -> Condition:
    question = f"the loss after annealing is {ABOVE_LAW:g} nats above the predicted one"
    evidence = "{0.text} from the predicted loss"
    missing = run.law.missing_for_residual
    return compare(question, run.law.residual, lambda residual: residual.value > ABOVE_LAW, evidence, missing)


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
