"""Folders of token shards: which files are for training and validation, which tokenizer made them, how to write them.

Three layouts are known: ours with a `manifest.json`, nanoGPT's headerless `train.bin` and `val.bin`, and the shards of
llm.c and modded-nanogpt (`*_train_*.bin`, `*_val_*.bin`, or just `*.bin`). A layout without a manifest does not say
which tokenizer made it; `TokenDataset.notes` says what was assumed. Nothing is unpickled, ever.
"""

import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxgpt import _loader
from jaxgpt.data import manifest, tokenizer
from jaxgpt.data.manifest import Manifest
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import ConfigError, DataError, JaxgptError, StorageError

Progress = Callable[[int, int], object]
ENTROPY_TOKENS = 50_000_000
WRITE_TOKENS = 1 << 20  # tokens that are written at a time
CHUNK = 1 << 22  # tokens


@dataclass(frozen=True)
class Split:
    """The token files of training or validation. `bytes` is the length of their text in UTF-8, None if unknown."""

    paths: tuple[Path, ...]
    shards: _loader.Dataset
    bytes: int | None = None
    checksums: tuple[str, ...] | None = None

    @property
    def tokens(self) -> int:
        return self.shards.tokens

    def windows(self, block: int) -> int:
        """How many windows of `block + 1` tokens an epoch has; `DataError` D013 if there is none."""
        with translate_loader_errors():
            return self.shards.windows(block)

    def ids(self, start: int, count: int) -> npt.NDArray[Any]:
        """A copy of `count` tokens from the index `start` on."""
        with translate_loader_errors():
            return np.frombuffer(self.shards.read(start, count), np.dtype(self.shards.dtype))


@dataclass(frozen=True)
class TokenDataset:
    """An opened folder. `vocab_size` is the tokenizer's; `fingerprint` is the same for the same tokens anywhere."""

    folder: Path
    train: Split
    val: Split | None
    tokenizer_name: str
    vocab_size: int
    fingerprint: str
    notes: tuple[str, ...] = ()
    tokenizer_file: Path | None = None
    manifest: Manifest | None = None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded at its first use. `DataError` D019 if it is not the one that made the tokens."""
        if self.tokenizer_file is None:
            return tokenizer.load(self.tokenizer_name)
        found = tokenizer.load(self.tokenizer_file)
        wanted = self.manifest and self.manifest.tokenizer.fingerprint
        if wanted and found.fingerprint != wanted:
            said = f"its sha256 is {found.fingerprint[:12]}…, the manifest says {wanted[:12]}…"
            raise DataError("D019", f"{self.tokenizer_file} is another tokenizer than the data's: {said}", AGAIN)
        found.name = self.tokenizer_name
        return found

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run compares, as plain JSON values."""
        return {
            "tokenizer": self.tokenizer.name,
            "tokenizer_sha256": self.tokenizer.fingerprint,
            "train_tokens": self.train.tokens,
            "val_tokens": self.val.tokens if self.val else 0,
            "tokens_sha256": self.fingerprint,
        }

    def verify(self, progress: Progress | None = None, threads: int = 2) -> None:
        """Reads every token: `DataError` D010 for an id outside the vocabulary, D011 for a changed file.

        D012 if a file of validation is also one of train: a loss on it would say nothing.
        """
        found: dict[str, Path] = {}
        for split in (self.train, self.val):
            if split is None:
                continue
            with translate_loader_errors():
                checksums = split.shards.verify(self.vocab_size, split.checksums, threads, progress)
            for (name, tokens), checksum in zip(split.shards.shards, checksums, strict=True):
                if split is self.val and tokens and checksum in found:
                    what = f"{name} of validation holds the same as {found[checksum]} of train"
                    raise DataError("D012", what, "split the documents: python -m jaxgpt.prepare … --val-tokens N")
                found.setdefault(checksum, Path(name))


AGAIN = "fetch or prepare the folder again"


@contextmanager
def translate_loader_errors() -> Iterator[None]:
    """Turns the loader's errors into `DataError` and `StorageError`, with the same code, message and help."""
    try:
        yield
    except _loader.LoaderError as error:
        kind: type[JaxgptError] = StorageError if error.code.startswith("S") else DataError
        raise kind(error.code, error.message, error.help) from error


def open_folder(path: str | Path) -> TokenDataset:
    """Opens the token shards in `path` and checks their lengths and headers, not yet their tokens.

    Raises `DataError` D002 if there are none, and D003 to D019 for what cannot be what it should be.
    """
    folder = Path(path)
    if (folder / manifest.FILE_NAME).exists():
        return _open_ours(folder, manifest.read_manifest(folder))
    if (folder / "train.bin").exists():
        return _open_nanogpt(folder)
    return _open_shards(folder)


def _nothing(folder: Path) -> DataError:
    """D002 with the command that would make the shards, from what lies in the folder if that is text."""
    is_folder = folder.is_dir()
    if folder.exists() and not is_folder:
        return DataError("D002", f"no token shards in '{folder}': it is a file", "name the folder that holds them")
    source, out = "SOURCE", str(folder)
    if is_folder and any(folder.glob("*.parquet")):
        source, out = f"'{folder}/*.parquet'", f"{out.rstrip('/')}-tokens"
    help = f"python -m jaxgpt.prepare {source} --out {out} --val-tokens 10e6"
    return DataError("D002", f"no token shards in '{folder}'", help)


def _open_ours(folder: Path, found: Manifest) -> TokenDataset:
    train = _open_split(folder, found, "train")
    return TokenDataset(
        folder=folder,
        train=train,
        val=_open_split(folder, found, "val") if "val" in found.splits else None,
        tokenizer_name=found.tokenizer.name,
        vocab_size=found.tokenizer.vocab_size,
        fingerprint=found.fingerprint,
        tokenizer_file=folder / found.tokenizer.file,
        manifest=found,
    )


def _open_split(folder: Path, found: Manifest, name: str) -> Split:
    """A split of the manifest, its files opened and compared with what it says of their lengths and type."""
    entry = found.splits[name]
    if not entry.shards:
        raise DataError("D002", f"no token shards in '{folder}' for {name}", AGAIN)
    split = _split([folder / shard.name for shard in entry.shards], found.settings.layout == "nanogpt")
    for (path, tokens), shard in zip(split.shards.shards, entry.shards, strict=True):
        if tokens != shard.tokens:
            raise DataError("D019", f"{path} holds {tokens:,} tokens, the manifest says {shard.tokens:,}", AGAIN)
    if split.shards.dtype != found.dtype:
        said = f"{split.shards.dtype} tokens, the manifest says {found.dtype}"
        raise DataError("D019", f"{split.paths[0]} holds {said}", AGAIN)
    checksums = tuple(shard.xxh3_128 for shard in entry.shards)
    return Split(split.paths, split.shards, entry.bytes, checksums)


def _open_nanogpt(folder: Path) -> TokenDataset:
    val = folder / "val.bin"
    notes = []
    if (folder / "meta.pkl").exists():
        notes.append(
            f"{folder}/meta.pkl is not read, since a pickle can run code: if the tokens are no GPT-2 tokens (nanoGPT's "
            "shakespeare_char), put their tokenizer.json beside them"
        )
    return _assumed(folder, _split([folder / "train.bin"]), _split([val]) if val.exists() else None, notes)


def _open_shards(folder: Path) -> TokenDataset:
    ours = ("audit-clusters.bin",)  # an audit's, beside the shards
    names = sorted(
        path.name for path in folder.glob("*.bin") if not path.name.startswith(".") and path.name not in ours
    )
    train = [name for name in names if re.search(r"(^|_)train_", name)]
    val = [name for name in names if re.search(r"(^|_)val_", name)]
    train = train or [name for name in names if name not in val and name != "val.bin"]
    if not train:
        raise _nothing(folder)
    splits = [_split([folder / name for name in part]) if part else None for part in (train, val)]
    unused = len(names) - len(train) - len(val)
    notes = [f"{unused} other .bin files in {folder} are not used"] if unused else []
    assert splits[0] is not None
    return _assumed(folder, splits[0], splits[1], notes)


def _assumed(folder: Path, train: Split, val: Split | None, notes: list[str]) -> TokenDataset:
    """TokenDataset without a manifest: its `tokenizer.json`, or GPT-2's tokenizer where the tokens can be GPT-2's."""
    own = folder / "tokenizer.json"
    name, size = "gpt2", tokenizer.GPT2_SIZE
    if own.is_file():
        found = tokenizer.load(own)
        name, size = found.name, found.vocab_size
    elif train.shards.dtype != "uint16":
        help = "put the tokenizer.json that made them beside them"
        raise DataError("D019", f"'{folder}' holds uint32 tokens and does not say which tokenizer made them", help)
    else:
        notes.append(f"{folder} does not name its tokenizer: gpt2 is assumed")
    return TokenDataset(
        folder=folder,
        train=train,
        val=val,
        tokenizer_name=name,
        vocab_size=size,
        fingerprint=_sample_fingerprint([train, val]),
        notes=tuple(notes),
        tokenizer_file=own if own.is_file() else None,
    )


def _split(paths: Sequence[Path], headerless: bool | None = None) -> Split:
    with translate_loader_errors():
        return Split(tuple(paths), _loader.Dataset(paths, headerless=headerless))


def _sample_fingerprint(splits: Sequence[Split | None]) -> str:
    """sha256 of each file's length and of its first, middle and last tokens: tells apart data that has no checksums."""
    digest = hashlib.sha256()
    for split in splits:
        start = 0
        for _, tokens in split.shards.shards if split else []:
            digest.update(f"{tokens};".encode())
            size = min(tokens, 4096)
            for place in (0, (tokens - size) // 2, tokens - size):
                digest.update(split.ids(start + place, size).tobytes() if split else b"")
            start += tokens
        digest.update(b"|")
    return digest.hexdigest()


def check_vocabulary(rows: int, data: TokenDataset) -> None:
    """Raises `ConfigError` C018 if a model of `rows` ids cannot hold those of the data's tokenizer."""
    if rows < data.vocab_size:
        raise ConfigError(
            "C018",
            f"model.vocab_size {rows} is smaller than the tokenizer's {data.vocab_size}",
            f"--model.vocab-size {math.ceil(data.vocab_size / 128) * 128}",
        )


def unigram_entropy(split: Split, vocab_size: int, limit: int = ENTROPY_TOKENS) -> float:
    """Nats per token of the best guess that ignores context: where a loss stalls that has learned only frequencies.

    Exact over the first `limit` tokens. Times tokens / bytes / ln 2, it is in bits per byte.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    total = min(limit, split.tokens)
    for start in range(0, total, CHUNK):
        ids = split.ids(start, min(CHUNK, total - start))
        found = np.bincount(ids, minlength=vocab_size)
        if len(found) > vocab_size:
            place = int(np.argmax(ids >= vocab_size))
            said = f"token {ids[place]} at position {start + place:,}; the tokenizer's vocabulary is {vocab_size}"
            raise DataError("D010", said, "the data was made with another tokenizer, or the file is damaged")
        counts += found
    share = counts[counts > 0] / max(total, 1)
    return float(-(share * np.log(share)).sum())


class SplitWriter:
    """The shards of one split, written one after another; a document may continue in the next."""

    def __init__(self, folder: Path, name: str, dtype: "np.dtype[Any]", eot: int | None, shard_tokens: int) -> None:
        self._folder, self._name, self._dtype, self._shard_tokens = folder, name, dtype, shard_tokens
        self._end = np.array([] if eot is None else [eot], dtype)
        self._writer: _loader.ShardWriter | None = None
        self._pending: list[npt.NDArray[Any]] = []
        self._pending_tokens = self._documents = self._bytes = self.tokens = 0
        self._largest: list[int] = []
        self._finished: list[manifest.ShardEntry] = []

    def add(self, size: int, ids: npt.NDArray[np.uint32]) -> None:
        """Appends a document whose text has `size` bytes, and the end-of-text token."""
        self._pending += [ids.astype(self._dtype), self._end]
        count = len(ids) + len(self._end)
        self._documents, self._bytes, self.tokens = self._documents + 1, self._bytes + size, self.tokens + count
        self._pending_tokens += count
        if self._pending_tokens >= WRITE_TOKENS:
            self._write()

    def _write(self) -> None:
        tokens = np.concatenate(self._pending)
        self._pending, self._pending_tokens = [], 0
        with translate_loader_errors():
            while len(tokens):
                name = self._folder / f"{self._name}_{len(self._finished):06d}.bin"
                self._writer = self._writer or _loader.ShardWriter(name, self._dtype.name)
                room = self._shard_tokens - self._writer.tokens
                self._writer.append(tokens[:room].tobytes())
                tokens = tokens[room:]
                if self._writer.tokens == self._shard_tokens:
                    self._close(self._writer)

    def _close(self, writer: _loader.ShardWriter) -> None:
        done = writer.finish()
        self._finished.append(
            manifest.ShardEntry(name=Path(done.path).name, tokens=done.tokens, xxh3_128=done.xxh3_128)
        )
        self._largest.append(done.max_token or 0)
        self._writer = None

    def finish(self) -> manifest.SplitEntry:
        if self._pending:
            self._write()
        if self._writer:
            with translate_loader_errors():
                self._close(self._writer)
        return manifest.SplitEntry(
            documents=self._documents,
            tokens=self.tokens,
            bytes=self._bytes,
            max_token=max(self._largest, default=None),
            shards=tuple(self._finished),
        )
