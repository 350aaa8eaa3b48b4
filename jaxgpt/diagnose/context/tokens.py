"""How much a token of the run's tokenizer is worth in tokens of GPT-2, for which all priors of losses hold.

`jaxgpt.budget.tokens` converts bytes per token or the size of a vocabulary; a log without either may still show the
loss before any training, which tells the size of the vocabulary.
"""

import math
from pathlib import Path

from jaxgpt.budget import tokens
from jaxgpt.budget.tokens import GPT2_BYTES_PER_TOKEN, GPT2_TOKENS, TokenScale
from jaxgpt.config.files import load_config
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import BytesPerToken, History

__all__ = ["GPT2_TOKENS", "TokenScale", "bytes_per_token", "token_scale"]
UNTRAINED_LOSS = (5.5, 9.5)  # nats at step 0 that show the vocabulary size of a run whose log does not state it


def token_scale(history: History, bytes_per_token: float | None, vocab_size: int | None) -> TokenScale:
    """The scale from bytes per token, else from the size of the vocabulary, else from the loss before any training."""
    if bytes_per_token or vocab_size is not None:
        return tokens.token_scale(bytes_per_token, vocab_size)
    loss = _untrained_loss(history)
    if loss is None:
        return GPT2_TOKENS
    scale = tokens.vocabulary_scale(math.exp(loss))
    return tokens.make_scale(scale, tokens.VOCAB_SPREAD, f"a loss of {loss:.2f} at step 0")


def bytes_per_token(options: Options) -> BytesPerToken | None:
    """Those that an option states, else of the config's data or vocabulary, else of GPT-2 on a named corpus.

    Raises `ConfigError` for a config that cannot be read.
    """
    if options.bytes_per_token is not None:
        return BytesPerToken(options.bytes_per_token)
    if options.config is not None:
        config = load_config(options.config)
        measured = tokens.folder_bytes_per_token(Path(config.data.path))
        if measured is not None:
            return BytesPerToken(measured, f"those of {config.data.path} (--bytes-per-token)")
        expected = GPT2_BYTES_PER_TOKEN * tokens.vocabulary_scale(config.model.vocab_size)
        return BytesPerToken(expected, f"a vocabulary of {config.model.vocab_size:,} (--bytes-per-token)")
    if options.corpus not in (None, "unknown"):
        return BytesPerToken(GPT2_BYTES_PER_TOKEN, "GPT-2's tokenizer on English text (--bytes-per-token)")
    return None


def _untrained_loss(history: History) -> float | None:
    """The validation loss at step 0 if it is that of a guess among clearly fewer tokens than GPT-2's."""
    first = history.evaluations[0] if history.evaluations else None
    if first is None or first.step or first.val is None:
        return None
    return first.val if UNTRAINED_LOSS[0] < first.val < UNTRAINED_LOSS[1] else None
