"""The unigram entropy of tokens: the loss of the best model that ignores context."""

import numpy as np

from jaxgpt.data.dataset import Split
from jaxgpt.errors import DataError

MAX_TOKENS = 50_000_000
CHUNK_TOKENS = 1 << 22


def unigram_entropy(split: Split, vocab_size: int, limit: int = MAX_TOKENS) -> float:
    """Nats per token of the unigram baseline, which knows only the frequency of each token.

    Exact over the first `limit` tokens. Multiply by tokens / bytes / ln 2 for bits per byte. Raises `DataError` D010
    for an id outside the vocabulary.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    total = min(limit, split.tokens)
    for start in range(0, total, CHUNK_TOKENS):
        ids = split.ids(start, min(CHUNK_TOKENS, total - start))
        chunk_counts = np.bincount(ids, minlength=vocab_size)
        if len(chunk_counts) > vocab_size:
            index = int(np.argmax(ids >= vocab_size))
            position = f"token {ids[index]} at position {start + index:,}"
            message = f"{position}; the tokenizer's vocabulary is {vocab_size}"
            raise DataError("D010", message, "the data was made with another tokenizer, or the file is damaged")
        counts += chunk_counts
    probs = counts[counts > 0] / max(total, 1)
    return float(-(probs * np.log(probs)).sum())
