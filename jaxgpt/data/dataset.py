"""Folders of token shards: which files are for training and validation, and which tokenizer made them.

Three layouts are supported: jaxgpt's own with a `manifest.json`, nanoGPT's headerless `train.bin` and `val.bin`, and
the shards of llm.c and modded-nanogpt (`*_train_*.bin`, `*_val_*.bin`, or just `*.bin`). A layout without a manifest
does not name its tokenizer; `TokenDataset.notes` lists what was assumed. Nothing is ever unpickled.
"""

import functools
import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxgpt import _loader
from jaxgpt.data import audit_files, manifest, tokenizer
from jaxgpt.data.containment import find_in_train
from jaxgpt.data.manifest import Manifest
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import ConfigError, DataError, JaxgptError, NoShardsError, StorageError
from jaxgpt.utils.files import file_id

ProgressCallback = Callable[[int, int], object]
REFETCH_HELP = "fetch or prepare the folder again"
SPLIT_HELP = "split the documents: python -m jaxgpt.prepare SOURCE --out DIR --val-tokens N"


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

    @property
    def dtype(self) -> "np.dtype[Any]":
        return np.dtype(self.shards.dtype)

    def windows(self, block: int) -> int:
        """The number of windows of `block + 1` tokens per epoch. Raises `DataError` D013 if there is none."""
        with translate_loader_errors():
            return self.shards.windows(block)

    def ids(self, start: int, count: int) -> npt.NDArray[Any]:
        """A copy of `count` tokens from the index `start` on."""
        with translate_loader_errors():
            return np.frombuffer(self.shards.read(start, count), self.dtype)


@dataclass(frozen=True)
class TokenDataset:
    """An opened folder. `vocab_size` is the tokenizer's; `fingerprint` identifies the tokens in any location."""

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
        """The tokenizer, loaded at first use. Raises `DataError` D019 if it is not the one that made the tokens."""
        if self.tokenizer_file is None:
            return tokenizer.load(self.tokenizer_name)
        loaded = tokenizer.load(self.tokenizer_file)
        expected = self.manifest and self.manifest.tokenizer.fingerprint
        if expected and loaded.fingerprint != expected:
            difference = f"its sha256 is {loaded.fingerprint[:12]}…, the manifest says {expected[:12]}…"
            message = f"{self.tokenizer_file} is another tokenizer than the data's: {difference}"
            raise DataError("D019", message, REFETCH_HELP)
        loaded.name = self.tokenizer_name
        return loaded

    @property
    def eot(self) -> int | None:
        """The id of the end-of-text token between documents, None if these tokens have none."""
        if self.manifest is None:
            return self.tokenizer.eot
        return None if self.manifest.eot_position == "none" else self.manifest.tokenizer.eot

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run compares, as JSON values."""
        return {
            "tokenizer": self.tokenizer.name,
            "tokenizer_sha256": self.tokenizer.fingerprint,
            "train_tokens": self.train.tokens,
            "val_tokens": self.val.tokens if self.val else 0,
            "tokens_sha256": self.fingerprint,
        }

    def verify(self, progress: ProgressCallback | None = None, threads: int = 2) -> str:
        """Reads every token, and returns a checksum of all files.

        Raises `DataError` D010 for an id outside the vocabulary, D011 for a changed file.
        Raises D012 if the tokens of a validation file are also in train: its loss would measure memorization.
        """
        seen: dict[str, Path] = {}
        found: list[list[str]] = []
        for split in (self.train, self.val):
            if split is None:
                continue
            with translate_loader_errors():
                checksums = split.shards.verify(self.vocab_size, split.checksums, threads, progress)
            found.append(checksums)
            for (name, tokens), checksum in zip(split.shards.shards, checksums, strict=True):
                if split is self.val and tokens and checksum in seen:
                    message = f"{name} of validation has the same content as {seen[checksum]} of train"
                    raise DataError("D012", message, SPLIT_HELP)
                seen.setdefault(checksum, Path(name))
        self._check_containment()
        return _loader.hash_bytes(json.dumps(found).encode())

    def _check_containment(self) -> None:
        start = 0
        for name, tokens in self.val.shards.shards if self.val else []:
            with translate_loader_errors():
                index = find_in_train(self.train.shards, self.val.shards, start, tokens) if self.val else None
            if index is not None:
                message = f"{name} of validation is a part of train: its tokens {index:,} to {index + tokens - 1:,}"
                raise DataError("D012", message, SPLIT_HELP)
            start += tokens

    def file_ids(self) -> dict[Path, tuple[int, int] | None]:
        """What distinguishes each token file from another one of its name; None if there is none."""
        return {path: file_id(path) for split in (self.train, self.val) if split for path in split.paths}


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

    Raises `DataError` D002 if there are none, and D003 to D019 for files that are not what they should be.
    """
    folder = Path(path)
    # `lexists`: a link that leads nowhere is an error, and not another layout.
    if os.path.lexists(folder / manifest.FILE_NAME):
        return _open_with_manifest(folder, manifest.read_manifest(folder))
    if os.path.lexists(folder / "train.bin"):
        return _open_nanogpt(folder)
    return _open_llmc(folder)


def _no_shards_error(folder: Path) -> NoShardsError:
    """D002 with a command that would make the shards, from the folder's own parquet files if it has some."""
    is_folder = folder.is_dir()
    if folder.exists() and not is_folder:
        return NoShardsError("D002", f"no token shards in '{folder}': it is a file", "name the folder that holds them")
    source = "SOURCE"
    out = str(folder)
    if is_folder and any(folder.glob("*.parquet")):
        source = f"'{folder}/*.parquet'"
        out = f"{out.rstrip('/')}-tokens"
    help = f"python -m jaxgpt.prepare {source} --out {out} --val-tokens 10e6"
    return NoShardsError("D002", f"no token shards in '{folder}'", help)


def _open_with_manifest(folder: Path, entry: Manifest) -> TokenDataset:
    return TokenDataset(
        folder=folder,
        train=_open_manifest_split(folder, entry, "train"),
        val=_open_manifest_split(folder, entry, "val") if "val" in entry.splits else None,
        tokenizer_name=entry.tokenizer.name,
        vocab_size=entry.tokenizer.vocab_size,
        fingerprint=entry.fingerprint,
        tokenizer_file=folder / entry.tokenizer.file,
        manifest=entry,
    )


def _open_manifest_split(folder: Path, whole: Manifest, name: str) -> Split:
    """Opens a split and compares the lengths and the type of its files with the manifest."""
    entry = whole.splits[name]
    if not entry.shards:
        raise NoShardsError("D002", f"no token shards in '{folder}' for {name}", REFETCH_HELP)
    split = _open_split([folder / shard.name for shard in entry.shards], whole.settings.layout == "nanogpt")
    for (path, tokens), shard in zip(split.shards.shards, entry.shards, strict=True):
        if tokens != shard.tokens:
            message = f"{path} has {tokens:,} tokens, the manifest says {shard.tokens:,}"
            raise DataError("D019", message, REFETCH_HELP)
    if split.dtype != whole.dtype:
        message = f"{split.paths[0]} has {split.dtype} tokens, the manifest says {whole.dtype}"
        raise DataError("D019", message, REFETCH_HELP)
    return Split(split.paths, split.shards, entry.bytes, tuple(shard.xxh3_128 for shard in entry.shards))


def _open_nanogpt(folder: Path) -> TokenDataset:
    val = folder / "val.bin"
    notes = []
    if (folder / "meta.pkl").exists() and not (folder / "tokenizer.json").exists():
        notes.append(
            f"{folder}/meta.pkl is not read, since a pickle can run code. If you trust it and the tokens are "
            f"characters (nanoGPT's shakespeare_char), make a tokenizer.json of it: {_conversion_command(folder)}"
        )
    train = _open_split([folder / "train.bin"])
    return _without_manifest(folder, train, _open_split([val]) if os.path.lexists(val) else None, notes)


def _conversion_command(folder: Path) -> str:
    """The command with which a user converts nanoGPT's `meta.pkl` to a `tokenizer.json`."""
    pickled, made = (json.dumps(str(folder / name)) for name in ("meta.pkl", "tokenizer.json"))
    code = "import pickle; from jaxgpt.data.tokenizer import from_vocabulary; "
    code += f'from_vocabulary(pickle.load(open({pickled}, "rb"))["itos"]).save({made})'
    return f"python -c {shlex.quote(code)}"


def _open_llmc(folder: Path) -> TokenDataset:
    paths = sorted(path for path in folder.glob("*.bin") if not path.name.startswith("."))
    paths = [path for path in paths if not audit_files.is_clusters_file(path)]
    val = [path for path in paths if re.search(r"(^|_)val_", path.name)]
    train = [path for path in paths if re.search(r"(^|_)train_", path.name)]
    train = train or [path for path in paths if path not in val and path.name != "val.bin"]
    if not train:
        raise _no_shards_error(folder)
    unused = len(paths) - len(train) - len(val)
    notes = [f"{unused} other .bin files in {folder} are not used"] if unused else []
    return _without_manifest(folder, _open_split(train), _open_split(val) if val else None, notes)


def _without_manifest(folder: Path, train: Split, val: Split | None, notes: list[str]) -> TokenDataset:
    """Uses the folder's `tokenizer.json`, or assumes GPT-2's tokenizer where the tokens can be GPT-2's."""
    file = folder / "tokenizer.json"
    has_tokenizer = os.path.lexists(file)
    name, vocab_size = "gpt2", tokenizer.GPT2_SIZE
    if has_tokenizer:
        loaded = tokenizer.load(file)
        name, vocab_size = loaded.name, loaded.vocab_size
    elif train.dtype != "uint16":
        message = f"'{folder}' has uint32 tokens and does not say which tokenizer made them"
        raise DataError("D019", message, "put the tokenizer.json that made them beside them")
    else:
        notes.append(f"{folder} does not name its tokenizer: gpt2 is assumed")
    return TokenDataset(
        folder=folder,
        train=train,
        val=val,
        tokenizer_name=name,
        vocab_size=vocab_size,
        fingerprint=_sample_fingerprint([train, val]),
        notes=tuple(notes),
        tokenizer_file=file if has_tokenizer else None,
    )


def _open_split(paths: Sequence[Path], headerless: bool | None = None) -> Split:
    with translate_loader_errors():
        return Split(tuple(paths), _loader.Dataset(paths, headerless=headerless))


def _sample_fingerprint(splits: Sequence[Split | None]) -> str:
    """sha256 of each file's length and its first, middle and last tokens: identifies data without checksums."""
    digest = hashlib.sha256()
    for split in splits:
        start = 0
        for _, tokens in split.shards.shards if split else []:
            digest.update(f"{tokens};".encode())
            size = min(tokens, 4096)
            for offset in (0, (tokens - size) // 2, tokens - size):
                digest.update(split.ids(start + offset, size).tobytes() if split else b"")
            start += tokens
        digest.update(b"|")
    return digest.hexdigest()


def check_vocabulary(rows: int, dataset: TokenDataset) -> None:
    """Raises `ConfigError` C018 if a model with `rows` token embeddings cannot embed all ids of the tokenizer."""
    if rows < dataset.vocab_size:
        raise ConfigError(
            "C018",
            f"model.vocab_size {rows} is smaller than the tokenizer's {dataset.vocab_size}",
            f"--model.vocab-size {math.ceil(dataset.vocab_size / 128) * 128}",
        )
