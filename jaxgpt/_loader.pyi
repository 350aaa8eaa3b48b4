"""Token shards, their order, and a bounded ring of prefetched batches (the Rust crate in `rust_loader/`).

A run reads its data through three kinds of objects: a `Dataset` of token files, a `Loader` over it, and the `Lease`s
that the loader returns, each with the block of tokens of one step. A batch is a pure function of (seed, step, data), so
one integer is enough to resume. Invalid arguments raise `ValueError`; all other errors are `LoaderError`s. Members
without a docstring here are described in Rust: `help(jaxgpt._loader)`.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Self, final

from typing_extensions import Buffer

from jaxgpt.errors import JaxgptError

__all__ = [
    "Audit",
    "AuditError",
    "ChecksumError",
    "ClusterMap",
    "CorpusTooShortError",
    "Dataset",
    "EncodedDocuments",
    "Lease",
    "Loader",
    "LoaderError",
    "MixedDtypeError",
    "NotAFileError",
    "NotAShardError",
    "ShardChangedError",
    "ShardIoError",
    "ShardSizeError",
    "ShardWriter",
    "SlotsExhaustedError",
    "SplitWriter",
    "Splitter",
    "TokenCountError",
    "TokenRangeError",
    "WorkerError",
    "WriterError",
    "WrittenShard",
    "WrittenSplit",
    "__version__",
    "audit",
    "document_key",
    "gpt2_merges",
    "gpt2_model_json",
    "gpt2_vocabulary",
    "hash_bytes",
    "hash_file",
    "sample_starts",
    "text_keys",
]

__version__: str

class LoaderError(JaxgptError):
    """An error of the loader, with its `code`, `message` and `help`."""

class NotAShardError(LoaderError): ...
class ShardSizeError(LoaderError): ...
class TokenCountError(LoaderError): ...
class MixedDtypeError(LoaderError): ...
class TokenRangeError(LoaderError): ...
class ChecksumError(LoaderError): ...
class CorpusTooShortError(LoaderError): ...
class NotAFileError(LoaderError): ...
class ShardIoError(LoaderError): ...
class ShardChangedError(LoaderError): ...
class WriterError(LoaderError): ...
class AuditError(LoaderError): ...
class SlotsExhaustedError(LoaderError): ...
class WorkerError(LoaderError): ...

@final
class Dataset:
    """Token files, in the order given, read as one stream of tokens. They stay open and are never memory-mapped.

    A file is a token shard of llm.c and modded-nanogpt, or has uint16 tokens without a header, as nanoGPT writes them.
    `headerless` says which: True, False, or None for headerless if it is named `train.bin` or `val.bin` and has no
    header.
    """

    def __new__(cls, paths: Sequence[str | os.PathLike[str]], *, headerless: bool | None = None) -> Self: ...
    @property
    def tokens(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shards(self) -> list[tuple[str, int]]: ...
    def windows(self, block: int) -> int:
        """The number of windows of `block + 1` tokens in an epoch. `CorpusTooShortError` without a single one."""

    def read(self, start: int, count: int) -> bytes: ...
    def verify(
        self,
        vocab_size: int | None = None,
        checksums: Sequence[str] | None = None,
        threads: int = 2,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[str]:
        """Reads every byte once, and returns the xxh3-128 of every file in hexadecimal.

        `ChecksumError` if one differs from `checksums`, `TokenRangeError` if an id is not less than `vocab_size`.
        `progress(bytes_done, bytes_total)` is called several times a second.
        """

@final
class Loader:
    """Iterates over the blocks of a run. A block is one step: `[accum, micro_batch / world, block + 1]` tokens.

    Threads read ahead into a ring of `slots` page-aligned buffers. Each block occupies a buffer, which is reused when
    the block's `Lease` and all views of it are gone. If all buffers stay in use for `lease_timeout` seconds, the next
    block raises `SlotsExhaustedError`. `order` is "epoch" (a new shuffle in every epoch, each window once), "random"
    (nanoGPT's sampling with replacement) or "sequential". `micro_batch` counts the sequences of all `world` processes;
    process number `rank` gets an equal number of them. With `vocab_size`, ids outside it raise `TokenRangeError`.
    """

    def __new__(
        cls,
        dataset: Dataset,
        *,
        block: int,
        micro_batch: int,
        accum: int = 1,
        order: str = "epoch",
        seed: int = 0,
        start_step: int = 0,
        stop_step: int | None = None,
        slots: int = 4,
        threads: int = 1,
        rank: int = 0,
        world: int = 1,
        vocab_size: int | None = None,
        lease_timeout: float = 60.0,
    ) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Lease:
        """The block of step `step`. The error of a step is raised after all earlier steps, and by every later call."""

    @property
    def step(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def dtype(self) -> str: ...
    def buffers(self) -> list[tuple[int, int]]:
        """The address and length of every slot: page-aligned and constant until `close`.

        Buffers that are registered with a device (`client.dma_map`) must be unregistered before `close`.
        """

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class Lease:
    """One block on loan. `numpy.asarray(lease)` is a read-only view. The slot is free when no view is left."""

    @property
    def step(self) -> int: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

@final
class ShardWriter:
    """Writes a token shard that appears completely or not at all: to `.NAME.tmp` beside it, renamed by `finish`.

    If it is dropped (or its `with` block ends) before that, it removes what it wrote. `dtype` is "uint16" or "uint32".
    """

    def __new__(cls, path: str | os.PathLike[str], dtype: str = "uint16", *, overwrite: bool = False) -> Self: ...
    def append(self, tokens: Buffer) -> None: ...
    @property
    def tokens(self) -> int: ...
    @property
    def max_token(self) -> int | None: ...
    def finish(self) -> WrittenShard: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class EncodedDocuments:
    """A batch of documents: texts (uint8, UTF-8) and ids (uint32), each one after another.

    `text_offsets` and `id_offsets` (int64) are the offsets at which documents begin, and the end of the last one.
    """

    def __new__(cls, texts: Buffer, text_offsets: Buffer, ids: Buffer, id_offsets: Buffer) -> Self: ...
    def __len__(self) -> int:
        """The number of documents."""

@final
class Splitter:
    """Puts encoded documents into the shards of train and val. It can continue an interrupted splitter.

    Validation takes the documents with the lowest `text_keys` until it has `val_tokens` tokens. Only documents whose
    keys are in the first `candidate_fraction` of all keys are candidates; they are held out on disk until `finish`. The
    document that reaches `max_tokens` tokens in total is the last one. Near-duplicates in `clusters`, the file of an
    audit, go to the same split. `headerless` writes nanoGPT's `train.bin` and `val.bin`. `progress` is what `sync` of
    an earlier splitter returned; what that splitter wrote afterwards is discarded.
    """

    def __new__(
        cls,
        folder: str | os.PathLike[str],
        dtype: str,
        *,
        shard_tokens: int,
        end_of_text: int | None = None,
        val_tokens: int = 0,
        candidate_fraction: float = 0.0,
        max_tokens: int | None = None,
        headerless: bool = False,
        clusters: str | os.PathLike[str] | None = None,
        progress: str | None = None,
    ) -> Self: ...
    def add(self, batch: EncodedDocuments, first: int, last: int) -> int:
        """Adds documents `first` to `last` (exclusive) until `max_tokens` is reached; returns the number added."""

    @property
    def totals(self) -> tuple[int, int, int]: ...
    @property
    def is_full(self) -> bool: ...
    def sync(self) -> str: ...
    def finish(self) -> tuple[WrittenSplit, WrittenSplit | None]: ...
    def close(self) -> None:
        """Closes the unfinished files. They stay on disk, so that another splitter can continue."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class SplitWriter:
    """Writes the documents of one split, one after another, into shards `NAME_000000.bin` and so on.

    Each shard has `shard_tokens` tokens, except for the last one. A document may continue in the next shard.
    Unfinished files stay on disk.
    """

    def __new__(
        cls,
        folder: str | os.PathLike[str],
        name: str,
        dtype: str,
        *,
        shard_tokens: int,
        end_of_text: int | None = None,
    ) -> Self: ...
    def add(self, text_bytes: int, tokens: Buffer) -> None: ...
    def finish(self) -> WrittenSplit: ...

@final
class WrittenShard:
    """The properties of a finished shard, for the manifest."""

    @property
    def path(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def max_token(self) -> int | None: ...
    @property
    def xxh3_128(self) -> str: ...

@final
class WrittenSplit:
    """The properties of a finished split, for the manifest."""

    @property
    def documents(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def shards(self) -> list[WrittenShard]: ...

def text_keys(texts: Buffer, text_offsets: Buffer) -> bytes:
    """The keys of texts, 16 bytes each: xxh3-128, big-endian. They decide which documents become validation data."""

@final
class Audit:
    """The result of an audit. Documents are numbered through train, then val; the splits are 0 and 1."""

    @property
    def report(self) -> str: ...
    def counts(self, split: int) -> bytes:
        """The number of occurrences of each id of the vocabulary in a split, as little-endian uint64."""

    def documents(self, split: int) -> bytes:
        """The range of each document of a split without end-of-text, as pairs of little-endian uint64."""

    def kept(self) -> bytes:
        """For each document, the one that is kept of its cluster, as little-endian uint32."""

    def write_clusters(self, path: str | os.PathLike[str]) -> str:
        """Writes the near-duplicate clusters atomically, and returns the file's xxh3-128 in hexadecimal."""

@final
class ClusterMap:
    """The near-duplicate clusters of an audit, read from its file. `AuditError` D028 if it is malformed."""

    def __new__(cls, path: str | os.PathLike[str]) -> Self: ...
    def __len__(self) -> int: ...
    def representative(self, key: bytes) -> bytes | None:
        """The key of the document that represents the cluster of this one; None if it has no near-duplicates."""

def audit(
    train: Dataset,
    val: Dataset | None,
    *,
    vocab_size: int,
    folder: str | os.PathLike[str],
    eot: int | None = None,
    placement: str = "auto",
    threads: int = 2,
    progress: Callable[[str, int, int, int, int], object] | None = None,
) -> Audit:
    """Audits token shards: duplicates, validation documents in train, statistics of documents and ids.

    Token `eot` separates documents: it follows ("appended") or precedes ("prepended") each; "auto" decides by the first
    and the last token. An unnamed temporary file in `folder` takes 328 bytes per document.
    `progress(stage, documents, tokens, bytes, bytes_total)` is called several times a second.
    """

def document_key(tokens: bytes, dtype: str) -> bytes:
    """xxh3-128 of a document's tokens, given as the little-endian bytes of a shard: its key in a `ClusterMap`."""

def sample_starts(tokens: int, block: int, order: str, seed: int, first: int, count: int) -> list[int]: ...
def gpt2_vocabulary() -> list[bytes]: ...
def gpt2_merges() -> list[tuple[bytes, bytes]]: ...
def gpt2_model_json() -> str:
    """The "vocab" and "merges" of GPT-2's `tokenizer.json`, with a comma between them."""

def hash_file(path: str | os.PathLike[str]) -> str:
    """The xxh3-128 of the file at `path`, in hexadecimal.

    `NotAFileError`, `ShardIoError`, or `ShardChangedError` if somebody wrote to the file in the meantime.
    """

def hash_bytes(data: bytes) -> str: ...
