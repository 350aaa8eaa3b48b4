"""A corpus of one text: its beginning becomes the training split and its end the validation split, as in nanoGPT."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from jaxgpt import _loader
from jaxgpt.data.dataset import translate_loader_errors
from jaxgpt.data.manifest import SourceEntry
from jaxgpt.prepare import sources
from jaxgpt.prepare.encoder import EncodedBatch, Encoder
from jaxgpt.prepare.estimate import MAX_BYTES_PER_TOKEN, check_val_tokens
from jaxgpt.prepare.ingest import IngestResult, Job, open_splitter
from jaxgpt.prepare.sources import Skipped
from jaxgpt.prepare.sources.base import FileGuard
from jaxgpt.prepare.staging import StagingDir, check_disk_space
from jaxgpt.utils.progress import ProgressReporter

TRAIN_FRACTION = 0.9  # of the characters, as in nanoGPT
MIN_CHARACTERS = 1000  # of a text that is cut without being asked for
SAMPLE_CHARACTERS = 1_000_000
ALL_TOKENS = 1 << 62


@dataclass(frozen=True)
class SingleDocument:
    """The only document of a corpus. `skipped` counts repairs made while reading it; `xxh3_128` is its file's hash."""

    text: str
    skipped: Skipped
    xxh3_128: str

    def train_text(self, val_tokens: int | None) -> str:
        """The text that is certainly for training, before its tokens are known."""
        if val_tokens is None:
            return self.text[: int(TRAIN_FRACTION * len(self.text))]
        return self.text[: max(len(self.text) - MAX_BYTES_PER_TOKEN * val_tokens, len(self.text) // 2)]


def find_single_document(job: Job) -> SingleDocument | None:
    """The document to cut: that of a text file which is the only source. None if no validation split is wanted."""
    source = job.sources[0]
    if job.settings.val_tokens == 0 or len(job.sources) > 1 or source.kind != "text":
        return None
    skipped = Skipped()
    texts: list[str] = []
    with FileGuard.watch(source.local(), source.name):
        for batch in sources.read(source):
            texts += [str(text) for text in islice(batch.texts, 2)]
            skipped.add(batch.skipped)
            if len(texts) > 1:
                return None
        is_too_short = job.settings.val_tokens is None and sum(map(len, texts)) < MIN_CHARACTERS
        if not texts or is_too_short:
            return None
        return SingleDocument(texts[0], skipped, sources.checksum(source))


def find_cut(text: str, val_tokens: int | None, encoder: Encoder) -> int:
    """The number of characters for training, so that validation has about `val_tokens` tokens, or a tenth of the text.

    Raises `DataError` D025 if that leaves too little to train on.
    """
    if val_tokens is None:
        return int(TRAIN_FRACTION * len(text))
    sample = text[-SAMPLE_CHARACTERS:]
    characters_per_token = len(sample) / max(len(encoder.tokenizer.encode(sample)), 1)
    tokens = len(text) / characters_per_token
    check_val_tokens(tokens, 1, val_tokens, can_cut=True)
    return len(text) - round(val_tokens * characters_per_token)


def ingest_cut(
    job: Job, document: SingleDocument, encoder: Encoder, out: Path, staging: StagingDir, progress: ProgressReporter
) -> IngestResult:
    """Writes the two parts of `document`. Raises `DataError` D025, D026 or D040, or `StorageError` S011."""
    source = job.sources[0]
    encoder.load()
    start = time.monotonic()
    progress.start_stage("encoding")
    cut = find_cut(document.text, job.settings.val_tokens, encoder)
    parts = [
        encoder.encode(pa.array([text], pa.large_string()), source.name)
        for text in (document.text[:cut], document.text[cut:])
    ]
    tokens = sum(int(part.tokens.sum()) for part in parts)
    check_disk_space(staging.folder, out, tokens * encoder.dtype.itemsize)
    splits = _write(job, encoder, parts, staging)
    entry = SourceEntry(
        name=source.name,
        size=source.size,
        documents=1,
        bytes=sum(int(part.sizes.sum()) for part in parts),
        tokens=sum(split.tokens for split in splits.values()),
        xxh3_128=document.xxh3_128,
    )
    speed = tokens / (time.monotonic() - start)
    return IngestResult(encoder.dtype, splits, (entry,), document.skipped, speed, cut)


def _write(
    job: Job, encoder: Encoder, parts: Sequence[EncodedBatch], staging: StagingDir
) -> dict[str, _loader.WrittenSplit]:
    """Writes the first part to train and the second one to validation.

    The first splitter sets no document aside for validation, the second one all of them.
    """
    train_part, val_part = parts
    with translate_loader_errors():
        with open_splitter(job, encoder, staging, ALL_TOKENS, 0.0) as splitter:
            splitter.add(train_part.encoded, 0, 1)
            progress = splitter.sync()
        with open_splitter(job, encoder, staging, ALL_TOKENS, 1.0, progress) as splitter:
            splitter.add(val_part.encoded, 0, 1)
            train, val = splitter.finish()
    assert val is not None
    return {"train": train, "val": val}
