"""What a training recipe costs compared with a tuned one, in nats, and how uncertain that makes a prediction.

Learning rate and batch: fitted to StepLaw's 1,911 public runs (Li et al. 2025, 17 sizes and lengths of 215M to 1.07B
parameters and 4B to 100B tokens), which `bench/recipes.py` repeats. Both are differences within a size and length, so
that neither corpus nor tokenizer matters.
"""

import math
from dataclasses import dataclass

from jaxgpt.optimizers import OPTIMIZERS

REFERENCE_BATCH = 524_288  # tokens per step of most fitted runs
REFERENCE_STEPS = 20_000
# A rate of e^-x of the tuned one costs LOW x^LOW_POWER (steps / 20,000)^STEPS_POWER, one of e^x HIGH x^2.
LOW, LOW_POWER, STEPS_POWER, HIGH = 0.0193, 1.53, -0.30, 0.026
# A batch of b tokens costs BATCH ((b / 524,288)^BATCH_POWER - 1) (tokens / 10B)^TOKENS_POWER more than one of 524,288.
BATCH, BATCH_POWER, TOKENS_POWER = 0.0168, 1.05, -0.8
MAX_COST = 1.0  # nats, of each: far outside the fitted runs neither formula means anything
SMALLEST_TUNED = 1.236e8  # parameters
FEW_STEPS = 3000  # StepLaw's and the FineWeb runs have more, but for 1 % of them
SD_PER_FEWER_STEPS = 0.15  # nats per factor e below that
KNOWN_RATES = 3.0  # within this factor of the tuned rate the cost of a rate is known
SD_PER_RATE, SD_OF_COSTS = 0.05, 0.5  # nats per factor e beyond that, and of the costs
UNKNOWN_GAIN = (0.0, 0.02)
# Nats below AdamW's final loss, and their standard deviation. Other programs have SOAP and Shampoo; their public runs
# end where Muon's do.
LOSS_GAINS = {name: optimizer.loss_gain for name, optimizer in OPTIMIZERS.items()}
LOSS_GAINS |= {"soap": LOSS_GAINS["muon"], "shampoo": LOSS_GAINS["muon"]}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The parts of a training recipe that move the loss.

    `learning_rate` is the peak; `final_lr_fraction` is the last learning rate divided by it. `differences` say how the
    recipe differs from those of the fitted runs.
    """

    learning_rate: float
    final_lr_fraction: float = 0.1
    tokens_per_step: float = REFERENCE_BATCH
    optimizer: str = "adamw"
    differences: tuple[str, ...] = ()


def tuned_learning_rate(parameters: float) -> float:
    """AdamW's peak LR that published speed records settled on: 1.8e-3 at 124M, 9e-4 at 1.5B (modded-nanogpt)."""
    return float(1.8e-3 * (parameters / 1.236e8) ** -0.274)


def muon_learning_rate(width: int) -> float:
    """Muon's peak for updates of AdamW's size: 8.5e-3 at width 128, 4e-3 at 768 (modded-nanogpt).

    The former is the middle of 7e-3 (`quickstart`) and 1e-2 (`shakespeare_char`); `bench/recipe.py` has 8e-3 as the
    best of 4e-3, 8e-3 and 16e-3. The latter is 0.02 to 0.025 for orthogonal matrices, whose root mean square is
    1 / sqrt(width) instead of 0.2.
    """
    return float(8.5e-3 * (width / 128) ** -0.42)


def log_rate(recipe: Recipe, parameters: float) -> float:
    """The logarithm of the peak rate over the tuned one; 0 for other optimizers, whose tuned rate is not known.

    Below 124M parameters, the smallest size whose rate was tuned, it is also 0 for rates down to that of 124M.
    """
    if recipe.optimizer != "adamw":
        return 0.0
    rate = max(recipe.learning_rate, 1e-12)
    highest = tuned_learning_rate(parameters)
    lowest = tuned_learning_rate(max(parameters, SMALLEST_TUNED))
    return max(math.log(rate / highest), 0.0) + min(math.log(rate / lowest), 0.0)


def learning_rate_cost(recipe: Recipe, parameters: float, tokens: float) -> float:
    """What a peak learning rate below or above the tuned one costs; more in short runs."""
    distance = log_rate(recipe, parameters)
    if distance >= 0:
        return min(HIGH * distance**2, MAX_COST)
    shorter = (max(tokens / recipe.tokens_per_step, 1.0) / REFERENCE_STEPS) ** STEPS_POWER
    return float(min(LOW * (-distance) ** LOW_POWER * shorter, MAX_COST))


def batch_cost(tokens_per_step: float, tokens: float) -> float:
    """What a batch above 524,288 tokens costs, as it leaves fewer steps; nothing for a smaller one."""
    excess = max((tokens_per_step / REFERENCE_BATCH) ** BATCH_POWER - 1, 0.0)
    return float(min(BATCH * excess * (tokens / 1e10) ** TOKENS_POWER, MAX_COST))


def optimizer_cost(recipe: Recipe) -> float:
    """What the optimizer changes compared with AdamW: less than nothing for a better one."""
    return -LOSS_GAINS.get(recipe.optimizer, UNKNOWN_GAIN)[0]


def undertuned_fraction(recipe: Recipe, parameters: float) -> float:
    """The part, 0 to 1, of what llm.c's and nanoGPT's recipe for 124M costs beyond its learning rate.

    They train at a peak of 6e-4, a third of what later tuning gave. It counts fully at 0.334 of the tuned rate and not
    at all from 0.6 on. It was seen at that size alone, and a run of a third of the size at 0.41 of its tuned rate
    agreed with the prediction without it, so that it fades to nothing at a factor of three in size.
    """
    if recipe.optimizer != "adamw":
        return 0.0
    rate = recipe.learning_rate / tuned_learning_rate(parameters)
    shortfall = math.log(0.6 / max(rate, 1e-9)) / math.log(0.6 / 0.334)
    fade = 1 - abs(math.log(parameters / 1.236e8)) / math.log(3)
    return min(max(shortfall, 0.0), 1.0) * max(fade, 0.0)


def uncertainty(recipe: Recipe, parameters: float, tokens: float) -> float:
    """The standard deviation that the distance from tuned recipes adds: of rate, batch, few steps and optimizer."""
    few = math.log(max(FEW_STEPS * recipe.tokens_per_step / max(tokens, 1.0), 1.0))
    beyond = max(abs(log_rate(recipe, parameters)) - math.log(KNOWN_RATES), 0.0)
    costs = learning_rate_cost(recipe, parameters, tokens) + batch_cost(recipe.tokens_per_step, tokens)
    optimizer = LOSS_GAINS.get(recipe.optimizer, UNKNOWN_GAIN)[1]
    return math.hypot(SD_PER_FEWER_STEPS * few + SD_PER_RATE * beyond + SD_OF_COSTS * costs, optimizer)


def few_steps(recipe: Recipe, tokens: float) -> str:
    """That the run has fewer steps than those behind the costs; empty if not."""
    steps = tokens / recipe.tokens_per_step
    return f"{steps:,.0f} steps are fewer than the {FEW_STEPS:,} of the fitted runs" if steps < FEW_STEPS else ""
