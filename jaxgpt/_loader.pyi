"""Token shards, their order, and a bounded ring of prefetched batches (the Rust crate in `rust_loader/`).

A run's data is three objects: a `Dataset` of token files, a `Loader` over it, and the `Lease`s it hands out, each one
step's block of tokens. A batch is a pure function of (seed, step, data): resuming needs one integer.
Bad arguments raise `ValueError`; everything else that goes wrong raises a `LoaderError`.
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
    "Encoded",
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
    """The loader cannot go on: `code`, `message`, `help`."""

class NotAShardError(LoaderError):
    """The file is something else (D003)."""

class ShardSizeError(LoaderError):
    """The file's length does not fit its header (D007)."""

class TokenCountError(LoaderError):
    """The header holds an impossible token count (D008)."""

class MixedDtypeError(LoaderError):
    """The shards of one dataset differ in their token type (D009)."""

class TokenRangeError(LoaderError):
    """A token that the vocabulary does not have (D010)."""

class ChecksumError(LoaderError):
    """The file is not the one that the manifest describes (D011)."""

class CorpusTooShortError(LoaderError):
    """The data is shorter than one sequence (D013)."""

class NotAFileError(LoaderError):
    """A folder, FIFO, device or socket (D015)."""

class ShardIoError(LoaderError):
    """The file cannot be opened or read (D016)."""

class ShardChangedError(LoaderError):
    """The file is no longer what was opened (D017)."""

class WriterError(LoaderError):
    """A shard cannot be written (S003), exists (S004) or is full (S014)."""

class AuditError(LoaderError):
    """The audit cannot be made: a file of clusters that is none (D028), too many documents (D030), no room for the
    temporary file (S015).
    """

class SlotsExhaustedError(LoaderError):
    """Every slot is lent out (S006), or there is no memory for them (S007)."""

class WorkerError(LoaderError):
    """The loader's threads failed (S008) or did not survive a fork (S010)."""

@final
class Dataset:
    """Token files, in the order given, seen as one stream of tokens. They stay open, and are read but never mapped.

    A file is a token shard of llm.c and modded-nanogpt, or plain uint16 tokens as nanoGPT writes them. `headerless`
    says which: True, False, or None: plain if it is named `train.bin` or `val.bin` and has no header.
    """

    def __new__(cls, paths: Sequence[str | os.PathLike[str]], *, headerless: bool | None = None) -> Self: ...
    @property
    def tokens(self) -> int:
        """How many tokens all files hold together."""

    @property
    def dtype(self) -> str:
        """ "uint16" or "uint32"."""

    @property
    def shards(self) -> list[tuple[str, int]]:
        """Path and number of tokens of every file."""

    def windows(self, block: int) -> int:
        """How many windows of `block + 1` tokens an epoch has. `CorpusTooShortError` if there is none."""

    def read(self, start: int, count: int) -> bytes:
        """A copy of `count` tokens from the index `start` on, as little-endian bytes."""

    def verify(
        self,
        vocab_size: int | None = None,
        checksums: Sequence[str] | None = None,
        threads: int = 2,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[str]:
        """Reads every byte once, and returns the xxh3-128 of every file in hexadecimal.

        `ChecksumError` if one differs from `checksums`, `TokenRangeError` if an id is not below `vocab_size`.
        `progress(bytes done, bytes in all)` is called several times a second.
        """

@final
class Loader:
    """Iterates over the blocks of a run, each one step `[accum, micro_batch / world, block + 1]`.

    Threads read ahead into a ring of `slots` page-aligned buffers. A buffer is lent out with each block, and used again
    when that block's `Lease` and all views of it are gone; if all stay lent for `lease_timeout` seconds,
    `SlotsExhaustedError` is raised. `order` is "epoch" (a fresh shuffle per epoch, each window once), "random"
    (nanoGPT's sampling with replacement) or "sequential". `micro_batch` counts the sequences of all `world`
    processes, of which this one (`rank`) gets its part. With `vocab_size`, ids outside it raise `TokenRangeError`.
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
        """The block of step `step`. An error is raised at the turn of its step, and again on every later call."""

    @property
    def step(self) -> int:
        """The step of the next block."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of every block."""

    @property
    def dtype(self) -> str:
        """ "uint16" or "uint32"."""

    def buffers(self) -> list[tuple[int, int]]:
        """Address and length of every slot: page-aligned, and the same until `close`.

        Who registers them with a device (`client.dma_map`) must unregister them before `close`.
        """

    def close(self) -> None:
        """Stops the threads and waits for them. Blocks that are still in use stay valid."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class Lease:
    """One block on loan. `numpy.asarray(lease)` is a read-only view; the slot is free again when no view is left."""

    @property
    def step(self) -> int:
        """The step whose block this is."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """numpy's description of the memory; an array made from it keeps the lease as its base."""

@final
class ShardWriter:
    """Writes a token shard that is there completely or not at all: to `.NAME.tmp` beside it, renamed by `finish`.

    Dropped before that (or left as a context manager), it removes what it wrote. `dtype` is "uint16" or "uint32".
    """

    def __new__(cls, path: str | os.PathLike[str], dtype: str = "uint16", *, overwrite: bool = False) -> Self: ...
    def append(self, tokens: Buffer) -> None:
        """Appends tokens: a contiguous array of the shard's type, or its little-endian bytes."""

    @property
    def tokens(self) -> int:
        """How many tokens were appended so far."""

    @property
    def max_token(self) -> int | None:
        """The largest token so far."""

    def finish(self) -> WrittenShard:
        """Gives the shard its header and its name, and describes it."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class Encoded:
    """A batch of documents: texts (uint8, UTF-8) and ids (uint32), each one after another.

    `text_ends` and `id_ends` (int64) hold where each document begins, and where the last one ends.
    """

    def __new__(cls, texts: Buffer, text_ends: Buffer, ids: Buffer, id_ends: Buffer) -> Self: ...
    def __len__(self) -> int:
        """How many documents there are."""

@final
class Splitter:
    """Puts encoded documents into the shards of train and val, and goes on where an earlier one was interrupted.

    Validation takes the documents whose `text_keys` are lowest until it has `val_tokens` tokens; only those in the
    first share `limit` of all keys are considered (and held aside until the end). The document that reaches `budget`
    tokens in all is the last one. Near-duplicates in `clusters`, the file of an audit, fall on the same side. `plain`
    writes nanoGPT's headerless `train.bin` and `val.bin`. `progress` is what
    `sync` of an earlier splitter returned; whatever that one wrote after it is forgotten.
    """

    def __new__(
        cls,
        folder: str | os.PathLike[str],
        dtype: str,
        *,
        shard_tokens: int,
        end_of_text: int | None = None,
        val_tokens: int = 0,
        limit: float = 0.0,
        budget: int | None = None,
        plain: bool = False,
        clusters: str | os.PathLike[str] | None = None,
        progress: str | None = None,
    ) -> Self: ...
    def add(self, batch: Encoded, first: int, last: int) -> int:
        """Adds documents `first` to `last` (exclusive) of a batch; returns how many the budget allowed."""

    @property
    def taken(self) -> tuple[int, int, int]:
        """Documents, bytes of text and tokens so far."""

    @property
    def full(self) -> bool:
        """Whether the budget is used up."""

    def sync(self) -> str:
        """Brings everything to the disk; the text returned is what a later splitter goes on from."""

    def finish(self) -> tuple[WrittenSplit, WrittenSplit | None]:
        """Finishes all shards; train, and val if there is one."""

    def close(self) -> None:
        """Lets go of the unfinished files, which stay: from here on another splitter may go on with them."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class WrittenShard:
    """What a finished shard holds, for the manifest."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def tokens(self) -> int:
        """Tokens in the file."""

    @property
    def bytes(self) -> int:
        """Bytes of the file."""

    @property
    def max_token(self) -> int | None:
        """The largest token, or None in an empty shard."""

    @property
    def xxh3_128(self) -> str:
        """xxh3-128 of the whole file in hexadecimal."""

@final
class WrittenSplit:
    """What a finished split holds, for the manifest."""

    @property
    def documents(self) -> int:
        """Documents."""

    @property
    def bytes(self) -> int:
        """Bytes of their text."""

    @property
    def tokens(self) -> int:
        """Tokens, end-of-text ones included."""

    @property
    def shards(self) -> list[WrittenShard]:
        """The files."""

def text_keys(texts: Buffer, text_ends: Buffer) -> bytes:
    """The keys of texts, 16 bytes each: xxh3-128, big-endian. They decide on which side of a split a document falls."""

@final
class Audit:
    """What an audit found. Documents are numbered through train, then val; the splits are 0 and 1."""

    @property
    def report(self) -> str:
        """The report as JSON (docs/audit.md)."""

    def counts(self, split: int) -> bytes:
        """How often each id of the vocabulary occurs in a split, as little-endian uint64."""

    def documents(self, split: int) -> bytes:
        """Where each document of a split begins and ends, without end-of-text, as pairs of little-endian uint64."""

    def kept(self) -> bytes:
        """For each document the one that is kept of its cluster, as little-endian uint32."""

    def write_clusters(self, path: str | os.PathLike[str]) -> str:
        """Writes the near-duplicate clusters in one piece, and returns the file's xxh3-128 in hexadecimal."""

@final
class ClusterMap:
    """The near-duplicate clusters of an audit, from its file. `AuditError` D028 if it is none."""

    def __new__(cls, path: str | os.PathLike[str]) -> Self: ...
    def __len__(self) -> int: ...
    def representative(self, key: bytes) -> bytes | None:
        """The key of the document that stands for the cluster of the one with this key; None if it is in none."""

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
    """Audits token shards: duplicates, validation in train, documents and ids.

    Documents lie between tokens `eot`, which stand behind ("appended") or in front of ("prepended") each; "auto" looks
    at the first and the last token. A nameless temporary file in `folder` takes 328 bytes per document.
    `progress(stage, documents, tokens, bytes, bytes in all)` is called several times a second.
    """

def document_key(tokens: bytes, dtype: str) -> bytes:
    """xxh3-128 of a document's tokens, given as the little-endian bytes of a shard: its key in a `ClusterMap`."""

def sample_starts(tokens: int, block: int, order: str, seed: int, first: int, count: int) -> list[int]:
    """The token at which each of `count` samples starts, from the sample numbered `first` on: the order contract."""

def gpt2_vocabulary() -> list[bytes]:
    """The bytes of GPT-2's tokens 0 to 50255, without the end-of-text token."""

def gpt2_merges() -> list[tuple[bytes, bytes]]:
    """GPT-2's 50,000 merges, the first to apply in front."""

def gpt2_model_json() -> str:
    """The "vocab" and "merges" of GPT-2's `tokenizer.json`, with a comma between them."""

def hash_file(path: str | os.PathLike[str]) -> str:
    """The xxh3-128 of the file at `path`, in hexadecimal.

    `NotAFileError`, `ShardIoError`, or `ShardChangedError` if the file was written to meanwhile.
    """

def hash_bytes(data: bytes) -> str:
    """The xxh3-128 of `data`, in hexadecimal."""
