"""Small corpora, and what the command makes of them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxgpt._loader import hash_bytes
from jaxgpt.data.dataset import Split, open_folder
from jaxgpt.data.tokenizer import gpt2

EOT = 50256


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=100, compression="zstd")
    return path


def some_texts() -> list[str]:
    """Of different lengths, every tenth one like the one before; the highest id, of " gazed", only in the first."""
    numbers = [n - (n % 10 == 9) for n in range(1, 300)]
    return ["Document 0 — é. gazed", *(f"Document {n} — é. " * (1 + n * 7 % 23) for n in numbers)]


def stories(count: int, seed: int) -> list[str]:
    """Texts of random words, from one to a hundred."""
    source = random.Random(seed)
    words = ["sea", "ship", "storm", "island", "whale", "captain", "night", "salt"]
    return [f"Tale {seed}.{n}: " + " ".join(source.choices(words, k=source.randint(1, 100))) for n in range(count)]


def ids_of(split: Split) -> "np.ndarray[Any, Any]":
    return split.ids(0, split.tokens)


def documents_in(split: Split | None) -> list[str]:
    """The texts that the tokens of `split` stand for."""
    assert split is not None
    return gpt2().decode(ids_of(split)).split("<|endoftext|>")[:-1]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def splits_of(folder: Path) -> tuple[list[str], list[str]]:
    """The documents of train and of val."""
    data = open_folder(folder)
    return documents_in(data.train), documents_in(data.val) if data.val else []


def expected_val(texts: Sequence[str], val_tokens: int) -> list[str]:
    """The documents of lowest hash that reach `val_tokens`, in their order: the split, worked out the long way."""
    lengths = {text: len(gpt2().encode(text)) + 1 for text in set(texts)}
    chosen: set[str] = set()
    taken = 0
    for text in sorted(lengths, key=lambda text: hash_bytes(text.encode())):
        if taken >= val_tokens:
            break
        chosen.add(text)
        taken += lengths[text] * texts.count(text)
    return [text for text in texts if text in chosen]
