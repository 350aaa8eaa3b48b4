"""Text to token ids and back: GPT-2's byte-level BPE built in, any `tokenizer.json`, or one made from your own text.

Special tokens are never parsed out of text: "<|endoftext|>" inside a document is thirteen ordinary characters; only
`prepare` puts the end-of-text id between documents. Byte-level tokenizers (GPT-2's and those trained here) are
lossless: `decode(encode(text)) == text` for every text. The one exception is a lone surrogate, half a character that
UTF-8 cannot represent; it becomes U+FFFD. Character tokenizers are lossless too, but refuse other characters.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from jaxgpt import _loader
from jaxgpt.data import hub
from jaxgpt.errors import ConfigError, DataError

CHAR = "char"  # names a tokenizer of the text's own characters
EOT = "<|endoftext|>"
EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
MIN_VOCAB_SIZE = 257  # every byte, and the end of text
MAX_VOCAB_SIZE = 1 << 24
GPT2_SIZE = 50257
GPT2_FINGERPRINT = "499d53154063d39623ad3b63dc9ef7db2191c6e3ff48268dbb9080bab8a2c42a"  # computing it takes 0.1 s

# Characters per piece of a long text: pieces are encoded on all cores, and at about 100 bytes per token the encoding of
# a whole document could fill the memory.
PIECE_LENGTH = 1 << 18
# GPT-2's pattern never joins a character with a blank after it, and looks ahead only from blanks: pieces cut here have
# the same ids as the uncut text.
CUT_POINT = re.compile(r"(?<=[!-~])(?=[ \n])")
EVERY_CHARACTER = r"[\s\S]"  # the pattern that splits text into characters
NO_ID = np.iinfo(np.uint32).max


@final
class Tokenizer:
    """Text to ids and ids to text. `name` identifies it in messages.

    `source` is the library's tokenizer, or a function that returns the text of a `tokenizer.json`, called at first use.
    """

    def __init__(self, name: str, source: tokenizers.Tokenizer | Callable[[], str]) -> None:
        self.name = name
        self._source = source
        if isinstance(source, tokenizers.Tokenizer):
            self.load()

    def load(self) -> None:
        """Builds what encoding needs; takes 0.1 s for GPT-2, without holding Python's lock."""
        _ = self._inner

    @functools.cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        source = self._source
        inner = source if isinstance(source, tokenizers.Tokenizer) else tokenizers.Tokenizer.from_str(self.to_json())
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # the library's name for reading them as ordinary text
        return inner

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        return vocabulary

    @functools.cached_property
    def vocab_size(self) -> int:
        """The number of ids, end-of-text token included."""
        return max(self._vocabulary.values(), default=-1) + 1

    @functools.cached_property
    def eot(self) -> int | None:
        """The id of the end-of-text token, None if the tokenizer has none."""
        return next((self._vocabulary[name] for name in EOT_NAMES if name in self._vocabulary), None)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary, ordered by id, and the merges: identifies the tokenizer."""
        tokens = sorted(self._vocabulary.items(), key=itemgetter(1))
        merges = (
            pair if isinstance(pair, str) else "\1".join(pair) for pair in self._described["model"].get("merges", [])
        )
        canonical = "\0".join([f"{number} {token}" for token, number in tokens] + ["", *merges])
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        """Returns the text of its `tokenizer.json`."""
        return self._text

    @functools.cached_property
    def _text(self) -> str:
        if not isinstance(self._source, tokenizers.Tokenizer):
            return self._source()
        text: str = self._inner.to_str(pretty=False)
        return text

    @functools.cached_property
    def _described(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self.to_json())
        return described

    @functools.cached_property
    def _character_ids(self) -> npt.NDArray[np.uint32] | None:
        """The id of each code point, `NO_ID` if it has none; None unless every token is a character."""
        splitter = self._described.get("pre_tokenizer") or {}
        if self._described["model"].get("type") != "WordLevel" or splitter.get("pattern") != {"Regex": EVERY_CHARACTER}:
            return None
        ids = np.full(0x110000, NO_ID, np.uint32)
        for character, number in self._described["model"]["vocab"].items():
            ids[ord(character)] = number
        return ids

    @functools.cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """Bytes of text per id; None if that depends on neighboring ids, as in most tokenizers without bytes."""
        is_byte_level = (self._described.get("decoder") or {}).get("type") == "ByteLevel"
        if not is_byte_level and self._character_ids is None:
            return None
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, number in self._vocabulary.items():
            # in a byte-level vocabulary, a character is a byte of the text
            lengths[number] = len(token) if is_byte_level else len(token.encode())
        for token in self._described["added_tokens"]:
            lengths[token["id"]] = len(token["content"].encode())
        return lengths

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without an end-of-text token. Raises what `encode_batch` raises."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Returns the ids of each text, encoded on all cores.

        Raises `ConfigError` C069 for a character that is not in the vocabulary of a character tokenizer, `DataError`
        D027 if a pattern of the tokenizer takes too many steps.
        """
        if self._character_ids is not None:
            return [self._encode_characters(replace_lone_surrogates(text), self._character_ids) for text in texts]
        texts_in_pieces = [self._split(replace_lone_surrogates(text)) for text in texts]
        pieces = [piece for text in texts_in_pieces for piece in text]
        with _bounded_patterns(self.name):
            encoded = self._inner.encode_batch_fast(pieces, add_special_tokens=False)
        ids = iter([np.array(encoding.ids, dtype=np.uint32) for encoding in encoded])
        return [np.concatenate([next(ids) for _ in text]) for text in texts_in_pieces]

    def _encode_characters(self, text: str, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        encoded = ids[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
        if (encoded == NO_ID).any():
            unknown = text[int(np.argmax(encoded == NO_ID))]
            message = f"the character {unknown!r} is not in the vocabulary of tokenizer '{self.name}'"
            raise ConfigError("C069", message, "use only characters of the text that the tokenizer was made from")
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; invalid UTF-8 becomes U+FFFD. Raises `DataError` D010 for other ids."""
        numbers = [int(number) for number in ids]
        for number in numbers:
            if not 0 <= number < self.vocab_size:
                raise DataError("D010", f"token {number}; the vocabulary of {self.name} is {self.vocab_size}")
        text: str = self._inner.decode(numbers, skip_special_tokens=False)
        return text

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json`, which `load` and Hugging Face's libraries can read."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def _split(self, text: str) -> list[str]:
        return split_text(text) if len(text) > PIECE_LENGTH and self._can_split else [text]

    @functools.cached_property
    def _can_split(self) -> bool:
        """Whether the tokenizer splits text by GPT-2's pattern, without normalizing it before."""
        splitter = self._described.get("pre_tokenizer") or {}
        return (
            all(token["special"] for token in self._described["added_tokens"])
            and self._described.get("normalizer") is None
            and splitter.get("type") == "ByteLevel"
            and splitter.get("use_regex", True)
            and not splitter.get("add_prefix_space", True)
        )


def replace_lone_surrogates(text: str) -> str:
    """`text` with U+FFFD in place of each lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def split_text(text: str, size: int = PIECE_LENGTH) -> list[str]:
    """Splits `text` after about every `size` characters, only where its ids stay the same; never empty."""
    pieces = []
    start = 0
    while len(text) - start > size:
        cut = CUT_POINT.search(text, start + size)
        if cut is None:
            break
        pieces.append(text[start : cut.start()])
        start = cut.start()
    return [*pieces, text[start:]]


def load(name: str | Path) -> Tokenizer:
    """Loads "gpt2", a `tokenizer.json`, a folder that contains one, or OWNER/NAME from the hub.

    Files on this disk take precedence over the hub. Raises `ConfigError` C026 if there is no such file or repository,
    C034 to C036 if the hub cannot be reached, `DataError` D027 if the file is not a tokenizer.
    """
    if str(name) == "gpt2":
        return gpt2()
    path = Path(name)
    if path.is_dir() and path.name != "tokenizer.json":
        path = path / "tokenizer.json"
    if os.path.lexists(path):
        _check_regular(path)
        return load_file(path, path.resolve().parent.name if path.name == "tokenizer.json" else path.stem)
    if isinstance(name, str) and not Path(name).exists() and hub.REPOSITORY.fullmatch(name):
        return load_file(_fetch(name), name)
    raise _not_found_error(name)


def _fetch(name: str) -> Path:
    try:
        return hub.fetch_tokenizer(name)
    except DataError as error:
        raise _not_found_error(name) from error


def _not_found_error(name: str | Path) -> ConfigError:
    help = "gpt2, the path of a tokenizer.json, or OWNER/NAME of a repository on the hub that has one"
    return ConfigError("C026", f"tokenizer '{name}' not found", help)


def load_file(path: Path, name: str) -> Tokenizer:
    """Loads the file `path` and calls the tokenizer `name`. Raises `DataError` D027 if it is not a tokenizer."""
    _check_regular(path)
    try:
        text = path.read_text(encoding="utf-8")
        model = json.loads(text)["model"]  # checked here: the library's messages do not say what is wrong
        if len(model["vocab"]) == 0:
            raise ValueError("its vocabulary is empty")
        return Tokenizer(name, tokenizers.Tokenizer.from_str(text))
    except (KeyError, TypeError, RecursionError) as error:
        raise _malformed_error(path, "it has no model with a vocabulary") from error
    except Exception as error:  # the library raises plain exceptions
        raise _malformed_error(path, str(error)) from error


def _check_regular(path: Path) -> None:
    """Raises `DataError` D015 for a folder, pipe or device, reading which may never end, and for a broken link."""
    if not path.is_file():
        raise DataError("D015", f"{path} is not a file", "put the tokenizer.json that made the tokens there")


@contextmanager
def _bounded_patterns(name: str) -> Iterator[None]:
    """Turns the library's panic into `DataError` D027: it gives up a pattern that tries too many ways to match."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or ["the library failed"])[0]
        message = f"tokenizer '{name}' cannot encode a text: {reason}"
        raise DataError("D027", message, "use a tokenizer with simpler patterns") from error


def _malformed_error(path: Path, reason: str) -> DataError:
    help = "save it again with Hugging Face's tokenizers"
    return DataError("D027", f"{path} is not a tokenizer.json: {reason}", help)


@functools.cache
def gpt2() -> Tokenizer:
    """GPT-2's tokenizer: 50,000 merges over 256 bytes, and the end of text as the last of 50,257 ids."""
    tokenizer = Tokenizer("gpt2", _gpt2_json)
    tokenizer.fingerprint = GPT2_FINGERPRINT
    tokenizer.vocab_size = GPT2_SIZE
    tokenizer.eot = GPT2_SIZE - 1
    return tokenizer


def _gpt2_json() -> str:
    """GPT-2's `tokenizer.json`: that of an empty tokenizer, with the vocabulary and the merges inserted."""
    empty = _byte_level(models.BPE())
    _add_eot(empty)
    described = json.loads(empty.to_str())
    described["added_tokens"][0]["id"] = GPT2_SIZE - 1
    del described["model"]["vocab"], described["model"]["merges"]  # the last entries of the last one
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False)
    return f"{text.removesuffix('}}')},{_loader.gpt2_model_json()}}}}}"


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE of at most `vocab_size` ids on `texts`; the end of text is its last id.

    Deterministic for the same texts in the same order. Few texts give fewer ids, since merges need a pair that occurs
    twice. Raises `ConfigError` C027 if `vocab_size` cannot contain all bytes.
    """
    check_vocab_size(vocab_size)
    inner = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator((replace_lone_surrogates(text) for text in texts), trainer)
    _add_eot(inner)
    return Tokenizer(f"bpe-{inner.get_vocab_size()}", inner)


def from_characters(texts: Iterable[str]) -> Tokenizer:
    """Makes a tokenizer whose ids are the characters of `texts` in Unicode's order, and the end of text.

    nanoGPT numbers the characters of a text in the same way.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(replace_lone_surrogates(text))
    return from_vocabulary(dict(enumerate(sorted(characters))))


def from_vocabulary(characters: Mapping[int, str]) -> Tokenizer:
    """Makes a character tokenizer from the character of each id, such as "itos" in nanoGPT's `meta.pkl`."""
    vocabulary = {character: number for number, character in characters.items()}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(EVERY_CHARACTER), "isolated")
    inner.decoder = decoders.Fuse()
    _add_eot(inner)
    return Tokenizer(f"{CHAR}-{inner.get_vocab_size()}", inner)


def check_vocab_size(vocab_size: int) -> None:
    """Raises `ConfigError` C027 if no tokenizer of `vocab_size` ids can be trained."""
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(
            "C027",
            f"a tokenizer of {vocab_size} tokens; {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE:,} are possible",
            "4096 suits a small corpus, 32768 a large one",
        )


def _byte_level(model: Any) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    return inner


def _add_eot(inner: tokenizers.Tokenizer) -> None:
    inner.add_special_tokens([tokenizers.AddedToken(EOT, special=True, normalized=False)])
