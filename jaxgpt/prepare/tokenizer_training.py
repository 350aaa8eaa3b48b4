"""A new tokenizer from a fair sample of a corpus, which leaves out whatever may become validation."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from jaxgpt import _loader
from jaxgpt.data import tokenizer
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.prepare import sources
from jaxgpt.prepare.encoder import buffers
from jaxgpt.prepare.estimate import MOST_BYTES_PER_TOKEN, Survey
from jaxgpt.prepare.ingest import Job
from jaxgpt.utils.progress import ProgressReporter

TRAINING_BYTES = 256_000_000  # text that a new tokenizer learns from, at most


def learn(job: Job, found: Survey, meter: ProgressReporter) -> Tokenizer:
    """A tokenizer of the size that is asked for.

    Validation takes the documents of lowest keys. How many bytes of text that will be is known only with the tokenizer:
    8 per token is more than any reaches on prose or code, so leaving out that much is enough.
    """
    held = MOST_BYTES_PER_TOKEN * job.settings.val_tokens
    first = min(found.share(held), 0.5)
    last = first + TRAINING_BYTES / max(found.bytes, 1)
    meter.begin("training a tokenizer")

    def texts() -> Iterator[str]:
        for source in job.sources:
            for batch in sources.read(source, job.settings.text_column):
                for text in chosen(batch.texts, first, last):
                    meter.advance(1, len(text))
                    yield text

    return tokenizer.train(texts(), job.settings.train_tokenizer)


def chosen(texts: pa.LargeStringArray, first: float, last: float) -> list[str]:
    """The texts whose keys are in that range of all keys, as shares from 0 to 1."""
    ends, data = buffers(texts)
    keys = np.frombuffer(_loader.text_keys(data.data, ends.data), ">u8")[::2] / 2.0**64
    return [str(texts[int(index)]) for index in np.flatnonzero((first <= keys) & (keys < last))]
