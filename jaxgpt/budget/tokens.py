"""How much a token of a tokenizer is worth in tokens of GPT-2, for which the scaling law's losses hold.

Per byte of text, losses hardly depend on the tokenizer. A token of half as many bytes therefore has half the loss, half
of every difference of losses, and counts as half a token of data.
"""

import functools
import math
from pathlib import Path
from typing import NamedTuple

from jaxgpt.config import Config
from jaxgpt.data import manifest
from jaxgpt.errors import JaxgptError

GPT2_VOCAB_SIZES = (50_000, 51_000)  # GPT-2's vocabulary and its paddings: the tokens that the offsets hold for
GPT2_BYTES_PER_TOKEN, BYTES_SPREAD = 4.6, 0.05  # of English web text, and the relative spread between corpora
GPT2_VOCAB_SIZE = 50_257
# Bytes per token grow with a power of the logarithm of the vocabulary size. On FineWeb 2.44 at 1,024 and 3.32 at 4,096
# (parameter-golf's SentencePiece models); OpenWebText has 4.41 at GPT-2's 50,257.
VOCAB_POWER, VOCAB_SPREAD = 1.42, 0.08
NO_MERGES = 300  # entries, up to which a token is one byte


class TokenScale(NamedTuple):
    """Nats of a token over those of a GPT-2 token of the same text, and the relative standard deviation of that.

    `note` tells the user what it was derived from; empty for GPT-2's tokens.
    """

    value: float = 1.0
    spread: float = 0.0
    note: str = ""

    def bits_per_byte(self, nats: float) -> float:
        """A loss in nats per token as bits per byte of text."""
        return nats / math.log(2) / (self.value * GPT2_BYTES_PER_TOKEN)


GPT2_TOKENS = TokenScale()


def token_scale(bytes_per_token: float | None, vocab_size: float | None) -> TokenScale:
    """The scale from bytes per token, else from the size of the vocabulary; GPT-2's where neither tells."""
    if vocab_size is not None and GPT2_VOCAB_SIZES[0] <= vocab_size <= GPT2_VOCAB_SIZES[1]:
        return GPT2_TOKENS
    if bytes_per_token:
        value = bytes_per_token / GPT2_BYTES_PER_TOKEN
        return make_scale(value, BYTES_SPREAD, f"{bytes_per_token:.2f} bytes per token")
    if vocab_size is not None and vocab_size > 1:
        return make_scale(vocabulary_scale(vocab_size), VOCAB_SPREAD, f"a vocabulary of {vocab_size:,.0f}")
    return GPT2_TOKENS


def make_scale(value: float, spread: float, reason: str) -> TokenScale:
    """The scale with a note that names the reason; GPT-2's if the difference is within the spread between corpora."""
    if abs(value - 1) < BYTES_SPREAD:
        return GPT2_TOKENS
    note = f"a token is assumed to have {value:.2f} (± {spread * value:.2f}) of the loss of a GPT-2 token: {reason}"
    return TokenScale(value, spread, note)


def vocabulary_scale(size: float) -> float:
    """The expected scale of a tokenizer with that many entries, trained on English text."""
    if size <= NO_MERGES:
        return 1 / GPT2_BYTES_PER_TOKEN
    return float((math.log(size) / math.log(GPT2_VOCAB_SIZE)) ** VOCAB_POWER)


def config_scale(config: Config) -> TokenScale:
    """The scale of the config's tokenizer, by the manifest of its data where there is one."""
    return _config_scale(config.data.path, config.model.vocab_size)


@functools.lru_cache(maxsize=64)
def _config_scale(path: str, vocab_size: int) -> TokenScale:
    return token_scale(folder_bytes_per_token(Path(path)), vocab_size)


def folder_bytes_per_token(folder: Path) -> float | None:
    """Bytes of text per token of a folder of shards, by its manifest; None without one."""
    try:
        split = manifest.read_manifest(folder).splits.get("train")
    except (JaxgptError, OSError):
        return None
    return split.bytes / split.tokens if split and split.tokens and split.bytes else None
