"""The pass over a corpus: read, encode, split, write, and note how far it is.

Three things go on at once, each without Python's lock: a thread reads ahead, the encoder uses all cores, and another
thread writes what was encoded before. Every few seconds everything is brought to the disk and noted in the site's
journal; whoever goes on from there makes the same bytes.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt import _loader
from jaxgpt.data.dataset import translate_loader_errors
from jaxgpt.data.manifest import PrepareSettings, SourceEntry
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.prepare import sources
from jaxgpt.prepare.encoder import Encoder
from jaxgpt.prepare.estimate import GENEROUS, Survey, check_split
from jaxgpt.prepare.mixture import Mixture, Part, Place, Run, closing_all
from jaxgpt.prepare.sources.base import Skipped, Source, Texts, Unchanged
from jaxgpt.prepare.staging import Site, check_room
from jaxgpt.utils.progress import ProgressReporter
from jaxgpt.utils.signals import DeferredInterrupt

MOST_SHARDS = 100_000
Journal = dict[str, Any]
NOTE_SECONDS = 10.0  # of work that a kill can cost


@dataclass(frozen=True)
class Job:
    """What is to be prepared, and how."""

    sources: tuple[Source, ...]
    settings: PrepareSettings
    eot: bool
    clusters: Path | None = None

    def plan(self, known: Tokenizer | None) -> dict[str, Any]:
        """What must be the same for an interrupted preparation to go on, as plain JSON values."""
        settings = asdict(self.settings) | {"weights": list(self.settings.weights)}
        return {
            "sources": [[source.name, source.group] for source in self.sources],
            "tokenizer": known.fingerprint if known else None,
            "end_of_text": self.eot,
            **settings,
        }

    def groups(self) -> list[list[int]]:
        """The numbers of the sources of each part of the mixture: all in one without weights."""
        if not self.settings.weights:
            return [list(range(len(self.sources)))]
        groups = range(len(self.settings.weights))
        return [[number for number, source in enumerate(self.sources) if source.group == group] for group in groups]


@dataclass
class Opened:
    """A source that was read, or begun: its checksum, and what was taken of it."""

    size: int
    xxh3_128: str
    documents: int = 0
    bytes: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Result:
    """What was written."""

    dtype: "np.dtype[Any]"
    splits: dict[str, _loader.WrittenSplit]
    sources: tuple[SourceEntry, ...]
    skipped: Skipped


class Encoding:
    """The pass, from its beginning or, with a journal, from where that ends.

    Raises `DataError` D026 if a file that the journal knows changed since.
    """

    def __init__(self, job: Job, encoder: Encoder, found: Survey, plan: Journal, journal: Journal) -> None:
        self.job, self.encoder = job, encoder
        self._found, self._plan = found, plan
        self._places = [Place(group[0]) for group in job.groups()]
        self._opened: dict[int, Opened] = {}
        self._limit = self._expected = 0.0
        self._progress: str | None = None
        self.rate = 0.0  # tokens per second, once it has run
        self._noted = time.monotonic()
        if "progress" in journal:
            self._restore(journal)

    def _restore(self, journal: Journal) -> None:
        self._places = [Place(**place | {"skipped": Skipped(**place["skipped"])}) for place in journal["places"]]
        self._opened = {int(number): Opened(**entry) for number, entry in journal["opened"].items()}
        self._limit, self._expected, self._progress = journal["limit"], journal["expected"], journal["progress"]
        for number, entry in self._opened.items():
            _check_unchanged(self.job.sources[number], entry)

    def run(self, out: Path, site: Site, meter: ProgressReporter) -> Result:
        """Writes the shards of `out` into the site's folder."""
        meter.begin("reading")
        self.encoder.ready()
        began = time.monotonic()
        with translate_loader_errors(), DeferredInterrupt() as interrupt, closing_all(self._parts()) as parts:
            order = Mixture(parts)
            self._check_parts(order)
            if self._progress is None:
                self._measure(order, out, site)
            with self._splitter(site) as splitter:
                before = splitter.taken
                meter.begin("encoding", int(self._expected), before)
                self._noted = time.monotonic()
                self._take(order.runs(), splitter, site, meter, interrupt)
                self._check_taken(splitter)
                interrupt.raise_if_pending()
                meter.begin("finishing")
                tokens = splitter.taken[2] - before[2]
                train, val = splitter.finish()
        self.rate = tokens / (time.monotonic() - began)
        splits = {"train": train} | ({"val": val} if val else {})
        return Result(self.encoder.dtype, splits, self._entries(), self._skipped())

    def _check_parts(self, order: Mixture) -> None:
        """A mixture needs a document of each part to begin with: `DataError` D024 names the part that has none."""
        if self.job.settings.weights and self._progress is None:
            for index in order.empty:
                names = ", ".join(self.job.sources[number].name for number in self.job.groups()[index][:3])
                raise DataError("D024", f"no text in {names}: there is nothing to mix", "leave it and its weight out")

    def _measure(self, order: Mixture, out: Path, site: Site) -> None:
        """From the first batches: how dense the text is, and hence what validation needs, and the disk.

        Raises `DataError` D025 and `StorageError` S011.
        """
        settings, density = self.job.settings, order.density
        tokens = self._found.bytes / density
        if settings.tokens:
            tokens = min(tokens, settings.tokens)
        check_split(tokens, self._found.documents, settings.val_tokens)
        if settings.layout == "shards" and tokens / settings.shard_tokens > MOST_SHARDS:
            what = (
                f"shard_tokens = {settings.shard_tokens} would make about {tokens / settings.shard_tokens:,.0f} files"
            )
            raise ConfigError("C028", what, f"--shard-tokens {max(int(tokens / 100), 1000)}")
        check_room(site.folder, out, int(tokens) * self.encoder.dtype.itemsize)
        self._limit = self._found.share(GENEROUS * settings.val_tokens * density)
        self._expected = tokens * density

    def _splitter(self, site: Site) -> _loader.Splitter:
        settings = self.job.settings
        return _loader.Splitter(
            site.folder,
            self.encoder.dtype.name,
            shard_tokens=settings.shard_tokens,
            end_of_text=self.encoder.tokenizer.eot if self.job.eot else None,
            val_tokens=settings.val_tokens,
            limit=self._limit,
            budget=settings.tokens or None,
            plain=settings.layout == "nanogpt",
            clusters=self.job.clusters,
            progress=self._progress,
        )

    def _parts(self) -> list[Part]:
        weights = self.job.settings.weights or (1.0,)
        names = [source.name for source in self.job.sources].__getitem__
        return [
            Part(group, place, self._read, self.encoder, int(self.job.eot), names, weight)
            for group, place, weight in zip(self.job.groups(), self._places, weights, strict=True)
        ]

    def _read(self, number: int, record: int) -> Iterator[Texts]:
        """Reads a source from a record on; its checksum first."""
        source = self.job.sources[number]
        with Unchanged.watch(source.local(), source.name):
            if number not in self._opened:
                self._opened[number] = Opened(source.size, sources.checksum(source))
            yield from sources.read(source, self.job.settings.text_column, record)

    def _take(
        self,
        order: Iterator[Run],
        splitter: _loader.Splitter,
        site: Site,
        meter: ProgressReporter,
        interrupt: DeferredInterrupt,
    ) -> None:
        """Has each run written while the next one is read and encoded, until there is none or the budget is used up."""
        with ThreadPoolExecutor(1, "write") as pool:
            pending: Future[int] | None = None
            for run in order:
                interrupt.raise_if_pending()
                if pending and pending.result() < 0:
                    return
                if time.monotonic() - self._noted > NOTE_SECONDS:
                    self._note(splitter, site)
                pending = pool.submit(self._write, splitter, run, meter)
            if pending:
                pending.result()

    def _write(self, splitter: _loader.Splitter, run: Run, meter: ProgressReporter) -> int:
        """How many documents were written; -1 if not all, because the budget is used up."""
        taken = splitter.add(run.batch.encoded, run.first, run.last)
        done = run._replace(last=run.first + taken)
        entry = self._opened[run.batch.source]
        entry.documents += taken
        entry.bytes += done.bytes
        entry.tokens += done.tokens
        meter.advance(taken, done.bytes, done.tokens)
        return -1 if splitter.full else taken

    def _note(self, splitter: _loader.Splitter, site: Site) -> None:
        self._progress = splitter.sync()
        site.note(
            {
                "plan": self._plan,
                "tokenizer": self.encoder.tokenizer.name,
                "limit": self._limit,
                "expected": self._expected,
                "places": [asdict(place) for place in self._places],
                "opened": {str(number): asdict(entry) for number, entry in list(self._opened.items())},
                "progress": self._progress,
            }
        )
        self._noted = time.monotonic()

    def _check_taken(self, splitter: _loader.Splitter) -> None:
        documents, _, tokens = splitter.taken
        if not documents:
            names = ", ".join(source.name for source in self.job.sources[:3])
            raise DataError(
                "D024", f"no text in {names} ({str(self._skipped()) or 'no documents'})", "give other sources"
            )
        if self.job.settings.val_tokens >= tokens:
            what = (
                f"val_tokens = {self.job.settings.val_tokens:,} leaves nothing to train on: there are {tokens:,} tokens"
            )
            raise DataError("D025", what, f"--val-tokens {tokens // 20}")

    def _entries(self) -> tuple[SourceEntry, ...]:
        entries = [self._opened.get(number) for number in range(len(self.job.sources))]
        return tuple(
            SourceEntry(name=source.name, **asdict(entry))
            if entry
            else SourceEntry(name=source.name, size=source.size, documents=0, bytes=0)
            for source, entry in zip(self.job.sources, entries, strict=True)
        )

    def _skipped(self) -> Skipped:
        total = Skipped()
        for place in self._places:
            total.add(place.skipped)
        return total


def _check_unchanged(source: Source, entry: Opened) -> None:
    if source.size != entry.size or sources.checksum(source) != entry.xxh3_128:
        what = f"{source.name} changed since the preparation was interrupted"
        raise DataError("D026", what, "restore it, or --restart to begin anew")
