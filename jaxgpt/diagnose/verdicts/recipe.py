"""A loss that neither size nor text explains: faults of the recipe, of the data or of the code."""

from jaxgpt.budget.query import SIMILAR_BATCH
from jaxgpt.budget.scaling_law import TOKENIZER_ROWS, tuned_learning_rate
from jaxgpt.diagnose.verdict import Condition, Verdict
from jaxgpt.diagnose.verdicts import failures, twins
from jaxgpt.diagnose.verdicts.case import Case
from jaxgpt.diagnose.verdicts.repetition import overfitting, worse
from jaxgpt.diagnose.verdicts.said import any_of, unknown

ABOVE_LAW = 0.10  # nats: 2.5 sigma of the law, whose own runs, each left out in turn, miss by .056 at most
UNIGRAM = 7.6  # nats: entropy of single GPT-2 tokens of web text, 7.5 to 7.7
NEAR_UNIGRAM = 0.3  # nats: a model that learns anything of context is further below within some hundred steps
ENOUGH = 100  # updates before a loss can be called stuck
LONG_WARMUP = 0.35  # of the run (question.recipe)
OTHER_LENGTH = 0.05  # of the run by which the schedule's end may differ from the run's


def recipe_or_bug(case: Case) -> Verdict:
    level = worse(case) if case.twin is not None else _above_law(case)
    signs = (stuck(case), jumped(case), schedule(case), warmup(case), level)
    fault = any_of("the loss or the recipe is not what this model and text allow", signs)
    if fault.holds and (remarks := _remarks(case)):
        fault = fault._replace(found=f"{fault.found} ({'; '.join(remarks)})")
    weight = max(_height(case), 5e-3)
    return Verdict(id="recipe-or-bug", conditions=(fault, _unexplained(case)), weight=weight)


def _height(case: Case) -> float:
    """Nats that the fault takes, as far as they are known."""
    level = case.excess or case.level
    found = failures.rise(case)
    return max(level.value if level else 0.0, found.height if found else 0.0)


def _unexplained(case: Case) -> Condition:
    """What has a verdict of its own is no fault: repetition, a smaller model, a rate too high, a divergence."""
    asks = "nothing that has a verdict of its own explains it"
    if case.twin is not None:
        told = twins.otherwise_equal(case)
        if told.holds is False:
            return told._replace(asks=asks)
    elif all(condition.holds for condition in overfitting(case).conditions):
        return Condition(asks, "repeated text does", False)
    if all(condition.holds for condition in failures.divergence(case).conditions):
        return Condition(asks, "the run diverged", False)
    return Condition(asks, "nothing found", True)


def unigram(case: Case) -> tuple[float | None, str]:
    """Nats per token of guessing by frequency alone, and who says so."""
    entropy, rows = case.setting.unigram_entropy, case.setting.vocab_size
    if entropy is not None:
        return entropy, "by the data's audit"
    if rows is not None and TOKENIZER_ROWS[0] <= rows <= TOKENIZER_ROWS[1]:
        return UNIGRAM, "of GPT-2 tokens"
    return None, ""


def stuck(case: Case) -> Condition:
    """Whether nothing but how frequent each token is has been learned."""
    asks = f"the loss is within {NEAR_UNIGRAM:g} nats of the unigram entropy"
    entropy, whose = unigram(case)
    now = case.now
    if now is None:
        return unknown(asks, "a validation loss", "")
    if case.done < max(ENOUGH, 2 * case.setting.optim.warmup_steps):
        return Condition(asks, f"too early to tell: {case.done:,} updates", False)
    if entropy is None:
        if len(case.vals) > 2 and case.vals.values[0] - now.value > 2.0:
            return Condition(asks, f"it has fallen by {case.vals.values[0] - now.value:.2f} nats", False)
        return unknown(asks, "an audit of the data: python -m jaxgpt.audit", "")
    found = f"loss {now.value:.3f}, unigram entropy {entropy:.2f} ({whose})"
    return Condition(asks, found, now.value > entropy - NEAR_UNIGRAM, now.lines)


def jumped(case: Case) -> Condition:
    """Whether the loss rose from one step to the next and stayed, without gradients that had grown: other data."""
    asks = "the loss jumped from one step to the next and stayed"
    if len(case.losses) < 3 * failures.WIDTH:
        return Condition(asks, "", False)
    found = failures.rise(case)
    if found is None or not found.at_once:
        return Condition(asks, "no jump that stayed", False)
    said = (
        f"the loss jumped from {found.low:.2f} at step {found.step:,} and stayed near {found.now:.2f}: "
        "look at the data from there on"
    )
    return Condition(asks, said, True, (found.line,))


def schedule(case: Case) -> Condition:
    """Whether the learning rate ends elsewhere than the run does."""
    optim, total = case.setting.optim, case.total
    asks = "the schedule ends elsewhere than the run"
    end = optim.decay_steps if optim.schedule in ("cosine", "linear") else None
    if not case.setting.known_schedule:
        return Condition(asks, "", False)
    if end is None or abs(end - total) <= OTHER_LENGTH * total:
        return Condition(asks, "the schedule ends with the run", False)
    return Condition(asks, f"the rate reaches its end at step {end:,}, the run ends at {total:,}", True)


def warmup(case: Case) -> Condition:
    asks = f"the warmup takes more than {LONG_WARMUP:.0%} of the run"
    steps, total = case.setting.optim.warmup_steps, case.total
    long = case.setting.known_schedule and steps > LONG_WARMUP * total
    return Condition(asks, f"warmup {steps:,} of {total:,} steps", long)


def _above_law(case: Case) -> Condition:
    asks = f"the loss, once annealed, is {ABOVE_LAW:g} nats above the law"
    level = case.level
    if level is None:
        why = case.unlicensed or "no validation loss after the warmup"
        return unknown(asks, f"{why}: a clean twin to compare with (--twin RUN)", "")
    found = f"{level.value:+.3f} ± {level.error:.3f} from the law"
    return Condition(asks, found, level.value > ABOVE_LAW, level.lines)


def _remarks(case: Case) -> list[str]:
    """Oddities of the recipe, which are no fault by themselves."""
    setting, remarks = case.setting, list[str]()
    if setting.tokens_per_step and setting.tokens_per_step < SIMILAR_BATCH[0]:
        remarks.append(
            f"{setting.tokens_per_step:,.0f} tokens per step are few for a rate of "
            f"{setting.optim.learning_rate:g}; the law's runs have 131,072 to 2,097,152"
        )
    if setting.parameters and setting.optim.learning_rate > 3 * tuned_learning_rate(setting.parameters):
        remarks.append(f"tuned runs of this size peak at {tuned_learning_rate(setting.parameters):.1e}")
    twin = case.twin
    if twin is not None and setting.optim.warmup_steps < twin.setting.optim.warmup_steps / 2:
        remarks.append(
            f"a warmup of {setting.optim.warmup_steps:,} steps, the twin's {twin.setting.optim.warmup_steps:,}"
        )
    return remarks
