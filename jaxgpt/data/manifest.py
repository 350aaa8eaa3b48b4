"""What a folder of token shards holds: `manifest.json`.

Reading checks every field and every file name, because a manifest may come from a stranger: a name must be that of a
file in the folder itself. The files' contents are not touched; their checksums are for whoever reads them.
"""

import dataclasses
import hashlib
import json
import os
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from jaxgpt.errors import DataError

FILE_NAME = "manifest.json"
FORMAT = 1
LAYOUTS = ("shards", "nanogpt")
VOCAB_LIMITS = {"uint16": 1 << 16, "uint32": 1 << 24}


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A token file of the folder. `xxh3_128` is that of the whole file, in hexadecimal."""

    name: str
    tokens: int
    xxh3_128: str


@dataclass(frozen=True, kw_only=True)
class SplitEntry:
    """Documents, tokens (end-of-text ones included), and bytes of the UTF-8 text that the tokens stand for."""

    documents: int
    tokens: int
    bytes: int
    max_token: int | None
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, kw_only=True)
class TokenizerEntry:
    """The tokenizer that made the tokens. `file` is beside the shards."""

    name: str
    fingerprint: str
    file: str
    vocab_size: int
    eot: int | None


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """Where documents came from: a file's size and xxh3-128, and the documents, bytes of text and tokens taken of it.

    A file that was not needed for the tokens that were asked for has no hash.
    """

    name: str
    size: int
    documents: int
    bytes: int
    tokens: int = 0
    xxh3_128: str | None = None


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What else the tokens depend on, as it was asked for.

    `tokens` is 0 for all there are; `weights` are the shares of the sources in the tokens, none for one source after
    another; `layout` is "shards" or "nanogpt" (one headerless file for each split).
    """

    train_tokenizer: int
    val_tokens: int
    text_column: str | None
    shard_tokens: int
    tokens: int = 0
    weights: tuple[float, ...] = ()
    layout: str = "shards"
    clusters: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A finished folder of shards. `eot_position` is "appended" (to each document) or "none".

    `derived` says how the tokens came from those of another folder, None where they came from the sources.
    """

    format: int = FORMAT
    tool: str
    tokenizer: TokenizerEntry
    eot_position: str
    dtype: str
    splits: dict[str, SplitEntry]
    settings: PrepareSettings
    sources: tuple[SourceEntry, ...]
    derived: str | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 of what the tokens are: tokenizer, type, and the shards' tokens and checksums, not where they are."""
        shards = {name: [[s.tokens, s.xxh3_128] for s in split.shards] for name, split in sorted(self.splits.items())}
        canonical = json.dumps([self.tokenizer.fingerprint, self.dtype, shards])
        return hashlib.sha256(canonical.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Writes the manifest into `folder` in one piece: a reader or a crash finds all of it or none."""
        temporary = folder / f".{FILE_NAME}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(self), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / FILE_NAME)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`. Raises `DataError` D018 if it is malformed, D014 if it names a file elsewhere."""
    path = folder / FILE_NAME
    if not path.is_file():
        _refuse(path, "it is not a file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        _refuse(path, f"it is not JSON: {error}")
    if isinstance(values, dict) and values.get("format") != FORMAT:
        _refuse(path, f"format {values.get('format')!r}; this version of jaxgpt reads format {FORMAT}")
    manifest: Manifest = _decoded(path, "", Manifest, values)
    _check(path, manifest)
    return manifest


def _refuse(path: Path, reason: str) -> NoReturn:
    help = "prepare the data again into another folder: python -m jaxgpt.prepare SOURCE --out DIR"
    raise DataError("D018", f"{path}: {reason}", help)


def _decoded(path: Path, place: str, kind: Any, value: Any) -> Any:
    """`value` as the type `kind`: a dataclass, tuple of one, dict by name, number from 0 on, text, or None."""
    origin, options = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _decoded_dataclass(path, place, kind, value)
    if origin is tuple and isinstance(value, list):
        return tuple(_decoded(path, f"{place}[{n}]", options[0], item) for n, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _decoded(path, f"{place}.{name}", options[1], item) for name, item in value.items()}
    if origin is types.UnionType:
        return None if value is None else _decoded(path, place, options[0], value)
    if kind is str and isinstance(value, str):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63:
        return float(value)
    wanted = {int: "a whole number, 0 or more,", float: "a number, 0 or more,", str: "a text"}.get(
        kind, "a list" if origin is tuple else "an object"
    )
    _refuse(path, f"{place or 'the file'} is {_short(value)}; {wanted} is needed")


def _decoded_dataclass(path: Path, place: str, kind: Any, value: dict[str, Any]) -> Any:
    hints, found = get_type_hints(kind), {}
    for field in fields(kind):
        inner = f"{place}.{field.name}".lstrip(".")
        if field.name not in value and field.default is not dataclasses.MISSING:
            continue  # an older version wrote it
        if field.name not in value:
            _refuse(path, f"{inner} is missing")
        found[field.name] = _decoded(path, inner, hints[field.name], value[field.name])
    return kind(**found)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _check(path: Path, manifest: Manifest) -> None:
    """What the types do not say: names, sums, and ids within the vocabulary."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    names = [shard.name for shard in shards]
    for name in [*names, manifest.tokenizer.file]:
        _check_name(path, name)
    if len(set(names)) < len(names):
        _refuse(path, f"it names {max(names, key=names.count)!r} twice")
    if manifest.dtype not in VOCAB_LIMITS:
        _refuse(path, f"dtype is {_short(manifest.dtype)}; one of: {', '.join(VOCAB_LIMITS)}")
    if manifest.tokenizer.vocab_size > VOCAB_LIMITS[manifest.dtype]:
        _refuse(path, f"tokenizer.vocab_size is {manifest.tokenizer.vocab_size}, too many for {manifest.dtype}")
    if not manifest.splits.keys() <= {"train", "val"} or "train" not in manifest.splits:
        _refuse(path, f"its splits are {', '.join(manifest.splits) or 'none'}; train, and perhaps val, are needed")
    if manifest.settings.layout not in LAYOUTS:
        _refuse(path, f"settings.layout is {_short(manifest.settings.layout)}; one of: {', '.join(LAYOUTS)}")
    for name, split in manifest.splits.items():
        if sum(shard.tokens for shard in split.shards) != split.tokens:
            _refuse(path, f"splits.{name}.tokens is {split.tokens:,}; its shards have another sum")
        if split.max_token is not None and split.max_token >= manifest.tokenizer.vocab_size:
            size = manifest.tokenizer.vocab_size
            _refuse(path, f"splits.{name}.max_token is {split.max_token}; the tokenizer's vocabulary is {size}")


def _check_name(path: Path, name: str) -> None:
    """Only a plain name of a file in the folder itself; D014 for whatever leads, or could lead, out of it."""
    inside = name not in ("", ".", "..") and not any(c in "/\\" or not c.isprintable() for c in name)
    if inside and (path.parent / name).resolve().parent == path.parent.resolve():
        return
    why = "it is a link to a file elsewhere" if inside else "a plain name of a file in the same folder is needed"
    raise DataError("D014", f"{path} names the file {name!r}; {why}", "do not use data from a source you do not trust")
