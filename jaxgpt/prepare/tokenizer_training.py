"""Trains a new tokenizer on a sample of a corpus, without the documents that may become validation."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from jaxgpt import _loader
from jaxgpt.data import tokenizer
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.prepare import sources
from jaxgpt.prepare.encoder import utf8_buffers
from jaxgpt.prepare.estimate import MAX_BYTES_PER_TOKEN, CorpusEstimate
from jaxgpt.prepare.ingest import Job
from jaxgpt.utils.progress import ProgressReporter

SAMPLE_BYTES = 256_000_000  # text to train on, at most


def train_tokenizer(job: Job, corpus: CorpusEstimate, progress: ProgressReporter) -> Tokenizer:
    """Trains a tokenizer of the size that `job` asks for.

    Validation takes the documents with the lowest keys. How many bytes of text that will be is known only once the
    tokenizer exists, so this leaves out `MAX_BYTES_PER_TOKEN` for each of its tokens, which is enough.
    """
    first = min(corpus.key_fraction(MAX_BYTES_PER_TOKEN * job.settings.val_tokens), 0.5)
    last = first + SAMPLE_BYTES / max(corpus.bytes, 1)
    progress.start_stage("training a tokenizer")

    def texts() -> Iterator[str]:
        for source in job.sources:
            for batch in sources.read(source, job.settings.text_column):
                for text in select_by_key(batch.texts, first, last):
                    progress.advance(1, len(text))
                    yield text

    return tokenizer.train(texts(), job.settings.train_tokenizer)


def select_by_key(texts: pa.LargeStringArray, first: float, last: float) -> list[str]:
    """The texts whose keys are in this range, in fractions of all keys (0 to 1)."""
    ends, data = utf8_buffers(texts)
    keys = np.frombuffer(_loader.text_keys(data.data, ends.data), ">u8")[::2] / 2.0**64
    return [str(texts[int(index)]) for index in np.flatnonzero((first <= keys) & (keys < last))]
