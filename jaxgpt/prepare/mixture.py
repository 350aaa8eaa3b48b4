"""Documents of several sources in one order: one source after another, or mixed by weight.

In a mixture, the next document always comes from the part that is furthest behind its share of the tokens, so that the
shares hold all along, not only at the end. Nothing is repeated: the mixture ends when a part is at its turn and has no
document left. Its order is a function of the documents and the weights, not of how they are read in batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxgpt import _loader
from jaxgpt.prepare.encoder import Encoder
from jaxgpt.prepare.prefetch import ahead
from jaxgpt.prepare.sources.base import Skipped, Texts

Read = Callable[[int, int], Iterator[Texts]]


@dataclass
class Place:
    """How far a part is: `taken` documents after record `record` of source `source`, and `tokens` tokens in all.

    `skipped` counts what was left out before that record.
    """

    source: int
    record: int = 0
    taken: int = 0
    tokens: int = 0
    skipped: Skipped = field(default_factory=Skipped)


class Batch(NamedTuple):
    """Encoded documents of one source. `sizes` are the bytes, `tokens` the tokens of each, end-of-text included."""

    source: int
    encoded: _loader.Encoded
    sizes: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]


class Run(NamedTuple):
    """Documents `first` to `last` (exclusive) of a batch, which follow each other in the order."""

    part: int
    batch: Batch
    first: int
    last: int

    @property
    def bytes(self) -> int:
        return int(self.batch.sizes[self.first : self.last].sum())

    @property
    def tokens(self) -> int:
        return int(self.batch.tokens[self.first : self.last].sum())


class Part:
    """The sources of one argument, in their order. `weight` is its share of the tokens; `place` is how far it is.

    `read(source, record)` reads a source from a record on. A thread of the part's own reads ahead.
    """

    def __init__(
        self,
        sources: Sequence[int],
        place: Place,
        read: Read,
        encoder: Encoder,
        ends: int,
        names: Callable[[int], str],
        weight: float = 1.0,
    ) -> None:
        self.place, self.weight = place, weight
        self._encoder, self._ends, self._names = encoder, ends, names
        self._before, self._leaving = place.taken, Skipped()
        self._texts = ahead(_texts(sources, place.source, place.record, read))
        self.batch: Batch | None = None
        self.ends_at = place.tokens

    def advance(self) -> bool:
        """Makes the next batch the current one; False if there is no document left."""
        self.batch = None
        for source, record, texts in self._texts:
            self._enter(source, record, texts.skipped)
            self.place.taken = min(self._before, len(texts.texts))
            self._before -= self.place.taken
            if self.place.taken < len(texts.texts):
                self.batch = self._encode(source, texts)
                self.ends_at = self.place.tokens + int(self.batch.tokens[self.place.taken :].sum())
                return True
        self._enter(self.place.source, self.place.record, Skipped())
        return False

    def _enter(self, source: int, record: int, skipped: Skipped) -> None:
        self.place.skipped.add(self._leaving)
        self.place.source, self.place.record, self._leaving = source, record, skipped

    def _encode(self, source: int, texts: Texts) -> Batch:
        found = self._encoder.encode(texts.texts, self._names(source))
        return Batch(source, found.encoded, found.sizes, found.tokens + self._ends)

    def keys(self) -> npt.NDArray[np.float64]:
        """When the turn of each document of the batch is: how far the part's share is before it."""
        assert self.batch is not None
        tokens = self.batch.tokens[self.place.taken :]
        return (self.place.tokens + np.cumsum(tokens) - tokens) / self.weight

    @property
    def end(self) -> float:
        """When the turn of the document after the batch is."""
        return self.ends_at / self.weight

    def took(self, run: Run) -> None:
        self.place.taken += run.last - run.first
        self.place.tokens += run.tokens

    def close(self) -> None:
        """Ends the thread."""
        self._texts.close()


def _texts(sources: Sequence[int], first: int, record: int, read: Read) -> Iterator[tuple[int, int, Texts]]:
    """Batches of the sources from a record of source `first` on, with the source and the record where they begin."""
    for source in sources[sources.index(first) :]:
        for texts in read(source, record):
            yield source, record, texts
            record = texts.records
        record = 0


class Mixture:
    """The order of the documents of `parts`. The first batch of each is read and encoded at once."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        ready = [part.advance() for part in parts]  # each of them, whether or not another has nothing
        self._complete = all(ready)

    @property
    def empty(self) -> list[int]:
        """The parts that have no document left."""
        return [index for index, part in enumerate(self._parts) if part.batch is None]

    @property
    def density(self) -> float:
        """Bytes of text per token in the first batches, end-of-text tokens counted, in the shares of the mixture."""
        first = [(part.batch, part.weight) for part in self._parts if part.batch]
        weights = sum(weight for _, weight in first)
        shares = [weight * batch.sizes.sum() / max(batch.tokens.sum(), 1) for batch, weight in first]
        return max(float(sum(shares)) / weights, 1e-3) if first else 1.0

    def runs(self) -> Iterator[Run]:
        """All documents in their order. Each run counts as taken when the next one is asked for."""
        while self._complete:
            last = min(range(len(self._parts)), key=lambda index: (self._parts[index].end, index))
            yield from _before(self._parts, (self._parts[last].end, last))
            self._complete = self._parts[last].advance()


@contextmanager
def closing_all(parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """Ends the threads of `parts` with the block."""
    try:
        yield parts
    finally:
        for part in parts:
            part.close()


def _before(parts: Sequence[Part], limit: tuple[float, int]) -> Iterator[Run]:
    """The documents at hand whose turn is before `limit`, a key and the index of a part."""
    keys, owners = [], []
    for index, part in enumerate(parts):
        found = part.keys()
        due = found[(found < limit[0]) | ((found == limit[0]) & (index < limit[1]))]
        keys.append(due)
        owners.append(np.full(len(due), index))
    owner = np.concatenate(owners)[np.lexsort((np.concatenate(owners), np.concatenate(keys)))]
    edges = np.flatnonzero(np.diff(owner)) + 1
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(owner)]):
        if start < stop:
            part = parts[owner[start]]
            assert part.batch is not None
            run = Run(int(owner[start]), part.batch, part.place.taken, part.place.taken + stop - start)
            yield run
            part.took(run)
