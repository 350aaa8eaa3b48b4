"""Texts to ids at full speed: gigatoken, held against the `tokenizers` library, which says what is right.

Both are given the same tokenizer. gigatoken is tens of times faster on all cores; of every file, some
text goes through both, and a difference stops the work. A tokenizer that gigatoken does not know (its `load`
fails) is left to `tokenizers`.
"""

import functools
import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jaxgpt._loader import Encoded
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import DataError
from jaxgpt.prepare.sources.base import clipped

Engine = Literal["gigatoken", "tokenizers"]
CHECKED_BYTES = 4_000  # of a document, of two documents of a batch
CHECK_EVERY = 16  # batches, and the first one of each file
ADDED = '"added_tokens":'
ENGINES: tuple[Engine, ...] = ("gigatoken", "tokenizers")


class Lot(NamedTuple):
    """Encoded documents, with the bytes and the tokens of each."""

    encoded: Encoded
    sizes: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]


class Encoder:
    """Encodes batches of texts with `tokenizer`, through the library `engine` if that can.

    That library is loaded at the first use, or by `ready`, which takes a quarter of a second.
    """

    def __init__(self, tokenizer: Tokenizer, engine: Engine = "gigatoken") -> None:
        self.tokenizer, self._engine = tokenizer, engine
        self._where, self._batches = "", 0

    @functools.cached_property
    def _fast(self) -> Any:
        return _gigatoken(self.tokenizer) if self._engine == "gigatoken" else None

    def ready(self) -> None:
        """Loads the library; what takes no Python, a helper does meanwhile."""
        with ThreadPoolExecutor(1) as helper:
            if self._engine == "gigatoken":
                text = helper.submit(self.tokenizer.to_json)
                _import_gigatoken()
                text.result()
            built = helper.submit(self.tokenizer.ready)
            _ = self._fast
            built.result()

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The type of tokens that can hold every id."""
        return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32)

    def encode(self, texts: pa.LargeStringArray, where: str = "") -> Lot:
        """The ids of each text, without any end-of-text token; some of the file `where` are checked."""
        ends, data = buffers(texts)
        self._batches += 1
        if where != self._where or self._batches % CHECK_EVERY == 0:
            self._where = where
            self.check([clipped(str(texts[index]), CHECKED_BYTES) for index in (0, len(texts) // 2)], where)
        ids, id_ends = self._fast_ids(ends, data) if self._fast else self._slow_ids(texts)
        return Lot(Encoded(data.data, ends.data, ids.data, id_ends.data), np.diff(ends), np.diff(id_ends))

    def check(self, texts: Sequence[str], where: str) -> None:
        """Raises `DataError` D040 at the first of `texts`, of the file `where`, on which the two libraries differ."""
        if not self._fast or not texts:
            return
        ids, ends = self._fast_ids(*buffers(pa.array(texts, pa.large_string())))
        for number, (text, right) in enumerate(zip(texts, self.tokenizer.encode_batch(texts), strict=True)):
            found = ids[ends[number] : ends[number + 1]]
            if not np.array_equal(found, right):
                raise _difference(where, text, found.tolist(), right.tolist())

    def _fast_ids(
        self, ends: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        import awkward as ak

        characters = ak.contents.NumpyArray(data, parameters={"__array__": "char"})
        strings = ak.contents.ListOffsetArray(ak.index.Index64(ends), characters, parameters={"__array__": "string"})
        assert self._fast is not None
        found = self._fast.encode_batch(ak.Array(strings)).layout.to_ListOffsetArray64(True)
        return np.asarray(found.content.data, np.uint32), np.asarray(found.offsets.data, np.int64)

    def _slow_ids(self, texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        found = self.tokenizer.encode_batch([str(text) for text in texts])
        ends = np.cumsum([0, *(len(ids) for ids in found)], dtype=np.int64)
        return np.concatenate(found, dtype=np.uint32) if found else np.empty(0, np.uint32), ends


def _gigatoken(tokenizer: Tokenizer) -> Any:
    """gigatoken's own reading of the tokenizer; None if it cannot read it.

    Special tokens are left out of it: in a text they are ordinary characters.
    """
    load_hf_json, text = _import_gigatoken(), tokenizer.to_json()
    start = text.index(ADDED) + len(ADDED)
    tokens, end = json.JSONDecoder().raw_decode(text, start)  # it comes first: the vocabulary need not be parsed
    ordinary = json.dumps([token for token in tokens if not token["special"]])
    try:
        return load_hf_json(text[:start] + ordinary + text[end:])
    except Exception:  # it raises whatever its parts raise
        return None


def _import_gigatoken() -> Any:
    import awkward  # noqa: F401  # a tenth of a second, which only who encodes pays, and here rather than in the midst
    from gigatoken.gigatoken_rs import load_hf_json

    return load_hf_json


def buffers(texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Where each text begins, and where the last one ends, in all their UTF-8 one after another."""
    places: Any
    data: Any
    _, places, data = texts.buffers()
    ends = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    whole = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    return ends - ends[0], whole[ends[0] : ends[-1]]


def _difference(where: str, text: str, found: list[int], right: list[int]) -> DataError:
    pairs = enumerate(itertools.zip_longest(found, right))
    place = next(place for place, (one, other) in pairs if one != other)
    said = f"gigatoken and tokenizers differ on {where}: the document {text[:40]!r}…, token {place}: "
    said += f"{found[place : place + 1] or 'none'} against {right[place : place + 1] or 'none'}"
    return DataError("D040", said, "--encoder tokenizers uses the slower library; please report the document")
