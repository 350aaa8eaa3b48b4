"""Makes a new tokenizer from a corpus: BPE from a sample without validation documents, or all of its characters."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from jaxgpt import _loader
from jaxgpt.data import tokenizer
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.prepare import sources
from jaxgpt.prepare.cut import SingleDocument
from jaxgpt.prepare.encoder import utf8_buffers
from jaxgpt.prepare.estimate import MAX_BYTES_PER_TOKEN, CorpusEstimate
from jaxgpt.prepare.ingest import Job
from jaxgpt.utils.progress import ProgressReporter

SAMPLE_BYTES = 256_000_000  # text to train on, at most


def make_tokenizer(
    job: Job, corpus: CorpusEstimate, document: SingleDocument | None, progress: ProgressReporter
) -> Tokenizer:
    """Makes the tokenizer that `job` asks for, from its only `document` or from all of its sources."""
    settings = job.settings
    progress.start_stage("making a tokenizer")
    if settings.tokenizer == tokenizer.CHAR:
        return tokenizer.from_characters([document.text] if document else _read_texts(job, 0.0, 1.0, progress))
    if document:
        return tokenizer.train([document.train_text(settings.val_tokens)], settings.train_tokenizer)
    return tokenizer.train(_sample_texts(job, corpus, progress), settings.train_tokenizer)


def _sample_texts(job: Job, corpus: CorpusEstimate, progress: ProgressReporter) -> Iterator[str]:
    """Yields texts that are not for validation.

    Validation takes the documents with the lowest keys. How many bytes of text that will be is known only once the
    tokenizer exists, so this leaves out `MAX_BYTES_PER_TOKEN` for each of its tokens, which is enough.
    """
    first = min(corpus.key_fraction(MAX_BYTES_PER_TOKEN * (job.settings.val_tokens or 0)), 0.5)
    return _read_texts(job, first, first + SAMPLE_BYTES / max(corpus.bytes, 1), progress)


def _read_texts(job: Job, first: float, last: float, progress: ProgressReporter) -> Iterator[str]:
    """Yields the texts whose keys are in this range, in fractions of all keys (0 to 1)."""
    for source in job.sources:
        for batch in sources.read(source):
            for text in select_by_key(batch.texts, first, last):
                progress.advance(1, len(text))
                yield text


def select_by_key(texts: pa.LargeStringArray, first: float, last: float) -> list[str]:
    """The texts whose keys are in this range, in fractions of all keys (0 to 1)."""
    ends, data = utf8_buffers(texts)
    keys = np.frombuffer(_loader.text_keys(data.data, ends.data), ">u8")[::2] / 2.0**64
    return [str(texts[int(index)]) for index in np.flatnonzero((first <= keys) & (keys < last))]
