"""Whether a run learns nothing: its loss stays flat at a high level, or is that of a unigram model."""

import math
from typing import NamedTuple

import numpy as np

from jaxgpt.budget.scaling_law import GPT2_VOCAB_SIZES
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.analysis.once import once_per_run
from jaxgpt.diagnose.analysis.series import Series, series
from jaxgpt.diagnose.finding import Condition, any_of, unknown
from jaxgpt.utils.formatting import format_loss, pluralize
from jaxgpt.utils.stats import MEDIAN_ERROR, robust_sd

UNIGRAM_ENTROPY = 7.6  # nats: of GPT-2 tokens of web text, 7.5 to 7.7
NEAR_UNIGRAM = 0.3  # nats: a model that learns anything from context is further below within some hundred steps
MIN_STEPS = 100  # before a loss can be called stuck
LEARNED = 2.0  # nats of decrease that show learning beyond unigrams, whatever their entropy
# While its steps double, a model that learns falls by this and more, as long as its loss is above `HIGH`: 5.95 for
# GPT-2's vocabulary, 2.3 for 65 characters.
HEALTHY_DECREASE = 0.5  # nats
FLAT = 0.1  # nats of decrease over the second half of the steps done
HIGH = 0.55  # of the logarithm of the vocabulary
HIGH_WITHOUT_VOCABULARY = 6.0  # nats
# Models of 20M parameters and more end at 2 to 4 nats on every corpus, in tokens like GPT-2's.
UNTRAINED = 4.5  # nats
FLAT_SHARE = 0.8  # of the steps, over which a loss above that stays the same
MIN_FLAT_STEPS = 1000  # of such a run
STOPPED = "it stopped learning early"
NEAR_GUESS = 0.1  # nats around the logarithm of the vocabulary
NOISE_SDS = 4.0  # standard deviations of one loss within which it is at a level
MIN_EVALUATIONS, MIN_TRAIN_LOSSES = 3, 5  # from which a level and its change are measured


class Level(NamedTuple):
    """The level of a loss since step `since`, its decrease since then with standard error, and lines of the log."""

    since: int
    loss: float
    decrease: float
    stderr: float
    lines: tuple[int, int]


@once_per_run
def learns_nothing(run: RunAnalysis) -> Condition:
    """Whether the loss shows that nothing is learned. Neither a forecast nor another finding makes sense then."""
    signs = (stays_flat(run), is_stuck_at_unigrams(run), stops_learning(run))
    return any_of("nothing is learned, or nothing but the frequencies of the tokens", signs)


def describe(run: RunAnalysis) -> str:
    """What a run that learns nothing does, in one phrase."""
    has_begun = stops_learning(run).result and not (stays_flat(run).result or is_stuck_at_unigrams(run).result)
    return STOPPED if has_begun else "it learns nothing, or no more than a unigram model"


def has_learned(run: RunAnalysis) -> tuple[Condition, ...]:
    """A false condition where nothing is learned: what learning rate, text or size would change there is unknown."""
    stuck = learns_nothing(run)
    if not stuck.result:
        return ()
    return (Condition("the run learns more than the frequencies of the tokens", stuck.evidence, False, stuck.lines),)


def stays_flat(run: RunAnalysis) -> Condition:
    """Whether the losses have stayed flat, at a level where a model that learns falls quickly."""
    question = "the loss stays flat at a high level"
    if run.steps_done < max(MIN_STEPS, 1.5 * _known_warmup(run)):
        return Condition(question, "", False)
    levels = _levels(run)
    if not levels:
        return Condition(question, "", False)
    level = levels[0]
    is_flat = all(each.decrease < FLAT and each.decrease + 2 * each.stderr < HEALTHY_DECREASE for each in levels)
    evidence = f"the loss has stayed near {format_loss(level.loss)} since step {level.since:,}"
    if not is_flat or level.loss < _high_level(run):
        return Condition(question, f"it has decreased, or {format_loss(level.loss)} is not high", False)
    return Condition(question, f"{evidence}{_compare_with_guess(run, level.loss)}", True, level.lines)


def stops_learning(run: RunAnalysis) -> Condition:
    """Whether the loss is flat for most of the run, above what trained models reach with a vocabulary like GPT-2's."""
    question = "the loss stays flat for most of the run, above that of trained models"
    rows = run.context.vocab_size
    levels = _levels(run)
    is_other = stays_flat(run).result or (rows is not None and rows < GPT2_VOCAB_SIZES[0])
    if is_other or not levels or run.steps_done < max(MIN_FLAT_STEPS, 1.5 * _known_warmup(run)):
        return Condition(question, "", False)
    level = levels[0]
    is_flat = all(abs(each.decrease) + 2 * each.stderr < FLAT for each in levels)
    is_long = run.steps_done - level.since >= FLAT_SHARE * run.steps_done
    evidence = f"the loss has stayed near {format_loss(level.loss)} since step {level.since:,}"
    return Condition(question, evidence, is_flat and is_long and level.loss >= UNTRAINED, level.lines)


def _known_warmup(run: RunAnalysis) -> int:
    """The steps of warmup; 0 where they are only assumed."""
    is_assumed = (run.context.sources or {}).get("warmup") == "assumption"
    return 0 if is_assumed else run.context.optim.warmup_steps


def _high_level(run: RunAnalysis) -> float:
    rows = run.context.vocab_size
    return HIGH * math.log(rows) if rows and rows > 1 else HIGH_WITHOUT_VOCABULARY


def _compare_with_guess(run: RunAnalysis, loss: float) -> str:
    rows = run.context.vocab_size
    if not rows or abs(loss - math.log(rows)) > NEAR_GUESS:
        return ""
    return f", which is that of a uniform guess among {rows:,} tokens"


@once_per_run
def _levels(run: RunAnalysis) -> list[Level]:
    """The levels of validation and training losses, as far as there are enough of them."""
    train = series([(e.step, e.train, e.line) for e in run.losses.evaluations])
    measured = [
        _measure(run.losses.val, run.steps_done, MIN_EVALUATIONS),
        _measure(train, run.steps_done, MIN_EVALUATIONS),
        _measure(run.losses.train, run.steps_done, MIN_TRAIN_LOSSES),
    ]
    return [level for level in measured if level is not None]


def _measure(losses: Series, done: int, count: int) -> Level | None:
    """The level in the second half of the steps; None if it has fewer than `count` losses, or none near its end."""
    start = done / 2
    if len(losses) >= count:
        start = min(start, float(losses.steps[-count]))
    window = losses.between(max(start, 1.0), math.inf)
    if len(window) < count or window.steps[-1] < 0.75 * done:
        return None
    middle = len(window) // 2
    first, second = window.values[:middle], window.values[middle:]
    decrease = 2 * float(np.median(first) - np.median(second))
    noise = robust_sd(np.diff(window.values)) / math.sqrt(2)
    stderr = 2 * MEDIAN_ERROR * noise * math.sqrt(1 / len(first) + 1 / len(second))
    level = float(np.median(second))
    near = np.abs(losses.values - level) <= max(FLAT, NOISE_SDS * noise)
    earlier = np.flatnonzero(~near & (losses.steps < start))
    since = int(losses.steps[earlier[-1] + 1]) if len(earlier) else int(losses.steps[0])
    lines = (int(window.lines[0]), int(window.lines[-1]))
    return Level(since, level, decrease, stderr, lines)


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
