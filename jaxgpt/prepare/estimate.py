"""Estimates of a corpus before it is encoded, and what a validation split of it needs.

They come from the files' metadata and samples; nothing is read to its end. What is written does not depend on their
accuracy, except that enough documents must be held out for validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxgpt.errors import DataError
from jaxgpt.prepare import sources
from jaxgpt.prepare.sources import Source
from jaxgpt.utils.formatting import pluralize

HOLDOUT_FACTOR = 2  # hold out this many times the text that validation needs, and a few more documents
EXTRA_DOCUMENTS = 20
MAX_BYTES_PER_TOKEN = 8  # more than any tokenizer reaches on prose or code


@dataclass(frozen=True)
class CorpusEstimate:
    """Expected bytes of text and number of documents."""

    bytes: int
    documents: int

    def key_fraction(self, size: float) -> float:
        """The fraction of all keys below which to expect `size` bytes of text and a few documents more; at most 1."""
        extra = EXTRA_DOCUMENTS * self.bytes / max(self.documents, 1)
        return min(1.0, (size + extra) / max(self.bytes, 1)) if size else 0.0


def estimate_corpus(corpus: Sequence[Source]) -> CorpusEstimate:
    """Sums the estimates of local files. Of files on a hub, only the first is opened; the others count as similar."""
    local = [source for source in corpus if not source.remote] or list(corpus[:1])
    estimates = [sources.estimate(source) for source in local]
    scale = sum(source.size for source in corpus) / max(sum(source.size for source in local), 1)
    size = sum(estimate.text_bytes for estimate in estimates)
    documents = sum(estimate.documents for estimate in estimates)
    return CorpusEstimate(int(size * scale), int(documents * scale))


def check_val_tokens(tokens: float, documents: int, val_tokens: int, can_cut: bool = False) -> None:
    """Raises `DataError` D025 if a validation split of `val_tokens` would leave too little to train on.

    `can_cut` allows a single document, which is then cut in two.
    """
    is_indivisible = documents < 2 and not can_cut
    if val_tokens and documents and (val_tokens > tokens / 2 or is_indivisible):
        total = f"about {tokens:,.0f} tokens in {pluralize(documents, 'document')}"
        message = f"val_tokens = {val_tokens:,} leaves too little to train on: there are {total}"
        has_enough = documents > 20 or can_cut
        help = f"--val-tokens {int(tokens) // 20}" if has_enough else "give more documents: only a text file is cut"
        raise DataError("D025", message, help)
