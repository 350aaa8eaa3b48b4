"""Text to token ids and back: GPT-2's byte-level BPE built in, any `tokenizer.json`, or one trained on your own text.

Special tokens are never parsed out of text: "<|endoftext|>" inside a document is thirteen ordinary characters, and
only the preparation puts the end-of-text id between documents. Byte-level tokenizers (GPT-2's and those trained here)
are lossless: `decode(encode(text)) == text` for every text. The one exception is a lone surrogate, half a character
that no UTF-8 text can hold; it is read as U+FFFD.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxgpt import _loader
from jaxgpt.data import hub
from jaxgpt.errors import ConfigError, DataError

EOT = "<|endoftext|>"
EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
FEWEST_TOKENS = 257  # every byte, and the end of text
MOST_TOKENS = 1 << 24
GPT2_SIZE = 50257
GPT2_FINGERPRINT = "499d53154063d39623ad3b63dc9ef7db2191c6e3ff48268dbb9080bab8a2c42a"  # computed: 0.1 s

# A text is encoded in pieces of about this many characters, so that one long document is spread over the cores and its
# encoding, some hundred bytes per token, does not fill the memory.
PIECE = 1 << 18
# GPT-2's pattern never joins what comes before a blank with the blank, and looks ahead only from blanks: pieces that
# are cut here have the ids of the whole.
CUT = re.compile(r"(?<=[!-~])(?=[ \n])")


@final
class Tokenizer:
    """Text to ids and ids to text. `name` is what messages call it.

    `source` is the library's tokenizer, or what gives the text of a `tokenizer.json`; it is asked at the first use.
    """

    def __init__(self, name: str, source: tokenizers.Tokenizer | Callable[[], str]) -> None:
        self.name, self._source = name, source
        if isinstance(source, tokenizers.Tokenizer):
            self.ready()

    def ready(self) -> None:
        """Builds what encoding needs; of GPT-2's, a tenth of a second, without Python's lock."""
        _ = self._inner

    @functools.cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        source = self._source
        inner = source if isinstance(source, tokenizers.Tokenizer) else tokenizers.Tokenizer.from_str(self.to_json())
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # the library's name for: read them as ordinary text
        return inner

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        found: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        return found

    @functools.cached_property
    def vocab_size(self) -> int:
        """How many ids there are, the end-of-text token included."""
        return max(self._vocabulary.values(), default=-1) + 1

    @functools.cached_property
    def eot(self) -> int | None:
        """The id of the end-of-text token, None where there is none."""
        return next((self._vocabulary[name] for name in EOT_NAMES if name in self._vocabulary), None)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary in the order of its ids and of the merges: the same for the same tokenizer."""
        tokens = sorted(self._vocabulary.items(), key=itemgetter(1))
        merges = (pair if isinstance(pair, str) else "\1".join(pair) for pair in self._model.get("merges", []))
        canonical = "\0".join([f"{number} {token}" for token, number in tokens] + ["", *merges])
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        """The tokenizer as the text of a `tokenizer.json`."""
        return self._text

    @functools.cached_property
    def _text(self) -> str:
        if not isinstance(self._source, tokenizers.Tokenizer):
            return self._source()
        text: str = self._inner.to_str(pretty=False)
        return text

    @functools.cached_property
    def _model(self) -> dict[str, Any]:
        model: dict[str, Any] = json.loads(self.to_json())["model"]
        return model

    @functools.cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """How many bytes of text each id stands for, None where that depends on its neighbours (no byte-level BPE)."""
        described = json.loads(self.to_json())
        if (described.get("decoder") or {}).get("type") != "ByteLevel":
            return None
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, number in self._vocabulary.items():
            lengths[number] = len(token)  # a character of the vocabulary is a byte of the text
        for token in described["added_tokens"]:
            lengths[token["id"]] = len(token["content"].encode())
        return lengths

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without any end-of-text token."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The ids of each text, encoded on all cores."""
        parts = [self._parts(well_formed(text)) for text in texts]
        encoded = self._inner.encode_batch_fast([part for text in parts for part in text], add_special_tokens=False)
        ids = iter([np.array(encoding.ids, dtype=np.uint32) for encoding in encoded])
        return [np.concatenate([next(ids) for _ in text]) for text in parts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. An id outside the vocabulary is a `DataError`."""
        numbers = [int(number) for number in ids]
        for number in numbers:
            if not 0 <= number < self.vocab_size:
                raise DataError("D010", f"token {number}; the vocabulary of {self.name} is {self.vocab_size}")
        text: str = self._inner.decode(numbers, skip_special_tokens=False)
        return text

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json`, which `load` and Hugging Face's libraries read."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def _parts(self, text: str) -> list[str]:
        return pieces(text) if len(text) > PIECE and self._cuttable else [text]

    @functools.cached_property
    def _cuttable(self) -> bool:
        """Whether the tokenizer splits text by GPT-2's pattern and does nothing to it before."""
        described = json.loads(self.to_json())
        splitter = described.get("pre_tokenizer") or {}
        plain = not any(not token["special"] for token in described["added_tokens"])
        return (
            plain
            and described.get("normalizer") is None
            and splitter.get("type") == "ByteLevel"
            and splitter.get("use_regex", True)
            and not splitter.get("add_prefix_space", True)
        )


def well_formed(text: str) -> str:
    """`text` with each lone surrogate replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def pieces(text: str, size: int = PIECE) -> list[str]:
    """`text` cut after about every `size` characters, only where its ids stay the same; never empty."""
    found, start = [], 0
    while len(text) - start > size:
        cut = CUT.search(text, start + size)
        if cut is None:
            break
        found.append(text[start : cut.start()])
        start = cut.start()
    return [*found, text[start:]]


def load(name: str | Path) -> Tokenizer:
    """The tokenizer "gpt2", that of a `tokenizer.json` or of a folder that holds one, or OWNER/NAME on the hub.

    What is on this disk goes before the hub. Raises `ConfigError` C026 if there is no such file or repository, C034 to
    C036 if the hub cannot be asked, `DataError` D027 if the file holds no tokenizer.
    """
    if str(name) == "gpt2":
        return gpt2()
    path = Path(name) / "tokenizer.json" if Path(name).is_dir() else Path(name)
    if path.is_file():
        return _read(path, path.resolve().parent.name if path.name == "tokenizer.json" else path.stem)
    if isinstance(name, str) and not Path(name).exists() and hub.REPOSITORY.fullmatch(name):
        return _read(_fetched(name), name)
    raise _missing(name)


def load_named(path: Path, name: str) -> Tokenizer:
    """The tokenizer of the file `path`, which does not say what it is called."""
    return _read(path, name)


def _fetched(name: str) -> Path:
    try:
        return hub.fetch_tokenizer(name)
    except DataError as error:
        raise _missing(name) from error


def _missing(name: str | Path) -> ConfigError:
    help = "gpt2, the path of a tokenizer.json, or OWNER/NAME of a repository on the hub that has one"
    return ConfigError("C026", f"tokenizer '{name}' not found", help)


def _read(path: Path, name: str) -> Tokenizer:
    """The tokenizer in the file `path`, called `name`."""
    try:
        text = path.read_text(encoding="utf-8")
        model = json.loads(text)["model"]  # the library's own messages do not say what is wrong
        if len(model["vocab"]) == 0:
            raise ValueError("its vocabulary is empty")
        return Tokenizer(name, tokenizers.Tokenizer.from_str(text))
    except (KeyError, TypeError, RecursionError) as error:
        raise _malformed(path, "it holds no model with a vocabulary") from error
    except Exception as error:  # the library raises nothing more precise
        raise _malformed(path, str(error)) from error


def _malformed(path: Path, reason: str) -> DataError:
    return DataError("D027", f"{path} is not a tokenizer.json: {reason}", "save it anew with Hugging Face's tokenizers")


@functools.cache
def gpt2() -> Tokenizer:
    """GPT-2's tokenizer: 50,000 merges over 256 bytes, and the end of text as the last of 50,257 ids."""
    made = Tokenizer("gpt2", _gpt2_text)
    made.fingerprint, made.vocab_size, made.eot = GPT2_FINGERPRINT, GPT2_SIZE, GPT2_SIZE - 1
    return made


def _gpt2_text() -> str:
    """The text of GPT-2's `tokenizer.json`: that of an empty tokenizer, with the vocabulary and the merges put in."""
    empty = _byte_level(models.BPE())
    _add_eot(empty)
    described = json.loads(empty.to_str())
    described["added_tokens"][0]["id"] = GPT2_SIZE - 1
    del described["model"]["vocab"], described["model"]["merges"]  # the last entries of the last one
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False)
    return f"{text.removesuffix('}}')},{_loader.gpt2_model_json()}}}}}"


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids, learned from `texts`; the end of text is its last id.

    The same texts in the same order give the same tokenizer. Few texts give fewer ids: a merge is learned only from a
    pair that occurs twice. Raises `ConfigError` C027 if `vocab_size` cannot hold all bytes.
    """
    check_size(vocab_size)
    inner = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=sorted(_printable_bytes().values()),
        show_progress=False,
    )
    inner.train_from_iterator((well_formed(text) for text in texts), trainer)
    _add_eot(inner)
    return Tokenizer(f"bpe-{inner.get_vocab_size()}", inner)


def check_size(vocab_size: int) -> None:
    """Raises `ConfigError` C027 if no tokenizer of `vocab_size` ids can be trained."""
    if not FEWEST_TOKENS <= vocab_size <= MOST_TOKENS:
        raise ConfigError(
            "C027",
            f"a tokenizer of {vocab_size} tokens; {FEWEST_TOKENS} to {MOST_TOKENS:,} are possible",
            "4096 suits a small corpus, 32768 a large one",
        )


def _byte_level(model: Any) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    return inner


def _add_eot(inner: tokenizers.Tokenizer) -> None:
    inner.add_special_tokens([tokenizers.AddedToken(EOT, special=True, normalized=False)])


def _printable_bytes() -> dict[int, str]:
    """The character by which GPT-2's files write each byte: itself where it is printable, or one from 256 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + n) for n, byte in enumerate(others)}
