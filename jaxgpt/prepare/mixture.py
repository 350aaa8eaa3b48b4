"""The order of documents from several sources: one source after another, or mixed by weight.

In a mixture, the next document always comes from the component that is furthest behind its weight in tokens, so the
proportions hold throughout, not only at the end. Nothing is repeated: the mixture ends when a component has its turn
and no document left. The order depends on the documents and the weights, not on how they are read in batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxgpt.prepare.encoder import EncodedBatch, Encoder
from jaxgpt.prepare.prefetch import prefetch
from jaxgpt.prepare.sources import Skipped, TextBatch

ReadSource = Callable[[int, int], Iterator[TextBatch]]


@dataclass
class Cursor:
    """The position in a component: `taken` documents after record `record` of source `source`; `tokens` in total.

    `skipped` counts what was left out before that record.
    """

    source: int
    record: int = 0
    taken: int = 0
    tokens: int = 0
    skipped: Skipped = field(default_factory=Skipped)


class DocumentRange(NamedTuple):
    """Documents `first` to `last` (exclusive) of a batch of `source`, which are consecutive in the order."""

    source: int
    batch: EncodedBatch
    first: int
    last: int

    @property
    def bytes(self) -> int:
        return int(self.batch.sizes[self.first : self.last].sum())

    @property
    def tokens(self) -> int:
        return int(self.batch.tokens[self.first : self.last].sum())


class MixtureComponent:
    """The sources of one argument, in their order, with a `weight` in tokens.

    `read(source, record)` reads a source from a record on; a thread of the component prefetches from it.
    `eot_tokens` is the number of end-of-text tokens after each document, `names` the names of all sources.
    """

    def __init__(
        self,
        sources: Sequence[int],
        cursor: Cursor,
        read: ReadSource,
        encoder: Encoder,
        eot_tokens: int,
        names: Sequence[str],
        weight: float = 1.0,
    ) -> None:
        self.cursor = cursor
        self.weight = weight
        self.batch: EncodedBatch | None = None
        self._encoder = encoder
        self._eot_tokens = eot_tokens
        self._names = names
        self._resume_after = cursor.taken  # documents after the cursor's record that an earlier process took
        self._batch_skipped = Skipped()
        self._batch_end_tokens = cursor.tokens
        self._texts = prefetch(_read_batches(sources, cursor.source, cursor.record, read))

    def advance(self) -> bool:
        """Moves to the next batch that has documents; returns False if there is none."""
        self.batch = None
        for source, record, texts in self._texts:
            self._move_to(source, record, texts.skipped)
            self.cursor.taken = min(self._resume_after, len(texts.texts))
            self._resume_after -= self.cursor.taken
            if self.cursor.taken < len(texts.texts):
                batch = self._encoder.encode(texts.texts, self._names[source])
                self.batch = batch._replace(tokens=batch.tokens + self._eot_tokens)
                self._batch_end_tokens = self.cursor.tokens + int(self.batch.tokens[self.cursor.taken :].sum())
                return True
        self._move_to(self.cursor.source, self.cursor.record, Skipped())
        return False

    def _move_to(self, source: int, record: int, skipped: Skipped) -> None:
        self.cursor.skipped.add(self._batch_skipped)
        self.cursor.source = source
        self.cursor.record = record
        self._batch_skipped = skipped

    def turns(self) -> npt.NDArray[np.float64]:
        """The turn of each remaining document of the batch: tokens of the component before it ÷ weight."""
        assert self.batch is not None
        tokens = self.batch.tokens[self.cursor.taken :]
        return (self.cursor.tokens + np.cumsum(tokens) - tokens) / self.weight

    @property
    def next_turn(self) -> float:
        """The turn of the document after the batch."""
        return self._batch_end_tokens / self.weight

    def mark_taken(self, documents: DocumentRange) -> None:
        self.cursor.taken += documents.last - documents.first
        self.cursor.tokens += documents.tokens

    def close(self) -> None:
        """Ends the thread."""
        self._texts.close()


def _read_batches(
    sources: Sequence[int], first: int, record: int, read: ReadSource
) -> Iterator[tuple[int, int, TextBatch]]:
    """Yields batches from a record of source `first` on, with the source and the record where each batch starts."""
    for source in sources[sources.index(first) :]:
        for texts in read(source, record):
            yield source, record, texts
            record = texts.records
        record = 0


class Mixture:
    """The documents of `components` in their order. Reads and encodes the first batch of each immediately."""

    def __init__(self, components: Sequence[MixtureComponent]) -> None:
        self._components = components
        has_documents = [component.advance() for component in components]
        self._complete = all(has_documents)

    @property
    def exhausted(self) -> list[int]:
        """The indices of the components that have no document left."""
        return [index for index, component in enumerate(self._components) if component.batch is None]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token in the first batches, weighted like the mixture; includes end-of-text tokens."""
        batches = [(component.batch, component.weight) for component in self._components if component.batch]
        if not batches:
            return 1.0
        total = sum(weight for _, weight in batches)
        densities = [weight * batch.sizes.sum() / max(batch.tokens.sum(), 1) for batch, weight in batches]
        return max(float(sum(densities)) / total, 1e-3)

    def ranges(self) -> Iterator[DocumentRange]:
        """Yields all documents in their order. A range counts as taken when the next one is asked for."""
        while self._complete:
            last = min(range(len(self._components)), key=lambda index: (self._components[index].next_turn, index))
            yield from _ranges_before(self._components, self._components[last].next_turn, last)
            self._complete = self._components[last].advance()


@contextmanager
def closing_all(components: Sequence[MixtureComponent]) -> Iterator[Sequence[MixtureComponent]]:
    """Ends the threads of `components` with the block."""
    try:
        yield components
    finally:
        for component in components:
            component.close()


def _ranges_before(components: Sequence[MixtureComponent], turn: float, limit: int) -> Iterator[DocumentRange]:
    """Yields the encoded documents that come before `turn` of component number `limit`."""
    turns = []
    owners = []
    for index, component in enumerate(components):
        remaining = component.turns()
        due = remaining[(remaining < turn) | ((remaining == turn) & (index < limit))]
        turns.append(due)
        owners.append(np.full(len(due), index))
    owner = np.concatenate(owners)[np.lexsort((np.concatenate(owners), np.concatenate(turns)))]
    edges = (np.flatnonzero(np.diff(owner)) + 1).tolist()
    for start, stop in zip([0, *edges], [*edges, len(owner)]):
        if start < stop:
            component = components[owner[start]]
            assert component.batch is not None
            first = component.cursor.taken
            documents = DocumentRange(component.cursor.source, component.batch, first, first + stop - start)
            yield documents
            component.mark_taken(documents)
