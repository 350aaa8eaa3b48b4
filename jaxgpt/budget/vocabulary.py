"""Whether a vocabulary trained on the text suits a run better than its own: more text in the same time, at what cost.

The scaling law cannot say it: its N counts the embedding, and all runs that it is fitted to have GPT-2's vocabulary, so
that it would take a smaller embedding for a smaller model. The choice therefore adds two figures at an unchanged N:
what more text brings, by the scaling law, and what a vocabulary costs at equal text, by the runs of Tao et al. (2024,
arXiv 2407.13623). `bench/vocabulary_law.py` computes the second from their published results.
"""

import math
from dataclasses import dataclass, replace

from jaxgpt.budget import plan, query, scaling_law, tokens
from jaxgpt.budget.plan import Inputs
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token, non_embedding_parameters, parameters

GPT2_ROWS = 50_304  # with its usual padding
CANDIDATES = (4_096, 8_192, 16_384, 32_768)  # from the smallest of those runs
STUDIED_PARAMETERS = 3.3e7  # outside the embedding, of the smallest of their models
FARTHEST = 2.0  # times smaller: for a model below that no difference of losses is stated
MEASURED_PARAMETERS, MEASURED_GAIN = 7.9e5, "0.14 to 0.17"  # bench/vocabulary.py
# Bits per byte at equal text, for each halving below the size from which nothing is gained; standard deviations of that
# between their six models, and of the difference between two sizes.
COST, COST_SD, NO_COST = 0.005, 0.0065, 24_576
NOISE_SD = 0.005
TEXT_GAIN_SPREAD = 0.3  # relative standard deviation of what more text brings
LEAST_TEXT = 1.08  # times as much in the same time: less is not worth another vocabulary


@dataclass(frozen=True, kw_only=True)
class VocabularyChoice:
    """A vocabulary that reads more text in the same time.

    `head_fraction` is the head's part of the training FLOPs; `steps` are those of the same time; `text` and `speed` are
    the text and the tokens in it, relative to the run's own vocabulary. `bits_per_byte` is the expected change of the
    loss at the end, `sd` its standard deviation, both None below the studied models. `published_best` is the best size
    for the model and its length by Tao et al.
    """

    vocab_size: int
    head_fraction: float
    own_head_fraction: float
    steps: int
    speed: float
    text: float
    bits_per_byte: float | None
    sd: float | None
    published_best: int

    @property
    def is_gain(self) -> bool:
        """Whether a lower loss is expected, by more than its standard deviation."""
        return self.bits_per_byte is not None and self.sd is not None and self.bits_per_byte < -self.sd


def choose_vocabulary(inputs: Inputs, steps: int) -> VocabularyChoice | None:
    """The candidate with the lowest expected loss for the time of `steps` steps.

    None if no smaller one reads much more text without a higher expected loss.
    """
    smaller = [size for size in CANDIDATES if size < inputs.config.model.vocab_size]
    choices = [compare(inputs, steps, size) for size in smaller]
    worthwhile = [choice for choice in choices if choice.text >= LEAST_TEXT and (choice.bits_per_byte or 0.0) <= 0]
    return min(worthwhile, key=lambda choice: (choice.bits_per_byte or 0.0, -choice.text), default=None)


def compare(inputs: Inputs, steps: int, size: int) -> VocabularyChoice:
    """A vocabulary of `size` for the time of `steps` steps with the own one."""
    config = inputs.config
    own = config.model.vocab_size
    other = config.replace({"model": {"vocab_size": size}})
    speed = relative_speed(inputs, other)
    text = speed * tokens_per_character(own) / tokens_per_character(size)
    change, sd = change_in_bits(inputs, steps, text, size)
    is_near = is_near_studied(config)
    return VocabularyChoice(
        vocab_size=size,
        head_fraction=head_fraction(other),
        own_head_fraction=head_fraction(config),
        steps=round(steps * speed),
        speed=speed,
        text=text,
        bits_per_byte=change if is_near else None,
        sd=sd if is_near else None,
        published_best=published_best(config, steps * config.tokens_per_step),
    )


def is_near_studied(config: Config) -> bool:
    return non_embedding_parameters(config.model) >= STUDIED_PARAMETERS / FARTHEST


def relative_speed(inputs: Inputs, other: Config) -> float:
    """Tokens per second of `other` over those of the run; by FLOPs if the step time is unknown."""
    own_time = plan.own_step_time(inputs)
    other_time = plan.own_step_time(replace(inputs, config=other))
    if own_time is None or other_time is None:
        return flops_per_token(inputs.config.model) / flops_per_token(other.model)
    return own_time.seconds / other_time.seconds


def change_in_bits(inputs: Inputs, steps: int, text: float, size: int) -> tuple[float, float]:
    """The change of the final loss in bits per byte with `text` times as much text, and its standard deviation."""
    asked = query.build_query(inputs.config, steps, inputs.corpus, inputs.tokens.unique)
    asked = replace(asked, ceiling=math.inf)
    more = replace(asked, tokens=text * asked.tokens)
    predictions = [scaling_law.predict_loss(each) for each in (asked, more)]
    losses = [prediction.loss - prediction.terms["recipe"] for prediction in predictions]
    gain = tokens.config_scale(inputs.config).bits_per_byte(losses[0] - losses[1])
    halvings = halvings_below(size) - halvings_below(inputs.config.model.vocab_size)
    return COST * halvings - gain, math.hypot(COST_SD * halvings, TEXT_GAIN_SPREAD * gain, NOISE_SD)


def halvings_below(size: int) -> float:
    return max(math.log2(NO_COST / size), 0.0)


def tokens_per_character(size: int) -> float:
    """Of a vocabulary of `size` trained on the text: Tao et al.'s fit to SlimPajama, for 1,024 to a million entries."""
    logarithm = math.log(size)
    return 0.00639222 * logarithm**2 - 0.15811069 * logarithm + 1.20470122


def head_fraction(config: Config) -> float:
    """The LM head's part of the training FLOPs."""
    return 6 * config.model.vocab_size * config.model.n_embd / flops_per_token(config.model)


def published_best(config: Config, trained_tokens: float) -> int:
    """Tao et al.'s best size for a model and its training FLOPs, their approach 3, to two digits.

    It minimizes A2 (V d)^-alpha2 + B D^-beta with D = F / 6 (N + V d), in millions of parameters and billions of
    tokens; N are the parameters outside the embedding. Their other terms do not depend on V.
    """
    outside = non_embedding_parameters(config.model) / 1e6
    width = config.model.n_embd / 1e6
    budget = (outside + config.model.vocab_size * width) * trained_tokens / 1e9

    def loss(size: float) -> float:
        embedding = size * width
        return float(0.19584 * embedding**-0.67074 + 2.12411 * ((outside + embedding) / budget) ** 0.44661)

    sizes = [1.02**power for power in range(300, 700)]
    return int(float(f"{min(sizes, key=loss):.2g}"))


def vocabulary_sentences(choice: VocabularyChoice | None, config: Config, steps: int) -> list[str]:
    """The choice for a run of `steps` steps, or what its own smaller vocabulary does to the predicted loss, if any."""
    if choice is not None:
        return [choice_sentence(choice, steps)]
    rows = config.model.vocab_size
    if not CANDIDATES[0] <= rows < tokens.GPT2_VOCAB_SIZES[0] or not is_near_studied(config):
        return []
    sizes = [parameters(config.model), parameters(config.replace({"model": {"vocab_size": GPT2_ROWS}}).model)]
    own, gpt2 = (scaling_law.LAW.capacity_term(size) for size in sizes)
    nats = tokens.config_scale(config).value * (own - gpt2)
    return [
        f"The scaling law takes the smaller embedding for a smaller model: {nats:.2f} nats of the predicted loss. In "
        "published runs on the same text a small vocabulary cost less than that, so the run may end lower."
    ]


def choice_sentence(choice: VocabularyChoice, steps: int) -> str:
    """What to do, what it saves, and what it changes as far as the evidence goes."""
    size = choice.vocab_size
    own_share, share = (f"{part:.0%}" for part in (choice.own_head_fraction, choice.head_fraction))
    return (
        f"Train a vocabulary of {size:,} on your text (prepare --train-tokenizer {size}, --model.vocab-size {size}): "
        f"the LM head takes {share} of the FLOPs instead of {own_share}, so the same time trains "
        f"{float(f'{choice.steps:.3g}'):,.0f} steps instead of {steps:,}, on {choice.text - 1:.0%} more text. "
        f"{_expected_change(choice)}"
    )


def _expected_change(choice: VocabularyChoice) -> str:
    if choice.bits_per_byte is None:
        return (
            "How much lower this model ends is not known: at equal FLOPs, vocabularies of 4,096 to 32,768 ended "
            f"{MEASURED_GAIN} bits per byte below GPT-2's with {MEASURED_PARAMETERS / 1e6:.1f}M parameters outside the "
            "embedding (docs/recipe.md), and published runs begin at 33M."
        )
    change = f"{-choice.bits_per_byte:.3f} ± {choice.sd:.3f} bits per byte lower"
    if choice.is_gain:
        return f"That is expected to end {change}, by runs of Tao et al. (2024); docs/budget.md has the evidence."
    return (
        f"The expected loss hardly changes ({change}, by runs of Tao et al. 2024, whose own formula has its best at "
        f"{choice.published_best:,}); the same text takes {1 - 1 / choice.text:.0%} less time."
    )
