"""The single pass over a corpus: read, encode, split, write, and record progress.

Three things run in parallel, each without Python's lock: a thread prefetches texts, the encoder uses all cores, and
another thread writes the previous documents. Every few seconds everything is flushed to the disk and recorded in the
staging folder's journal; resuming from there produces the same bytes.
"""

import time
from collections.abc import Callable, Iterator
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
from jaxgpt.prepare.estimate import HOLDOUT_FACTOR, CorpusEstimate, check_val_tokens
from jaxgpt.prepare.mixture import Cursor, DocumentRange, Mixture, MixtureComponent, closing_all
from jaxgpt.prepare.sources import Skipped, Source, TextBatch
from jaxgpt.prepare.sources.base import FileGuard
from jaxgpt.prepare.staging import StagingDir, check_disk_space
from jaxgpt.utils.progress import ProgressReporter
from jaxgpt.utils.signals import deferred_interrupt

MAX_SHARDS = 100_000
JOURNAL_SECONDS = 10.0  # of work that a kill can lose
Journal = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What to prepare, and how. `names` stand for the sources; `clusters` is an audit's file of near-duplicates."""

    sources: tuple[Source, ...]
    names: tuple[str, ...]
    settings: PrepareSettings
    eot: bool
    clusters: Path | None = None

    def plan(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """What must be equal to resume an interrupted preparation, as JSON values. No `tokenizer` if it is trained."""
        settings = asdict(self.settings) | {"weights": list(self.settings.weights)}
        return {
            "sources": [[source.name, source.group] for source in self.sources],
            "tokenizer": tokenizer.fingerprint if tokenizer else None,
            "end_of_text": self.eot,
            **settings,
        }

    def groups(self) -> list[list[int]]:
        """The indices of the sources of each component of the mixture; one component if there are no weights."""
        if not self.settings.weights:
            return [list(range(len(self.sources)))]
        groups = range(len(self.settings.weights))
        return [[index for index, source in enumerate(self.sources) if source.group == group] for group in groups]


@dataclass
class SourceState:
    """A source that was opened: its checksum, and what was taken from it so far."""

    size: int
    xxh3_128: str
    documents: int = 0
    bytes: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class IngestResult:
    """What was written. `cut_at` is where the only document was cut, in characters; None if none was."""

    dtype: "np.dtype[Any]"
    splits: dict[str, _loader.WrittenSplit]
    sources: tuple[SourceEntry, ...]
    skipped: Skipped
    tokens_per_second: float
    cut_at: int | None = None


class Ingest:
    """The pass, from the start or from where `journal` ends.

    Raises `DataError` D026 if a file that the journal lists has changed since.
    """

    def __init__(self, job: Job, encoder: Encoder, corpus: CorpusEstimate, plan: Journal, journal: Journal) -> None:
        self.job = job
        self.encoder = encoder
        self._val_tokens = job.settings.val_tokens or 0
        self._corpus = corpus
        self._plan = plan
        self._cursors = [Cursor(group[0]) for group in job.groups()]
        self._states: dict[int, SourceState] = {}
        self._key_limit = 0.0  # documents with lower keys are held out until it is clear which validation needs
        self._expected_bytes = 0.0
        self._writer_state: str | None = None
        self._journal_time = time.monotonic()
        if "writer_state" in journal:
            self._restore(journal)

    def _restore(self, journal: Journal) -> None:
        self._cursors = [_cursor_from_json(values) for values in journal["cursors"]]
        self._states = {int(index): SourceState(**values) for index, values in journal["sources"].items()}
        self._key_limit = journal["key_limit"]
        self._expected_bytes = journal["expected_bytes"]
        self._writer_state = journal["writer_state"]
        for index, state in self._states.items():
            _check_unchanged(self.job.sources[index], state)

    def run(self, out: Path, staging: StagingDir, progress: ProgressReporter) -> IngestResult:
        """Writes the shards of `out` into the staging folder."""
        progress.start_stage("reading")
        self.encoder.load()
        start = time.monotonic()
        with (
            translate_loader_errors(),
            deferred_interrupt() as check_interrupt,
            closing_all(self._components()) as components,
        ):
            mixture = Mixture(components)
            if self._writer_state is None:
                self._check_components(mixture)
                self._measure(mixture, out, staging)
            with open_splitter(
                self.job, self.encoder, staging, self._val_tokens, self._key_limit, self._writer_state
            ) as splitter:
                before = splitter.totals
                progress.start_stage("encoding", int(self._expected_bytes), before)
                self._journal_time = time.monotonic()
                self._write_all(mixture.ranges(), splitter, staging, progress, check_interrupt)
                self._check_taken(splitter)
                check_interrupt()
                progress.start_stage("finishing")
                tokens = splitter.totals[2] - before[2]
                train, val = splitter.finish()
        splits = {"train": train} | ({"val": val} if val else {})
        speed = tokens / (time.monotonic() - start)
        return IngestResult(self.encoder.dtype, splits, self._source_entries(), self._skipped(), speed)

    def _check_components(self, mixture: Mixture) -> None:
        """Raises `DataError` D024 if a component of a weighted mixture has no document at all."""
        if not self.job.settings.weights:
            return
        for component in mixture.exhausted:
            names = ", ".join(self.job.sources[index].name for index in self.job.groups()[component][:3])
            raise DataError("D024", f"no text in {names}: there is nothing to mix", "leave it and its weight out")

    def _measure(self, mixture: Mixture, out: Path, staging: StagingDir) -> None:
        """Measures bytes per token on the first batches; derives what to hold out, and checks the disk space.

        Raises `DataError` D025, `ConfigError` C028 or `StorageError` S011.
        """
        settings = self.job.settings
        bytes_per_token = mixture.bytes_per_token
        tokens = self._corpus.bytes / bytes_per_token
        if settings.tokens:
            tokens = min(tokens, settings.tokens)
        check_val_tokens(tokens, self._corpus.documents, self._val_tokens)
        shards = tokens / settings.shard_tokens
        if settings.layout == "shards" and shards > MAX_SHARDS:
            message = f"shard_tokens = {settings.shard_tokens} would make about {shards:,.0f} files"
            raise ConfigError("C028", message, f"--shard-tokens {max(int(tokens / 100), 1000)}")
        check_disk_space(staging.folder, out, int(tokens) * self.encoder.dtype.itemsize)
        self._key_limit = self._corpus.key_fraction(HOLDOUT_FACTOR * self._val_tokens * bytes_per_token)
        self._expected_bytes = tokens * bytes_per_token

    def _components(self) -> list[MixtureComponent]:
        weights = self.job.settings.weights or (1.0,)
        names = [source.name for source in self.job.sources]
        return [
            MixtureComponent(group, cursor, self._read, self.encoder, int(self.job.eot), names, weight)
            for group, cursor, weight in zip(self.job.groups(), self._cursors, weights, strict=True)
        ]

    def _read(self, index: int, record: int) -> Iterator[TextBatch]:
        """Yields the texts of a source from a record on, after computing its checksum."""
        source = self.job.sources[index]
        with FileGuard.watch(source.local(), source.name):
            if index not in self._states:
                self._states[index] = SourceState(source.size, sources.checksum(source))
            yield from sources.read(source, record)

    def _write_all(
        self,
        ranges: Iterator[DocumentRange],
        splitter: _loader.Splitter,
        staging: StagingDir,
        progress: ProgressReporter,
        check_interrupt: Callable[[], None],
    ) -> None:
        """Writes each range while the next one is read and encoded, until the last one or the token budget."""
        with ThreadPoolExecutor(1, "write") as pool:
            pending: Future[bool] | None = None
            for documents in ranges:
                check_interrupt()
                if pending and not pending.result():
                    return
                if time.monotonic() - self._journal_time > JOURNAL_SECONDS:
                    self._write_journal(splitter, staging)
                pending = pool.submit(self._write, splitter, documents, progress)
            if pending:
                pending.result()

    def _write(self, splitter: _loader.Splitter, documents: DocumentRange, progress: ProgressReporter) -> bool:
        """Writes documents; returns False once the token budget is used up."""
        count = splitter.add(documents.batch.encoded, documents.first, documents.last)
        written = documents._replace(last=documents.first + count)
        state = self._states[documents.source]
        state.documents += count
        state.bytes += written.bytes
        state.tokens += written.tokens
        progress.advance(count, written.bytes, written.tokens)
        return not splitter.is_full

    def _write_journal(self, splitter: _loader.Splitter, staging: StagingDir) -> None:
        self._writer_state = splitter.sync()
        staging.write_journal(
            {
                "plan": self._plan,
                "tokenizer": self.encoder.tokenizer.name,
                "key_limit": self._key_limit,
                "expected_bytes": self._expected_bytes,
                "cursors": [asdict(cursor) for cursor in self._cursors],
                "sources": {str(index): asdict(state) for index, state in list(self._states.items())},
                "writer_state": self._writer_state,
            }
        )
        self._journal_time = time.monotonic()

    def _check_taken(self, splitter: _loader.Splitter) -> None:
        """Raises `DataError` D024 if there was no document, D025 if validation would take all of them."""
        documents, _, tokens = splitter.totals
        if not documents:
            names = ", ".join(source.name for source in self.job.sources[:3])
            message = f"no text in {names} ({str(self._skipped()) or 'no documents'})"
            raise DataError("D024", message, "give other sources")
        if self._val_tokens >= tokens:
            message = f"val_tokens = {self._val_tokens:,} leaves nothing to train on: there are {tokens:,} tokens"
            raise DataError("D025", message, f"--val-tokens {tokens // 20}")

    def _source_entries(self) -> tuple[SourceEntry, ...]:
        entries = []
        for index, source in enumerate(self.job.sources):
            state = self._states.get(index)
            if state:
                entries.append(SourceEntry(name=source.name, **asdict(state)))
            else:
                entries.append(SourceEntry(name=source.name, size=source.size, documents=0, bytes=0))
        return tuple(entries)

    def _skipped(self) -> Skipped:
        total = Skipped()
        for cursor in self._cursors:
            total.add(cursor.skipped)
        return total


def open_splitter(
    job: Job,
    encoder: Encoder,
    staging: StagingDir,
    val_tokens: int,
    candidate_fraction: float,
    progress: str | None = None,
) -> _loader.Splitter:
    """Opens the splitter that writes the shards of `job`, from the start or from `progress` on."""
    settings = job.settings
    return _loader.Splitter(
        staging.folder,
        encoder.dtype.name,
        shard_tokens=settings.shard_tokens,
        end_of_text=encoder.tokenizer.eot if job.eot else None,
        val_tokens=val_tokens,
        candidate_fraction=candidate_fraction,
        max_tokens=settings.tokens or None,
        headerless=settings.layout == "nanogpt",
        clusters=job.clusters,
        progress=progress,
    )


def _cursor_from_json(values: dict[str, Any]) -> Cursor:
    return Cursor(**values | {"skipped": Skipped(**values["skipped"])})


def _check_unchanged(source: Source, state: SourceState) -> None:
    if source.size != state.size or sources.checksum(source) != state.xxh3_128:
        message = f"{source.name} changed since the preparation was interrupted"
        raise DataError("D026", message, "restore it, or start from scratch with --restart")
