"""How much a token of the run's tokenizer is worth in tokens of GPT-2, for which all priors of losses hold.

Per byte of text, losses hardly depend on the tokenizer. A token of half as many bytes therefore has half the loss, half
the annealing gain and half of every other difference of losses.
"""

import math
from typing import NamedTuple

from jaxgpt.budget.scaling_law import GPT2_VOCAB_SIZES
from jaxgpt.logs.history import History

GPT2_BYTES_PER_TOKEN, BYTES_SPREAD = 4.6, 0.05  # of English web text, and the relative spread between corpora
GPT2_VOCAB_SIZE = 50_257
# Bytes per token grow with a power of the logarithm of the vocabulary size: 2.4 at 1,024, 3.2 at 4,096, 4.2 at 32,000.
VOCAB_POWER, VOCAB_SPREAD = 1.42, 0.15
NO_MERGES = 300  # entries, up to which a token is one byte
UNTRAINED_LOSS = (5.5, 9.5)  # nats at step 0 that show the vocabulary size of a run whose log does not state it


class TokenScale(NamedTuple):
    """Nats of a token over those of a GPT-2 token of the same text, and the relative standard deviation of that.

    `note` tells the user what it was derived from; empty for GPT-2's tokens.
    """

    value: float = 1.0
    spread: float = 0.0
    note: str = ""


GPT2_TOKENS = TokenScale()


def token_scale(history: History, bytes_per_token: float | None, vocab_size: int | None) -> TokenScale:
    """The scale from bytes per token, else from the size of the vocabulary, else from the loss before any training."""
    if vocab_size is not None and GPT2_VOCAB_SIZES[0] <= vocab_size <= GPT2_VOCAB_SIZES[1]:
        return GPT2_TOKENS
    if bytes_per_token:
        value = bytes_per_token / GPT2_BYTES_PER_TOKEN
        return _scale(value, BYTES_SPREAD, f"{bytes_per_token:.2f} bytes per token")
    if vocab_size is not None and vocab_size > 1:
        return _scale(_vocab_scale(vocab_size), VOCAB_SPREAD, f"a vocabulary of {vocab_size:,}")
    loss = _untrained_loss(history)
    if loss is None:
        return GPT2_TOKENS
    return _scale(_vocab_scale(math.exp(loss)), VOCAB_SPREAD, f"a loss of {loss:.2f} at step 0")


def _scale(value: float, spread: float, reason: str) -> TokenScale:
    if abs(value - 1) < BYTES_SPREAD:
        return GPT2_TOKENS
    note = f"a token is assumed to have {value:.2f} (± {spread * value:.2f}) of the loss of a GPT-2 token: {reason}"
    return TokenScale(value, spread, note)


def _vocab_scale(size: float) -> float:
    if size <= NO_MERGES:
        return 1 / GPT2_BYTES_PER_TOKEN
    return float((math.log(size) / math.log(GPT2_VOCAB_SIZE)) ** VOCAB_POWER)


def _untrained_loss(history: History) -> float | None:
    """The validation loss at step 0 if it is that of a guess among clearly fewer tokens than GPT-2's."""
    first = history.evaluations[0] if history.evaluations else None
    if first is None or first.step or first.val is None:
        return None
    return first.val if UNTRAINED_LOSS[0] < first.val < UNTRAINED_LOSS[1] else None
