"""Tokenization at full speed: gigatoken, checked against the `tokenizers` library, which is the reference.

Both load the same tokenizer. gigatoken is tens of times faster on all cores; some text of every file goes through both,
and a difference stops the preparation. Tokenizers that gigatoken cannot load go through `tokenizers` alone, and so does
everything where gigatoken is not installed, with one warning.
"""

import functools
import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jaxgpt._loader import EncodedDocuments
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import DataError
from jaxgpt.prepare.sources.base import truncate
from jaxgpt.runs.log import warn

Engine = Literal["gigatoken", "tokenizers"]
ENGINES: tuple[Engine, ...] = ("gigatoken", "tokenizers")
CHECKED_BYTES = 4_000  # per document, of two documents per checked batch
CHECK_INTERVAL = 16  # batches; the first batch of each file is checked too
ADDED_TOKENS = '"added_tokens":'


class EncodedBatch(NamedTuple):
    """Encoded documents, with the bytes and the tokens of each."""

    encoded: EncodedDocuments
    sizes: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]


class Encoder:
    """Encodes batches of texts with `tokenizer`, through `engine` if that can load it.

    The engine is loaded at its first use, or by `load`, which takes a quarter of a second.
    """

    def __init__(self, tokenizer: Tokenizer, engine: Engine = "gigatoken") -> None:
        self.tokenizer = tokenizer
        self._engine = engine
        self._file = ""
        self._batches = 0

    @functools.cached_property
    def _gigatoken(self) -> Any:
        return _load_gigatoken(self.tokenizer) if self._uses_gigatoken else None

    @functools.cached_property
    def _uses_gigatoken(self) -> bool:
        if self._engine == "gigatoken" and find_spec("gigatoken") is None:
            warn("gigatoken is not installed, and tokenizers is tens of times slower: pip install gigatoken")
            return False
        return self._engine == "gigatoken"

    def load(self) -> None:
        """Loads the engine and the tokenizer; what does not hold Python's lock runs in parallel."""
        with ThreadPoolExecutor(1) as pool:
            if self._uses_gigatoken:
                text = pool.submit(self.tokenizer.to_json)
                _import_gigatoken()
                text.result()
            loading = pool.submit(self.tokenizer.load)
            _ = self._gigatoken
            loading.result()

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The smallest type of tokens that can hold every id."""
        return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32)

    def encode(self, texts: pa.LargeStringArray, file: str = "") -> EncodedBatch:
        """Encodes each text of `file`, without end-of-text tokens, and checks some of them."""
        ends, data = utf8_buffers(texts)
        self._batches += 1
        if file != self._file or self._batches % CHECK_INTERVAL == 0:
            self._file = file
            self.check([truncate(str(texts[index]), CHECKED_BYTES) for index in (0, len(texts) // 2)], file)
        ids, id_ends = self._encode_fast(ends, data) if self._gigatoken else self._encode_reference(texts)
        encoded = EncodedDocuments(data.data, ends.data, ids.data, id_ends.data)
        return EncodedBatch(encoded, np.diff(ends), np.diff(id_ends))

    def check(self, texts: Sequence[str], file: str) -> None:
        """Raises `DataError` D040 for the first of `texts`, from `file`, that the two libraries encode differently."""
        if not self._gigatoken or not texts:
            return
        ids, ends = self._encode_fast(*utf8_buffers(pa.array(texts, pa.large_string())))
        for number, (text, expected) in enumerate(zip(texts, self.tokenizer.encode_batch(texts), strict=True)):
            actual = ids[ends[number] : ends[number + 1]]
            if not np.array_equal(actual, expected):
                raise _mismatch_error(file, text, actual.tolist(), expected.tolist())

    def _encode_fast(
        self, ends: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        import awkward as ak

        characters = ak.contents.NumpyArray(data, parameters={"__array__": "char"})
        strings = ak.contents.ListOffsetArray(ak.index.Index64(ends), characters, parameters={"__array__": "string"})
        assert self._gigatoken is not None
        encoded = self._gigatoken.encode_batch(ak.Array(strings)).layout.to_ListOffsetArray64(True)
        return np.asarray(encoded.content.data, np.uint32), np.asarray(encoded.offsets.data, np.int64)

    def _encode_reference(self, texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        encoded = self.tokenizer.encode_batch([str(text) for text in texts])
        ends = np.cumsum([0, *(len(ids) for ids in encoded)], dtype=np.int64)
        return np.concatenate(encoded, dtype=np.uint32) if encoded else np.empty(0, np.uint32), ends


def _load_gigatoken(tokenizer: Tokenizer) -> Any:
    """gigatoken's form of the tokenizer, None if it cannot load it.

    Special tokens are left out: inside a text they are ordinary characters.
    """
    load_hf_json = _import_gigatoken()
    text = tokenizer.to_json()
    start = text.index(ADDED_TOKENS) + len(ADDED_TOKENS)
    tokens, end = json.JSONDecoder().raw_decode(text, start)  # precedes the vocabulary, which need not be parsed
    ordinary = json.dumps([token for token in tokens if not token["special"]])
    try:
        return load_hf_json(text[:start] + ordinary + text[end:])
    except Exception:  # its error types are not documented
        return None


def _import_gigatoken() -> Any:
    import awkward  # noqa: F401  # takes 0.1 s: imported here rather than during the first batch
    from gigatoken.gigatoken_rs import load_hf_json

    return load_hf_json


def utf8_buffers(texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The UTF-8 of all texts in one array, and the offsets in it where each text starts and the last one ends."""
    offsets: Any
    data: Any
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    utf8 = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    return ends - ends[0], utf8[ends[0] : ends[-1]]


def _mismatch_error(file: str, text: str, actual: list[int], expected: list[int]) -> DataError:
    pairs = enumerate(itertools.zip_longest(actual, expected))
    position = next(index for index, (one, other) in pairs if one != other)
    ids = [ids[position : position + 1] or "none" for ids in (actual, expected)]
    message = f"gigatoken and tokenizers differ on {file}: the document {text[:40]!r}…, token {position}: "
    message += f"{ids[0]} against {ids[1]}"
    return DataError("D040", message, "--encoder tokenizers uses the slower library; please report the document")
