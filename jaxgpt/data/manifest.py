"""The manifest of a folder of token shards: `manifest.json`.

Reading checks every field and every file name, because a manifest may come from an untrusted source: it may name only
files in its own folder. The content of these files is not read; their checksums allow a reader to verify them.
"""

import dataclasses
import hashlib
import json
import types
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, get_args, get_origin, get_type_hints

from jaxgpt.errors import DataError
from jaxgpt.utils.files import write_text
from jaxgpt.utils.sealed import CHECKSUM, seal, unseal

if TYPE_CHECKING:
    from jaxgpt._loader import WrittenSplit
    from jaxgpt.data.tokenizer import Tokenizer  # the library behind it takes a third of a second to load

FILE_NAME = "manifest.json"
FORMAT = 1
LAYOUTS = ("shards", "nanogpt")
VOCAB_LIMITS = {"uint16": 1 << 16, "uint32": 1 << 24}


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A token file of the folder. `xxh3_128` is the hash of the whole file, in hexadecimal."""

    name: str
    tokens: int
    xxh3_128: str


@dataclass(frozen=True, kw_only=True)
class SplitEntry:
    """Counts of documents, tokens (end-of-text ones included) and bytes of UTF-8 text, and the files."""

    documents: int
    tokens: int
    bytes: int
    max_token: int | None
    shards: tuple[ShardEntry, ...]

    @classmethod
    def from_written(cls, written: "WrittenSplit") -> Self:
        """Describes a split that was written into the manifest's folder."""
        return cls(
            documents=written.documents,
            tokens=written.tokens,
            bytes=written.bytes,
            max_token=max((shard.max_token or 0 for shard in written.shards), default=None),
            shards=tuple(
                ShardEntry(name=Path(shard.path).name, tokens=shard.tokens, xxh3_128=shard.xxh3_128)
                for shard in written.shards
            ),
        )


@dataclass(frozen=True, kw_only=True)
class TokenizerEntry:
    """The tokenizer that made the tokens. `file` is beside the shards."""

    name: str
    fingerprint: str
    file: str
    vocab_size: int
    eot: int | None

    @classmethod
    def from_tokenizer(cls, tokenizer: "Tokenizer", eot: int | None) -> Self:
        """Describes `tokenizer`, saved as `tokenizer.json`; `eot` is the id that separates documents."""
        return cls(
            name=tokenizer.name,
            fingerprint=tokenizer.fingerprint,
            file="tokenizer.json",
            vocab_size=tokenizer.vocab_size,
            eot=eot,
        )


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """A source file: its size and xxh3-128, and the documents, bytes of text and tokens that were taken from it.

    A file that was not needed for the requested tokens has no hash.
    """

    name: str
    size: int
    documents: int
    bytes: int
    tokens: int = 0
    xxh3_128: str | None = None


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """The options of `prepare` that the tokens depend on.

    `val_tokens` is None for the default; `tokens` is 0 for all there are; `weights` are the proportions of the sources
    in tokens, empty for one source after another; `layout` is "shards" or "nanogpt" (one headerless file per split);
    `clusters` is the hash of the audit's file of near-duplicates; `tokenizer` is "char" if the vocabulary is the text's
    characters; `separator` separates the documents of text files, None for the default.
    """

    train_tokenizer: int
    val_tokens: int | None
    text_column: str | None
    shard_tokens: int
    tokens: int = 0
    weights: tuple[float, ...] = ()
    layout: str = "shards"
    clusters: str | None = None
    tokenizer: str = ""
    separator: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A complete folder of shards. `eot_position` is "appended" (to each document) or "none".

    `derived` describes how the tokens were made from those of another folder; None if they come from the sources.
    `cut_at` is the number of characters of the only document that are for training, the rest being for validation; None
    if no document was cut.
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
    cut_at: int | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 over tokenizer, dtype, and the shards' tokens and checksums: independent of the folder's location."""
        shards = {name: [[s.tokens, s.xxh3_128] for s in split.shards] for name, split in sorted(self.splits.items())}
        canonical = json.dumps([self.tokenizer.fingerprint, self.dtype, shards])
        return hashlib.sha256(canonical.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Writes the manifest into `folder` atomically: a reader or a crash sees all of it or none."""
        write_text(folder / FILE_NAME, seal(dataclasses.asdict(self)))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`. Raises `DataError` D018 if it is malformed, D014 if it names a file elsewhere.

    Manifests from before they had a checksum are read without one.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        _refuse(path, "it is not a file")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"it is not JSON: {error}")
    if isinstance(values, dict) and values.get("format") != FORMAT:
        _refuse(path, f"format {values.get('format')!r}; this version of jaxgpt reads format {FORMAT}")
    manifest: Manifest = _decode(path, "", Manifest, values)
    _check(path, manifest)
    _check_bytes(path, text, values)
    return manifest


def _check_bytes(path: Path, text: str, values: dict[str, Any]) -> None:
    """Refuses a manifest that differs from what was written, in any byte."""
    unknown = sorted(values.keys() - {field.name for field in fields(Manifest)} - {CHECKSUM})
    if unknown:
        _refuse(path, f"it has an unknown value {_abbreviate(unknown[0])}")
    if CHECKSUM not in values:
        return
    try:
        unseal(text)
    except ValueError as error:
        _refuse(path, f"it is damaged: {error}")


def _refuse(path: Path, reason: str) -> NoReturn:
    help = "prepare the data into another folder: python -m jaxgpt.prepare SOURCE --out DIR"
    raise DataError("D018", f"{path}: {reason}", help)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63


SCALARS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", lambda value: isinstance(value, str)),
    int: ("a whole number, 0 or more,", lambda value: isinstance(value, int) and _is_number(value)),
    float: ("a number, 0 or more,", _is_number),
}


def _decode(path: Path, location: str, kind: Any, value: Any) -> Any:
    """Converts a JSON value to the type `kind`: a dataclass, tuple or dict of one, number from 0 on, text, or None."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _decode(path, location, arguments[0], value)
    if kind in SCALARS:
        expected, matches = SCALARS[kind]
        if matches(value):
            return kind(value)
    elif origin is tuple:
        expected = "a list"
        if isinstance(value, list):
            return tuple(_decode(path, f"{location}[{n}]", arguments[0], item) for n, item in enumerate(value))
    else:
        expected = "an object"
        if isinstance(value, dict) and origin is dict:
            return {name: _decode(path, f"{location}.{name}", arguments[1], item) for name, item in value.items()}
        if isinstance(value, dict):
            return _decode_dataclass(path, location, kind, value)
    _refuse(path, f"{location or 'the file'} is {_abbreviate(value)}; {expected} is needed")


def _decode_dataclass(path: Path, location: str, kind: Any, value: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    arguments = {}
    for field in fields(kind):
        name = f"{location}.{field.name}".lstrip(".")
        if field.name in value:
            arguments[field.name] = _decode(path, name, hints[field.name], value[field.name])
        elif field.default is dataclasses.MISSING:  # fields with a default were added later
            _refuse(path, f"{name} is missing")
    return kind(**arguments)


def _abbreviate(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _check(path: Path, manifest: Manifest) -> None:
    """Checks what the types do not express: names, sums, and ids within the vocabulary."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    names = [shard.name for shard in shards]
    for name in [*names, manifest.tokenizer.file]:
        _check_name(path, name)
    if len(set(names)) < len(names):
        _refuse(path, f"it names {max(names, key=names.count)!r} twice")
    if manifest.dtype not in VOCAB_LIMITS:
        _refuse(path, f"dtype is {_abbreviate(manifest.dtype)}; one of: {', '.join(VOCAB_LIMITS)}")
    if manifest.tokenizer.vocab_size > VOCAB_LIMITS[manifest.dtype]:
        _refuse(path, f"tokenizer.vocab_size is {manifest.tokenizer.vocab_size}, too many for {manifest.dtype}")
    if not manifest.splits.keys() <= {"train", "val"} or "train" not in manifest.splits:
        _refuse(path, f"its splits are {', '.join(manifest.splits) or 'none'}; train, and perhaps val, are needed")
    if manifest.settings.layout not in LAYOUTS:
        _refuse(path, f"settings.layout is {_abbreviate(manifest.settings.layout)}; one of: {', '.join(LAYOUTS)}")
    for name, split in manifest.splits.items():
        if sum(shard.tokens for shard in split.shards) != split.tokens:
            _refuse(path, f"splits.{name}.tokens is {split.tokens:,}; the sum of its shards differs")
        if split.max_token is not None and split.max_token >= manifest.tokenizer.vocab_size:
            size = manifest.tokenizer.vocab_size
            _refuse(path, f"splits.{name}.max_token is {split.max_token}; the tokenizer's vocabulary is {size}")


def _check_name(path: Path, name: str) -> None:
    """Raises `DataError` D014 unless `name` is the plain name of a file in the folder itself."""
    is_plain = name not in ("", ".", "..") and not any(c in "/\\" or not c.isprintable() for c in name)
    if is_plain and (path.parent / name).resolve().parent == path.parent.resolve():
        return
    reason = "it is a link to a file elsewhere" if is_plain else "a plain name of a file in the same folder is needed"
    raise DataError(
        "D014", f"{path} names the file {name!r}; {reason}", "do not use data from a source you do not trust"
    )
