"""What to do with the plan, in sentences with numbers."""

import math
from dataclasses import dataclass, replace

from jaxgpt.budget import plan, query, scaling_law
from jaxgpt.budget.plan import Plan
from jaxgpt.budget.scaling_law import (
    FITTED_PARAMETERS,
    FITTED_RATIO,
    FITTED_TOKENS,
    Corpus,
    LossPrediction,
    ScalingQuery,
)
from jaxgpt.config import schedule

SEED_SD = 0.0013  # nats between runs that differ in their seed alone (modded-nanogpt's repeated records)
MEASURABLE_GAIN = 3 * SEED_SD  # a gain that one run can show
CLAIMED_UNIQUE = (1.0e9, 1.5e9)  # what was claimed to be left of the reference run's tokens without duplicates


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best model for the same 6 N D inside the law's fitted range; `bound` says that D / N stopped the search."""

    parameters: float
    tokens: float
    expectation: LossPrediction
    bound: bool


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Numbers, and the sentences that say them."""

    worth_iters: int
    best: Best | None
    early: tuple[int, float, float]
    unique: tuple[tuple[float, float], ...]
    sentences: tuple[str, ...]


def recommend(found: Plan, claim: float | None = None) -> Recommendation:
    """Recommendation for the longest run of the plan, and what a claimed loss would need."""
    worth, best = worth_iters(found), best_model(found)
    early, unique = stop_early(found), sensitivity(found)
    return Recommendation(
        worth_iters=worth,
        best=best,
        early=early,
        unique=unique,
        sentences=(*_sentences(found, worth, best, early, unique), _claim_sentence(found, claim)),
    )


def worth_iters(found: Plan) -> int:
    """The length beyond which a tenth more steps brings less than `WORTH` nats."""

    def gain(iters: int) -> float:
        longer = math.ceil(1.1 * iters)
        return plan.predict_loss(found.inputs, iters).loss - plan.predict_loss(found.inputs, longer).loss

    below = max(found.inputs.config.optim.warmup_steps, 10)
    above = 100 * max(found.last.max_iters, below)
    while above - below > max(1, below // 100):
        middle = (below + above) // 2
        below, above = (middle, above) if gain(middle) >= MEASURABLE_GAIN else (below, middle)
    digits = int(10 ** max(0, int(math.log10(below)) - 1))
    return below // digits * digits


def best_model(found: Plan) -> Best | None:
    """`best_model_for` the longest run of the plan."""
    unique = found.inputs.tokens.unique
    return best_model_for(query.build_query(found.inputs.config, found.last.max_iters, found.inputs.corpus, unique))


def best_model_for(asked: ScalingQuery) -> Best | None:
    """The size that ends lowest for the same 6 N D, among sizes and ratios that the law was fitted to; None if none."""
    product = asked.parameters * asked.tokens
    most = min(math.sqrt(product / FITTED_RATIO), FITTED_PARAMETERS[1])
    least = FITTED_PARAMETERS[0]
    if most < least:
        return None
    sizes = [least * (most / least) ** (n / 400) for n in range(401)]
    tuned = replace(asked.recipe, differences=())

    def at(size: float) -> ScalingQuery:
        rate = scaling_law.tuned_learning_rate(size)
        return replace(asked, parameters=size, tokens=product / size, recipe=replace(tuned, learning_rate=rate))

    size = min(sizes, key=lambda n: scaling_law.predict_loss(at(n)).loss)
    return Best(
        parameters=size,
        tokens=product / size,
        expectation=scaling_law.predict_loss(at(size)),
        bound=size >= 0.999 * most and most < FITTED_PARAMETERS[1],
    )


def stop_early(found: Plan) -> tuple[int, float, float]:
    """Three quarters of the run: its steps, its loss with the decay ending there, and its loss when just cut off."""
    iters = max(1, 3 * found.last.max_iters // 4)
    annealed = plan.predict_loss(found.inputs, iters).loss
    rate = schedule.learning_rate(found.inputs.config.optim, found.last.max_iters, iters)
    share = rate / max(found.inputs.config.optim.learning_rate, 1e-12)
    return iters, annealed, annealed + scaling_law.LAW.undecayed_lr * max(share - 0.1, 0.0)


def sensitivity(found: Plan) -> tuple[tuple[float, float], ...]:
    """Pairs of different tokens and expected loss: as counted, and as few as were claimed, or a quarter and a half."""
    unique = found.inputs.tokens.unique
    if unique is None:
        return ()
    fewer = CLAIMED_UNIQUE if unique > 2 * CLAIMED_UNIQUE[1] and unique < 1e10 else (unique / 4, unique / 2)
    return tuple(
        (count, plan.predict_loss(found.inputs, found.last.max_iters, unique=count).loss) for count in (*fewer, unique)
    )


def _sentences(
    found: Plan, worth: int, best: Best | None, early: tuple[int, float, float], unique: tuple[tuple[float, float], ...]
) -> list[str]:
    last = found.last
    iters, annealed, cut = early
    per_hour = _hour(found)
    hour = "" if per_hour is None else f" The last hour of {last.max_iters:,} steps brings {per_hour:.4f} nats."
    tokens = worth * found.facts.tokens_per_step
    far = (
        f" (which lies beyond the {FITTED_TOKENS[1] / 1e9:.0f}B tokens of the fit)" if tokens > FITTED_TOKENS[1] else ""
    )
    said = [
        f"Beyond about {worth:,} steps a tenth more of them brings less than {MEASURABLE_GAIN:.3f} nats, which "
        f"one run cannot tell from its seed; {last.max_iters:,} steps are "
        f"{'past' if last.max_iters > worth else 'before'} that point{far}.{hour}"
    ]
    said.append(_best_sentence(last.loss, best))
    if unique:
        parts = ", ".join(f"{loss:.3f} with {format_tokens(count)}" for count, loss in unique)
        said.append(f"How many tokens really differ: expected {parts} different tokens.")
    said.append(
        f"To stop early, plan it: {iters:,} steps whose learning rate falls by then end at {annealed:.3f} "
        f"(+{annealed - last.loss:.3f}); cutting the long run there leaves the rate high: {cut:.3f}."
    )
    gains = found.gains
    said.append(
        f"Twice the model gains {gains['double_model'].nats:.3f}, twice the steps {gains['double_steps'].nats:.3f}, "
        f"twice the different tokens at the same steps {gains['double_unique_data'].nats:.3f} nats."
    )
    return said


def _claim_sentence(found: Plan, claim: float | None) -> str:
    if claim is None:
        return f"With endless different tokens this model would end at {floor(found):.2f}: no length brings it lower."
    if found.last.loss <= claim:
        return f"A loss of {claim:g} is expected of this run: {found.last.loss:.2f}."
    return f"A loss of {claim:g} {needed(found, claim)}."


def floor(found: Plan) -> float:
    """Where this model would end with endless different tokens, in nats."""
    return least_loss(found.facts.parameters, found.inputs.corpus)


def least_loss(parameters: float, corpus: Corpus) -> float:
    """Where a model of that size would end with endless different tokens, in nats."""
    return corpus.offset + scaling_law.LAW.capacity_term(parameters)


def needed(found: Plan, loss: float) -> str:
    """What a claimed loss takes by the law, as the end of a sentence: more tokens, or a larger model on how many."""
    return required_for_loss(found.facts.parameters, found.inputs.corpus, loss)


def required_for_loss(parameters: float, corpus: Corpus, loss: float) -> str:
    """The same for any model and corpus."""
    law, least = scaling_law.LAW, least_loss(parameters, corpus)
    if loss > least:
        tokens = 1e10 * (law.data / (loss - least)) ** (1 / law.beta)
        return f"takes {tokens / 1e9:,.0f}B different tokens through this model"
    unreachable = f"is out of reach of this model at any length (floor {least:.2f})"
    size = _size_for(corpus.offset, loss)
    return unreachable if size is None else f"{unreachable}: about {size / 1e9:,.1f}B parameters on 20 tokens each"


def _size_for(offset: float, loss: float) -> float | None:
    """The least size whose loss on 20 tokens per parameter is `loss`; None above a trillion."""
    size = 1e7
    while size < 1e12:
        if offset + scaling_law.LAW.capacity_term(size) + scaling_law.LAW.data_term(20 * size) <= loss:
            return size
        size *= 1.02
    return None


def _best_sentence(loss: float, best: Best | None) -> str:
    if best is None:
        return (
            f"No model of {FITTED_PARAMETERS[0] / 1e6:.0f}M parameters and 15 tokens for each can be trained with so "
            "few FLOPs: the law's fitted range is not reached, and all losses here are rough."
        )
    model = f"{best.parameters / 1e6:,.0f}M parameters on {format_tokens(best.tokens)} tokens"
    if loss - best.expectation.loss <= MEASURABLE_GAIN:
        return f"The size fits the FLOPs: the best model that the law knows for as many 6ND has {model}."
    bound = ", on the bound of 15 tokens per parameter within which the law was fitted" if best.bound else ""
    return (
        f"For the same 6ND FLOPs the best model in the fitted range has {model}: {best.expectation.loss:.2f} "
        f"instead of {loss:.2f}{bound}."
    )


def _hour(found: Plan) -> float | None:
    """What the last hour of the longest run brings, in nats; None where no pace is known or the run is shorter."""
    pace = found.paces.get("jaxgpt")
    less = found.last.max_iters - round(3600 / pace.seconds) if pace else 0
    return plan.predict_loss(found.inputs, less).loss - found.last.loss if less > 0 else None


def format_tokens(count: float) -> str:
    """`2.52B`, `480M`."""
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.3g}M" if count >= 1e6 else f"{count:,.0f}"
