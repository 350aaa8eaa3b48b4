"""The fast encoder against the `tokenizers` library, whose ids are the right ones."""

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from helpers.corpora import ids_of, parquet, stories
from tokenizers import models, pre_tokenizers, trainers

from jaxgpt.data import tokenizer as bpe
from jaxgpt.data.dataset import open_folder
from jaxgpt.data.tokenizer import Tokenizer, gpt2
from jaxgpt.errors import DataError
from jaxgpt.prepare import encoder as encoder_module
from jaxgpt.prepare.encoder import Encoder
from jaxgpt.prepare.pipeline import prepare

RANGES = [(32, 127), (0, 0x250), (0x300, 0x370), (0x400, 0x500), (0x660, 0x66A), (0x4E00, 0x4E80), (0x1F300, 0x1F600)]
BLANKS = "\t\n\r\v\f \x1c\x85\xa0\u2028\u3000\u200b\x00\ufeff"


def strange_texts(count: int) -> list[str]:
    """Characters from everywhere: most often of one kind, blanks among them, planes beyond the first too."""
    chance = random.Random(5)

    def character() -> str:
        kind = chance.randrange(len(RANGES) + 2)
        if kind < len(RANGES):
            return chr(chance.randrange(*RANGES[kind]))
        return chance.choice(BLANKS) if kind == len(RANGES) else chr(chance.randrange(0xE000, 0x110000))

    return ["".join(character() for _ in range(chance.randint(0, 60))) for _ in range(count)]


def ids(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    ends, data = encoder_module.utf8_buffers(pa.array(texts, pa.large_string()))
    encoded, id_ends = encoder._encode_fast(ends, data)
    return [encoded[a:b].tolist() for a, b in itertools.pairwise(id_ends)]


def test_gigatoken_gives_the_reference_ids(shared: Path) -> None:
    vectors = json.loads((shared / "gpt2/vectors.json").read_text(encoding="utf-8"))["vectors"]
    assert ids(Encoder(gpt2()), [v["text"] for v in vectors]) == [v["ids"] for v in vectors]


def test_gigatoken_agrees_with_tokenizers() -> None:
    texts = [*strange_texts(3000), "<|endoftext|>", "a<|endoftext|>b", " " * 5000, "ab" * 9000, "\n" * 999 + "x", ""]
    assert ids(Encoder(gpt2()), texts) == [encoded.tolist() for encoded in gpt2().encode_batch(texts)]


def test_gigatoken_agrees_on_a_trained_tokenizer() -> None:
    trained = bpe.train(stories(300, 1), 500)
    texts = strange_texts(500) + stories(20, 2)
    assert ids(Encoder(trained), texts) == [encoded.tolist() for encoded in trained.encode_batch(texts)]


def test_sliced_array_is_encoded() -> None:
    texts = pa.array(["never", "one", "two words", "never"], pa.large_string()).slice(1, 2)
    lot = Encoder(gpt2()).encode(texts)
    assert lot.sizes.tolist() == [3, 9]
    assert lot.tokens.tolist() == [len(gpt2().encode(text)) for text in ("one", "two words")]


def wrong(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, text: str, position: int) -> None:
    """Lets the fast library read `text` otherwise, at that token."""
    right = Encoder._encode_fast

    def altered(self: Encoder, ends: Any, data: Any) -> Any:
        encoded, id_ends = right(self, ends, data)
        for first, last, a in zip(ends, ends[1:], id_ends, strict=False):
            if data[first:last].tobytes() == text.encode():
                encoded = np.array(encoded)
                encoded[a + position] += 1
        return encoded, id_ends

    monkeypatch.setattr(Encoder, "_encode_fast", altered)


@pytest.mark.parametrize("at", [0, 16 * 3])
def test_mismatch_stops_the_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    texts = stories(60, 1)
    path = parquet(tmp_path / "a.parquet", text=texts)
    monkeypatch.setattr(
        "jaxgpt.prepare.sources.base.BATCH_BYTES", 1
    )  # a document, or what a row group cuts, is a batch
    monkeypatch.setattr(encoder_module, "CHECK_INTERVAL", 1)
    wrong(Encoder(gpt2()), monkeypatch, texts[at], 3)
    with pytest.raises(DataError, match=r"D040.*gigatoken and tokenizers differ on") as caught:
        prepare([str(path)], tmp_path / "data")
    assert str(path) in caught.value.message
    assert texts[at][:30] in caught.value.message
    assert "token 3: " in caught.value.message
    assert "--encoder tokenizers" in caught.value.help
    prepare([str(path)], tmp_path / "data", engine="tokenizers")


def test_both_engines_write_the_same_bytes(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=stories(200, 1))
    for engine in ("gigatoken", "tokenizers"):
        prepare([str(path)], tmp_path / engine, engine=engine, val_tokens=500)
    names = {file.name for file in (tmp_path / "gigatoken").iterdir()}
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "gigatoken" / name).read_bytes() == (tmp_path / "tokenizers" / name).read_bytes()


def unigram() -> Tokenizer:
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(stories(300, 1), trainer)
    return Tokenizer("unigram", inner)


def test_tokenizer_that_gigatoken_cannot_load(tmp_path: Path) -> None:
    encoder, texts = Encoder(unigram()), stories(20, 1)
    encoder.load()
    unigram_file = tmp_path / "tokenizer.json"
    encoder.tokenizer.save(unigram_file)
    prepare([str(parquet(tmp_path / "a.parquet", text=texts))], tmp_path / "data", tokenizer=str(unigram_file))
    expected = [number for text in texts for number in [*encoder.tokenizer.encode(text), encoder.tokenizer.eot]]
    assert ids_of(open_folder(tmp_path / "data").train).tolist() == expected


def test_gpt2_fingerprint_equals_the_computed_one() -> None:
    again = Tokenizer("again", tokenizers.Tokenizer.from_str(gpt2().to_json()))
    assert again.fingerprint == gpt2().fingerprint


def test_without_gigatoken_tokenizers_does_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path / "a.parquet", text=stories(200, 1))
    prepare([str(path)], tmp_path / "with", val_tokens=500)
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    prepare([str(path)], tmp_path / "without", val_tokens=500)
    warning = "warning: gigatoken is not installed, and tokenizers is tens of times slower: pip install gigatoken"
    assert capsys.readouterr().err.splitlines() == [warning]
    for file in (tmp_path / "with").iterdir():
        assert file.read_bytes() == (tmp_path / "without" / file.name).read_bytes()
