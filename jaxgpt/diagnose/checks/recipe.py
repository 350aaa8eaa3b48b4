"""A loss that neither size nor text explains: faults of the recipe, of the data or of the code."""

from jaxgpt.budget.query import FITTED_BATCH
from jaxgpt.budget.scaling_law import GPT2_VOCAB_SIZES, tuned_learning_rate
from jaxgpt.diagnose.checks import baseline, instabilities
from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.checks.repetition import overfitting, worse
from jaxgpt.diagnose.finding import Condition, Finding, any_of, unknown

ABOVE_LAW = 0.10  # nats: 2.5 sigma of the law, whose own runs, each left out in turn, miss by .056 at most
UNIGRAM = 7.6  # nats: entropy of single GPT-2 tokens of web text, 7.5 to 7.7
NEAR_UNIGRAM = 0.3  # nats: a model that learns anything of context is further below within some hundred steps
ENOUGH = 100  # updates before a loss can be called stuck
LONG_WARMUP = 0.35  # of the run (question.recipe)
OTHER_LENGTH = 0.05  # of the run by which the schedule's end may differ from the run's


def recipe_or_bug(run: RunAnalysis) -> Finding:
    level = worse(run) if run.baseline is not None else _above_law(run)
    signs = (stuck(run), jumped(run), schedule(run), warmup(run), level)
    fault = any_of("the loss or the recipe is not what this model and text allow", signs)
    if fault.result and (remarks := _remarks(run)):
        fault = fault._replace(evidence=f"{fault.evidence} ({'; '.join(remarks)})")
    weight = max(_height(run), 5e-3)
    return Finding(id="recipe-or-bug", conditions=(fault, _unexplained(run)), weight=weight)


def _height(run: RunAnalysis) -> float:
    """Nats that the fault takes, as far as they are known."""
    level = run.loss_above_baseline or run.residual_from_law
    found = instabilities.rise(run)
    return max(level.value if level else 0.0, found.height if found else 0.0)


def _unexplained(run: RunAnalysis) -> Condition:
    """What has a finding of its own is no fault: repetition, a smaller model, a rate too high, a divergence."""
    question = "nothing that has a finding of its own explains it"
    if run.baseline is not None:
        told = baseline.otherwise_equal(run)
        if told.result is False:
            return told._replace(question=question)
    elif all(condition.result for condition in overfitting(run).conditions):
        return Condition(question, "repeated text does", False)
    if all(condition.result for condition in instabilities.divergence(run).conditions):
        return Condition(question, "the run diverged", False)
    return Condition(question, "nothing found", True)


def unigram(run: RunAnalysis) -> tuple[float | None, str]:
    """Nats per token of guessing by frequency alone, and who says so."""
    entropy, rows = run.context.unigram_entropy, run.context.vocab_size
    if entropy is not None:
        return entropy, "by the data's audit"
    if rows is not None and GPT2_VOCAB_SIZES[0] <= rows <= GPT2_VOCAB_SIZES[1]:
        return UNIGRAM, "of GPT-2 tokens"
    return None, ""


def stuck(run: RunAnalysis) -> Condition:
    """Whether nothing but how frequent each token is has been learned."""
    question = f"the loss is within {NEAR_UNIGRAM:g} nats of the unigram entropy"
    entropy, whose = unigram(run)
    now = run.current_val_loss
    if now is None:
        return unknown(question, "a validation loss", "")
    if run.steps_done < max(ENOUGH, 2 * run.context.optim.warmup_steps):
        return Condition(question, f"too early to tell: {run.steps_done:,} updates", False)
    if entropy is None:
        if len(run.val_losses) > 2 and run.val_losses.values[0] - now.value > 2.0:
            return Condition(question, f"it has fallen by {run.val_losses.values[0] - now.value:.2f} nats", False)
        return unknown(question, "an audit of the data: python -m jaxgpt.audit", "")
    found = f"loss {now.value:.3f}, unigram entropy {entropy:.2f} ({whose})"
    return Condition(question, found, now.value > entropy - NEAR_UNIGRAM, now.lines)


def jumped(run: RunAnalysis) -> Condition:
    """Whether the loss rose from one step to the next and stayed, without gradients that had grown: other data."""
    question = "the loss jumped from one step to the next and stayed"
    if len(run.train_losses) < 3 * instabilities.WIDTH:
        return Condition(question, "", False)
    found = instabilities.rise(run)
    if found is None or not found.at_once:
        return Condition(question, "no jump that stayed", False)
    said = (
        f"the loss jumped from {found.low:.2f} at step {found.step:,} and stayed near {found.now:.2f}: "
        "look at the data from there on"
    )
    return Condition(question, said, True, (found.line,))


def schedule(run: RunAnalysis) -> Condition:
    """Whether the learning rate ends elsewhere than the run does."""
    optim, total = run.context.optim, run.total_steps
    question = "the schedule ends elsewhere than the run"
    end = optim.decay_steps if optim.schedule in ("cosine", "linear") else None
    if not run.context.schedule_known:
        return Condition(question, "", False)
    if end is None or abs(end - total) <= OTHER_LENGTH * total:
        return Condition(question, "the schedule ends with the run", False)
    return Condition(question, f"the rate reaches its end at step {end:,}, the run ends at {total:,}", True)


def warmup(run: RunAnalysis) -> Condition:
    question = f"the warmup takes more than {LONG_WARMUP:.0%} of the run"
    steps, total = run.context.optim.warmup_steps, run.total_steps
    long = run.context.schedule_known and steps > LONG_WARMUP * total
    return Condition(question, f"warmup {steps:,} of {total:,} steps", long)


def _above_law(run: RunAnalysis) -> Condition:
    question = f"the loss, once annealed, is {ABOVE_LAW:g} nats above the law"
    level = run.residual_from_law
    if level is None:
        why = run.law_inapplicable_reason or "no validation loss after the warmup"
        return unknown(question, f"{why}: a clean baseline to compare with (--baseline RUN)", "")
    found = f"{level.value:+.3f} ± {level.error:.3f} from the law"
    return Condition(question, found, level.value > ABOVE_LAW, level.lines)


def _remarks(run: RunAnalysis) -> list[str]:
    """Oddities of the recipe, which are no fault by themselves."""
    context, remarks = run.context, list[str]()
    if context.tokens_per_step and context.tokens_per_step < FITTED_BATCH[0]:
        remarks.append(
            f"{context.tokens_per_step:,.0f} tokens per step are few for a rate of "
            f"{context.optim.learning_rate:g}; the law's runs have 131,072 to 2,097,152"
        )
    if context.parameters and context.optim.learning_rate > 3 * tuned_learning_rate(context.parameters):
        remarks.append(f"tuned runs of this size peak at {tuned_learning_rate(context.parameters):.1e}")
    baseline = run.baseline
    if baseline is not None and context.optim.warmup_steps < baseline.context.optim.warmup_steps / 2:
        remarks.append(
            f"a warmup of {context.optim.warmup_steps:,} steps, the baseline's {baseline.context.optim.warmup_steps:,}"
        )
    return remarks
