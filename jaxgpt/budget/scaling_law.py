"""Predicts the final loss of a run from model size, tokens and corpus, with an interval.

    L = offset(corpus) + A (N / 1e8)^-alpha + B (D / 1e10)^-beta + recipe + repetition          nats per token

N counts all parameters except learned positions (a tied matrix once, an untied one twice); D is the number of tokens
trained on. The form is that of Hoffmann et al. (2022). Their constants, and every other published set, miss runs of
this size by 0.1 to 0.15 nats. `bench/refit.py` fits the constants below and writes docs/budget-accuracy.md with the
measured errors.
"""

import csv
import math
from dataclasses import dataclass, field
from importlib import resources

from jaxgpt.budget import recipes
from jaxgpt.budget.recipes import Recipe, tuned_learning_rate
from jaxgpt.budget.tokens import GPT2_TOKENS, GPT2_VOCAB_SIZES, TokenScale
from jaxgpt.utils.stats import Z80

__all__ = ["GPT2_VOCAB_SIZES", "Recipe", "tuned_learning_rate"]  # re-exported


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """Constants of the fit: `capacity` and `alpha` belong to N, `data` and `beta` to D; see also `recipe_costs`."""

    capacity: float
    alpha: float
    data: float
    beta: float
    undertuned_lr: float
    undecayed_lr: float = 0.11

    def capacity_term(self, parameters: float) -> float:
        """What the finite size of the model costs, in nats."""
        return float(self.capacity * (parameters / 1e8) ** -self.alpha)

    def data_term(self, tokens: float) -> float:
        """What the finite number of tokens costs, in nats."""
        return float(self.data * (tokens / 1e10) ** -self.beta)


# bench/refit.py: 78 tuned points of Porian et al. (2024), 7 annealed Adam(W) runs on FineWeb, one offset per corpus.
LAW = ScalingLaw(capacity=1.155, alpha=0.214, data=0.269, beta=0.262, undertuned_lr=0.027)
FITTED_PARAMETERS = (2e7, 1.5e9)
FITTED_TOKENS = (1e9, 4e10)
FITTED_RATIO = 15.0  # tokens per parameter, at least


@dataclass(frozen=True)
class Corpus:
    """A corpus's irreducible loss in nats per token of its tokenizer, and the standard deviation of that estimate.

    `is_constant_lr` tells that the estimate comes from runs at a constant learning rate and includes its cost.
    `calibrated_by` are parameters and tokens of a run of the user's that gave the offset, with that run's recipe.
    """

    name: str
    offset: float
    sd: float
    evidence: str
    is_constant_lr: bool = False
    calibrated_by: tuple[float, float] | None = None


def _load_corpora() -> dict[str, Corpus]:
    text = resources.files("jaxgpt.budget").joinpath("corpora.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {row["name"]: _read_corpus(row) for row in rows}


def _read_corpus(row: dict[str, str]) -> Corpus:
    is_constant_lr = row["learning_rate"] == "constant"
    return Corpus(row["name"], float(row["offset"]), float(row["sd"]), row["evidence"], is_constant_lr)


CORPORA = _load_corpora()
MAX_INTERVAL = 1.0  # nats: a wider interval predicts nothing
OWN_RUN = 0.15  # of these, for a run like the one that the offset was calibrated by
SAME_RECIPE, OTHER_RECIPE = 0.04, 0.07  # standard deviations in nats


@dataclass(frozen=True, kw_only=True)
class ScalingQuery:
    """A run to predict the loss of. `unique` counts tokens before any repetition; None means that none is repeated.

    `scale` tells what its tokens are worth in GPT-2's; losses are per token of the run's own tokenizer.
    """

    parameters: float
    tokens: float
    recipe: Recipe
    corpus: Corpus
    unique: float | None = None
    ceiling: float = math.inf  # loss of a uniform guess: the logarithm of the vocabulary size
    scale: TokenScale = GPT2_TOKENS


@dataclass(frozen=True, kw_only=True)
class LossPrediction:
    """A predicted loss in nats per token: its 80 % interval, the terms that it is the sum of, and its uncertainty.

    `sigmas` are the standard deviations by cause; `outside` says in words how the run lies outside the fitted range,
    `few_steps` that it is shorter than the fitted ones.
    """

    loss: float
    low: float
    high: float
    terms: dict[str, float]
    sigmas: dict[str, float] = field(default_factory=dict)
    outside: tuple[str, ...] = ()
    few_steps: str = ""
    token_scale: float = 1.0

    @property
    def sigma(self) -> float:
        """The standard deviation of all causes together."""
        return math.hypot(*self.sigmas.values())

    @property
    def is_informative(self) -> bool:
        """Whether the interval is narrow enough to state a loss."""
        return self.high - self.low <= MAX_INTERVAL * self.token_scale


def predict_loss(query: ScalingQuery, law: ScalingLaw = LAW) -> LossPrediction:
    """The expected validation loss at the end of the run that `query` describes, per token of its tokenizer."""
    scale = query.scale.value
    tokens = scale * query.tokens  # of GPT-2, like all that follows until the terms are scaled
    unique = None if query.unique is None else scale * query.unique
    repeated = repetition_cost(query.parameters, tokens, unique)
    outside, extrapolation_sd = extrapolation(query.parameters, tokens)
    terms = {
        "irreducible": query.corpus.offset,
        "capacity": law.capacity_term(query.parameters),
        "data": law.data_term(tokens),
        "repetition": repeated,
        "recipe": sum(recipe_costs(query, law).values()),
    }
    new = unfamiliarity(query.parameters, tokens, query.corpus)
    sigmas = {
        "recipe": new * (OTHER_RECIPE if query.recipe.differences else SAME_RECIPE),
        "learning rate, steps and optimizer": new * recipes.uncertainty(query.recipe, query.parameters, query.tokens),
        "corpus": query.corpus.sd,
        "outside the fitted range": new * extrapolation_sd,
        "repetition": new * REPETITION_SPREAD * repeated,
        "tokenizer": query.scale.spread * sum(terms.values()) if query.corpus.calibrated_by is None else 0.0,
    }
    terms = {name: scale * nats for name, nats in terms.items()}
    sigmas = {name: scale * nats for name, nats in sigmas.items()}
    terms["data"] -= max(sum(terms.values()) - query.ceiling, 0.0)  # a run is not expected to be worse than guessing
    loss = sum(terms.values())
    half_width = Z80 * math.hypot(*sigmas.values())
    return LossPrediction(
        loss=loss,
        low=max(loss - half_width, 0.0),
        high=min(loss + half_width, max(query.ceiling, loss)),
        terms=terms,
        sigmas=sigmas,
        outside=outside,
        few_steps=recipes.few_steps(query.recipe, query.tokens),
        token_scale=scale,
    )


def unfamiliarity(parameters: float, tokens: float, corpus: Corpus) -> float:
    """The part of the scaling law's uncertainty that a run of the user's own has not removed, 0.15 to 1.

    It has removed most of it for runs of its own size and length, and nothing a factor of about e away.
    """
    if corpus.calibrated_by is None:
        return 1.0
    own_parameters, own_tokens = corpus.calibrated_by
    distance = abs(math.log(parameters / own_parameters)) + abs(math.log(tokens / own_tokens)) / 2
    return min(OWN_RUN + distance, 1.0)


def recipe_costs(query: ScalingQuery, law: ScalingLaw = LAW) -> dict[str, float]:
    """Known costs of a recipe, in nats; `jaxgpt.budget.recipes` describes them."""
    recipe = query.recipe
    undecayed = 0.0 if query.corpus.is_constant_lr else undecayed_lr_cost(recipe.final_lr_fraction, law)
    return {
        "learning_rate": recipes.learning_rate_cost(recipe, query.parameters, query.tokens),
        "batch": recipes.batch_cost(recipe.tokens_per_step, query.tokens),
        "optimizer": recipes.optimizer_cost(recipe),
        "undertuned_lr": law.undertuned_lr * recipes.undertuned_fraction(recipe, query.parameters),
        "undecayed_lr": undecayed,
    }


def undecayed_lr_cost(lr_fraction: float, law: ScalingLaw = LAW) -> float:
    """What a learning rate that is still at `lr_fraction` of its peak costs, in nats; nothing from a tenth down."""
    return law.undecayed_lr * max(lr_fraction - 0.1, 0.0)


# Muennighoff et al.'s 131 pairs of runs that differ in their unique tokens only (datablations), 1.8 to 660 epochs.
REPETITION_SCALE, REPETITION_EPOCHS, REPETITION_RATIO = 0.0224, 0.683, 0.578
REPETITION_SPREAD = 0.7  # times or divided by 1.7 is one standard deviation


def repetition_cost(parameters: float, tokens: float, unique: float | None) -> float:
    """What training on `tokens` of which only `unique` differ costs compared with fresh tokens, in nats."""
    if unique is None or tokens <= unique:
        return 0.0
    epochs = tokens / unique
    ratio = parameters / unique
    return float(REPETITION_SCALE * (epochs - 1) ** REPETITION_EPOCHS * ratio**REPETITION_RATIO)


def extrapolation(parameters: float, tokens: float) -> tuple[tuple[str, ...], float]:
    """How a run lies outside the fitted range, in words, and the standard deviation in nats that this adds.

    A factor e below or above the sizes adds 0.3, of the tokens 0.1, below the ratio of tokens to parameters 0.2: about
    what the runs of docs/budget-accuracy.md that lie there miss the predictions by.
    """
    ratio_range = (FITTED_RATIO, math.inf)
    texts = []
    total = 0.0
    for quantity, value, (low, high), sd_per_factor_e in (
        ("parameters", parameters, FITTED_PARAMETERS, 0.3),
        ("tokens", tokens, FITTED_TOKENS, 0.1),
        ("tokens per parameter", tokens / parameters, ratio_range, 0.2),
    ):
        side, limit, factor = ("below", low, low / value) if value < low else ("above", high, value / high)
        if factor > 1.0 + 1e-9:
            texts.append(f"{value:.3g} {quantity} are {factor:.3g} times {side} the fitted {limit:.3g}")
            total += sd_per_factor_e * math.log(factor)
    return tuple(texts), total
