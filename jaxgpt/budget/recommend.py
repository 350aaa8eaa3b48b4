"""What to do with a plan: how long to train, which size, when to stop, and what a claimed loss would take."""

import math
from dataclasses import dataclass, replace

from jaxgpt.budget import plan, recipes, scaling_law
from jaxgpt.budget.best_model import BestModel
from jaxgpt.budget.best_model import best_model as find_best_model
from jaxgpt.budget.plan import Plan, Row
from jaxgpt.budget.scaling_law import (
    FITTED_PARAMETERS,
    FITTED_RATIO,
    FITTED_TOKENS,
    Corpus,
)
from jaxgpt.budget.vocabulary import VocabularyChoice, choose_vocabulary, vocabulary_sentences
from jaxgpt.config import Config, schedule
from jaxgpt.utils.formatting import format_change, format_rough_duration, format_signed, format_tokens, pluralize

SEED_SD = 0.0013  # nats between runs that differ only in their seed (modded-nanogpt's repeated records)
MEASURABLE_GAIN = 3 * SEED_SD  # nats: what a single run can show
SMALLEST_GAIN = 0.001  # nats: a smaller one is not printed
MAX_PARAMETERS = 1e12


@dataclass(frozen=True)
class EarlyStop:
    """A shorter run: its steps, its loss with a decay that ends there, and its loss when the long run is cut off."""

    total_steps: int
    loss: float
    loss_if_cut_off: float


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Numbers and the sentences that state them.

    `advised` is the run to train: the longest of the plan, unless repeated tokens make a shorter one better.
    `unique_tokens` are pairs of a count and its predicted loss. `claim` is the loss that the last sentence is about,
    if one is claimed.
    """

    advised: Row
    useful_steps: int
    best_model: BestModel | None
    early_stop: EarlyStop
    vocabulary: VocabularyChoice | None
    unique_tokens: tuple[tuple[float, float], ...]
    sentences: tuple[str, ...]
    claim: float | None = None

    @property
    def first_sentences(self) -> tuple[str, ...]:
        """Those about length and size, and the answer to a claim."""
        return self.sentences[:2] if self.claim is None else (*self.sentences[:2], self.sentences[-1])


def recommend(planned: Plan, claim: float | None = None) -> Recommendation:
    """The recommendation for the longest run of a plan, and what a claimed loss would take."""
    advised = advised_run(planned)
    useful = min(useful_steps(planned), advised.total_steps) if advised is not planned.last else useful_steps(planned)
    best = best_model(planned, advised.total_steps)
    early = early_stop(planned)
    unique = unique_sensitivity(planned)
    sentences = [_length_sentence(planned, useful, advised), _size_sentence(planned, advised, best)]
    if unique:
        losses = ", ".join(f"{loss:.3f} with {format_tokens(count)}" for count, loss in unique)
        sentences.append(f"If fewer tokens are unique, the predicted loss is {losses} unique tokens.")
    extra = format_signed(early.loss - planned.last.loss)
    sentences.append(
        f"To stop early, plan for it: {early.total_steps:,} steps with a decay that ends there reach {early.loss:.3f} "
        f"({extra}); the long run cut off at that step, with its learning rate still high, is at "
        f"{early.loss_if_cut_off:.3f}."
    )
    if planned.inputs.config.optim.optimizer == "adamw":
        sentences.append(_optimizer_sentence())
    vocabulary = choose_vocabulary(planned.inputs, advised.total_steps)
    sentences += vocabulary_sentences(vocabulary, planned.inputs.config, advised.total_steps)
    gains = planned.gains
    sentences.append(
        f"Twice the model: {format_change(-gains['double_model'].nats, 3)}; twice the steps: "
        f"{format_change(-gains['double_steps'].nats, 3)}; twice the unique tokens at the same steps: "
        f"{format_change(-gains['double_unique_data'].nats, 3)}."
    )
    sentences.append(_claim_sentence(planned, claim))
    return Recommendation(
        advised=advised,
        useful_steps=useful,
        best_model=best,
        early_stop=early,
        vocabulary=vocabulary,
        unique_tokens=unique,
        sentences=tuple(sentences),
        claim=claim,
    )


def _optimizer_sentence() -> str:
    gain, sd = recipes.LOSS_GAINS["muon"]
    return (
        f"Muon (--optim.optimizer muon) instead of AdamW: {format_change(-gain, 3)} ± {sd:g}, from public runs of 124M "
        "parameters and more; docs/recipe.md has its learning rate."
    )


def advised_run(planned: Plan) -> Row:
    """The longest run of the plan, or the one with the lowest loss if repeated tokens make that a shorter one."""
    best = plan.best_steps(planned.inputs, planned.last.total_steps)
    row = plan.make_row(planned.inputs, planned.step_times.get("jaxgpt"), best)
    return row if planned.last.loss - row.loss > MEASURABLE_GAIN else planned.last


def useful_steps(planned: Plan) -> int:
    """The length beyond which a tenth more steps brings less than `MEASURABLE_GAIN`, to two digits."""

    def gain(steps: int) -> float:
        longer = math.ceil(1.1 * steps)
        return plan.comparable_loss(planned.inputs, steps) - plan.comparable_loss(planned.inputs, longer)

    low = max(planned.inputs.config.optim.warmup_steps, 10)
    high = 100 * max(planned.last.total_steps, low)
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        if gain(middle) >= MEASURABLE_GAIN:
            low = middle
        else:
            high = middle
    digit = int(10 ** max(0, int(math.log10(low)) - 1))
    return low // digit * digit


def best_model(planned: Plan, steps: int | None = None) -> BestModel | None:
    """The best model for the FLOPs of a run of the plan's config for `steps` steps (None: as long as the longest)."""
    inputs = planned.inputs
    steps = steps or planned.last.total_steps
    product = planned.model.parameters * steps * float(planned.model.tokens_per_step)
    unique = inputs.tokens.unique
    return find_best_model(inputs.config, product, inputs.corpus, unique, inputs.device, inputs.gpus)


def early_stop(planned: Plan) -> EarlyStop:
    """A run of three quarters of the steps."""
    total_steps = planned.last.total_steps
    optim = planned.inputs.config.optim
    steps = max(1, 3 * total_steps // 4)
    loss = plan.predict_loss(planned.inputs, steps).loss
    lr_fraction = schedule.learning_rate(optim, total_steps, steps) / max(optim.learning_rate, 1e-12)
    return EarlyStop(steps, loss, loss + scaling_law.undecayed_lr_cost(lr_fraction))


def unique_sensitivity(planned: Plan) -> tuple[tuple[float, float], ...]:
    """Pairs of unique tokens and predicted loss: a quarter, half and all of the counted tokens; empty if unknown."""
    unique = planned.inputs.tokens.unique
    if unique is None:
        return ()
    steps = planned.last.total_steps
    counts = (unique / 4, unique / 2, unique)
    return tuple((count, plan.predict_loss(planned.inputs, steps, unique=count).loss) for count in counts)


def _length_sentence(planned: Plan, useful: int, advised: Row) -> str:
    """How many steps to train: fewer, if repeated tokens raise the loss again, or more, as long as they help."""
    last = planned.last
    if advised is not last:
        epochs = "" if advised.epochs is None else f" ({advised.epochs:.1f} epochs)"
        time = "" if advised.seconds is None else f" in about {format_rough_duration(advised.seconds)}"
        return (
            f"Train {pluralize(advised.total_steps, 'step')}{epochs} instead: they reach {advised.loss:.2f}{time}; "
            f"with more repetition {last.total_steps:,} steps end at {last.loss:.2f}."
        )
    if last.total_steps > useful:
        sentence = f"About {useful:,} steps are enough: beyond that, a tenth more steps gains less than "
    else:
        sentence = f"More steps help up to about {useful:,}: beyond that, a tenth more steps gains less than "
    beyond_fit = ""
    if useful * planned.model.tokens_per_step > FITTED_TOKENS[1]:
        beyond_fit = f" (that is beyond the {FITTED_TOKENS[1] / 1e9:.0f}B tokens of the fit)"
    sentence += f"{MEASURABLE_GAIN:.3f} nats, the noise of a single run{beyond_fit}."
    gain = _last_hour_gain(planned)
    if gain is None:
        return sentence
    amount = f"{gain:.3f}" if gain >= SMALLEST_GAIN else f"less than {SMALLEST_GAIN:g}"
    return f"{sentence} The last hour of this run gains {amount}."


def _last_hour_gain(planned: Plan) -> float | None:
    """What the last hour of the longest run gains, in nats; None if the step time is unknown or the run is shorter."""
    time = planned.step_times.get("jaxgpt")
    if time is None:
        return None
    shorter = planned.last.total_steps - round(3600 / time.seconds)
    return plan.predict_loss(planned.inputs, shorter).loss - planned.last.loss if shorter > 0 else None


def _size_sentence(planned: Plan, advised: Row, best: BestModel | None) -> str:
    """Which size suits the compute of the advised run."""
    if best is None:
        return _no_size_sentence(planned, advised)
    size = f"{best.parameters / 1e6:,.0f}M"
    change = best.prediction.loss - advised.loss
    if change >= -MEASURABLE_GAIN:
        return "The size suits the compute: no other fitted size that can train is expected to end lower."
    seconds = _best_model_seconds(planned, best.config)
    time = "" if seconds is None else f" ({format_rough_duration(seconds)})"
    return (
        f"For the same compute, train a {size} model for {best.steps_in_words}{time}: "
        f"{best.prediction.loss:.2f}, about {format_change(change)}."
    )


def _no_size_sentence(planned: Plan, advised: Row) -> str:
    smallest = FITTED_PARAMETERS[0]
    if planned.model.parameters * advised.tokens >= FITTED_RATIO * smallest**2:
        return "No fitted size that fits on the device can train with this compute: all losses here are rough."
    return (
        f"So few FLOPs cannot train even the smallest fitted model, {smallest / 1e6:.0f}M parameters on "
        f"{FITTED_RATIO:.0f} tokens each: all losses here are rough."
    )


def _best_model_seconds(planned: Plan, config: Config) -> float | None:
    """The time of the best model's run; None if it is unknown."""
    time = plan.own_step_time(replace(planned.inputs, config=config))
    return None if time is None else plan.run_seconds(config, config.run.steps, time.seconds)


def _claim_sentence(planned: Plan, claim: float | None) -> str:
    corpus = planned.inputs.corpus
    scale = planned.last.prediction.token_scale
    if claim is None:
        limit = scale * least_loss(planned.model.parameters, corpus)
        return f"With unlimited unique tokens this model would end at {limit:.2f}: more steps cannot take it lower."
    if planned.last.loss <= claim:
        return f"A loss of {claim:g} is expected of this run: {planned.last.loss:.2f}."
    return f"A loss of {claim:g} {required_for_loss(planned.model.parameters, corpus, claim, scale)}."


def least_loss(parameters: float, corpus: Corpus) -> float:
    """Where a model of that size would end with unlimited unique tokens, in nats per GPT-2 token."""
    return corpus.offset + scaling_law.LAW.capacity_term(parameters)


def required_for_loss(parameters: float, corpus: Corpus, loss: float, scale: float = 1.0) -> str:
    """What a loss takes, as the end of a sentence: more tokens for this model, or a larger model.

    Nats and tokens are those of a tokenizer whose tokens have `scale` times the loss of GPT-2's.
    """
    limit = least_loss(parameters, corpus)
    law = scaling_law.LAW
    if loss / scale > limit:
        tokens = 1e10 * (law.data / (loss / scale - limit)) ** (1 / law.beta) / scale
        return f"needs {tokens / 1e9:,.0f}B unique tokens with this model"
    unreachable = f"is out of reach of this model at any length (limit {scale * limit:.2f})"
    size = _required_size(corpus.offset, loss / scale)
    return unreachable if size is None else f"{unreachable}: about {size / 1e9:,.1f}B parameters on 20 tokens each"


def _required_size(offset: float, loss: float) -> float | None:
    """The smallest size whose loss on 20 tokens per parameter is `loss`; None above a trillion."""
    size = 1e7
    while size < MAX_PARAMETERS:
        if offset + scaling_law.LAW.capacity_term(size) + scaling_law.LAW.data_term(20 * size) <= loss:
            return size
        size *= 1.02
    return None
