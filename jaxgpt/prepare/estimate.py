"""What can be known of a corpus before it is encoded: about how large it is, and how to divide it.

From the files' own metadata and samples; nothing is read from end to end. The figures are estimates, and nothing that
is written depends on their being right, but for how generously documents are held aside for validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import estimate
from jaxgpt.prepare.sources.base import Source
from jaxgpt.utils.formatting import pluralize

GENEROUS = 2  # times as much as validation needs is held aside, and a few documents
SPARE_DOCUMENTS = 20
MOST_BYTES_PER_TOKEN = 8  # more than any tokenizer reaches on prose or code


@dataclass(frozen=True)
class Survey:
    """Bytes of text and documents to expect."""

    bytes: int
    documents: int

    def share(self, size: float) -> float:
        """The share of all keys below which `size` bytes of text are expected, and some documents more; at most 1."""
        spare = SPARE_DOCUMENTS * self.bytes / max(self.documents, 1)
        return min(1.0, (size + spare) / max(self.bytes, 1)) if size else 0.0


def survey(sources: Sequence[Source], text_column: str | None) -> Survey:
    """Of a hub's files only the first is looked into: the others may not be needed, and are taken to be like it."""
    near = [source for source in sources if not source.remote] or list(sources[:1])
    found = [estimate(source, text_column) for source in near]
    scale = sum(source.size for source in sources) / max(sum(source.size for source in near), 1)
    size, documents = sum(one.text_bytes for one in found), sum(one.documents for one in found)
    return Survey(int(size * scale), int(documents * scale))


def check_split(tokens: float, documents: int, val_tokens: int) -> None:
    """Raises `DataError` D025 if a validation split of `val_tokens` would leave too little to train on."""
    if val_tokens and documents and (val_tokens > tokens / 2 or documents < 2):
        what = f"val_tokens = {val_tokens:,} leaves too little to train on"
        there = f"about {tokens:,.0f} tokens in {pluralize(documents, 'document')}"
        help = f"--val-tokens {int(tokens) // 20}" if documents > 20 else "give more documents: none is cut in two"
        raise DataError("D025", f"{what}: there are {there}", help)
