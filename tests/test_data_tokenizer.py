"""GPT-2's exact ids, texts that come back unchanged, and tokenizers that are trained, saved and malformed."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models

from jaxgpt import _loader
from jaxgpt.data import tokenizer
from jaxgpt.data.tokenizer import PIECE_LENGTH, Tokenizer, gpt2, load, split_text, train
from jaxgpt.errors import ConfigError, DataError

ENGLISH = "The ship's crew had 12 sailors, and the captain's ship wasn't the crew's ship. " * 40
CODE = "def f(x):\n    return x + 1\n\n\nclass Ship:\n    pass\n" * 40
ALPHABET = [
    " ",
    "  ",
    "\n",
    "\t",
    "a",
    "Z",
    "'s",
    "'ll",
    "9",
    ".",
    "!?",
    "é",
    "中",
    "🚢",
    "\u3000",
    "\xa0",
    "\x1c",
    "\x00",
]


def random_text(source: random.Random, length: int) -> str:
    """Half from an alphabet of what tokenizers stumble over, half any character that UTF-8 can hold."""
    characters = []
    for _ in range(length):
        code = source.randrange(0x110000)
        characters.append(source.choice(ALPHABET) if source.random() < 0.5 or 0xD800 <= code < 0xE000 else chr(code))
    return "".join(characters)


def printable_bytes() -> dict[int, str]:
    """The character for each byte in GPT-2's files: the byte itself if it is printable, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def test_gpt2_gives_the_reference_ids(shared: Path) -> None:
    vectors = json.loads((shared / "gpt2/vectors.json").read_text(encoding="utf-8"))
    texts = [vector["text"] for vector in vectors["vectors"]]
    ids = [vector["ids"] for vector in vectors["vectors"]]
    assert [gpt2().encode(text) for text in texts] == ids
    assert [list(encoded) for encoded in gpt2().encode_batch(texts)] == ids
    assert [gpt2().decode(encoded) for encoded in ids] == texts
    assert gpt2().eot == vectors["eot"]
    assert gpt2().vocab_size == tokenizer.GPT2_SIZE == 50257


def test_gpt2_json_equals_the_librarys() -> None:
    """The slow way as the oracle: the library is given the vocabulary and the merges one by one, and writes its own."""
    table = printable_bytes()

    def printable(token: bytes) -> str:
        return token.decode("latin-1").translate(table)

    vocabulary = [printable(token) for token in _loader.gpt2_vocabulary()] + [tokenizer.EOT]
    merges = [(printable(left), printable(right)) for left, right in _loader.gpt2_merges()]
    numbered = {token: number for number, token in enumerate(vocabulary)}
    slow = tokenizer._byte_level(models.BPE(vocab=numbered, merges=merges))
    tokenizer._add_eot(slow)
    assert gpt2().to_json() == slow.to_str()
    assert Tokenizer("again", slow).fingerprint == gpt2().fingerprint


@pytest.mark.parametrize("make", [gpt2, lambda: train([ENGLISH, CODE], 400)])
def test_decoding_inverts_encoding(make: Any) -> None:
    source, encoder = random.Random(7), make()
    texts = [random_text(source, source.randrange(200)) for _ in range(400)]
    assert [encoder.decode(ids) for ids in encoder.encode_batch(texts)] == texts


def test_words_are_split_before_merges_apply() -> None:
    """By GPT-2's pattern: of two newlines before a word, the second stays with nothing."""
    assert gpt2().encode("\n\nidate") == [198, 198, 20540]
    assert gpt2().encode("\n\n") == [628]
    learned = train([ENGLISH], 300)
    assert not any(" " in learned.decode([number])[1:] for number in range(learned.vocab_size))


def test_end_of_text_is_not_parsed_from_text(tmp_path: Path) -> None:
    gpt2().save(tmp_path / "tokenizer.json")
    for encoder in (gpt2(), load(tmp_path), train([ENGLISH], 300)):
        ids = encoder.encode("before<|endoftext|>after")
        assert encoder.eot not in ids
        assert encoder.decode(ids) == "before<|endoftext|>after"
        assert encoder.decode([encoder.eot or 0]) == "<|endoftext|>"


def test_pieces_of_a_long_text_have_the_same_ids() -> None:
    source = random.Random(3)
    for _ in range(1000):
        text = random_text(source, 60)
        parts = split_text(text, 3)
        assert "".join(parts) == text
        assert [i for part in parts for i in gpt2().encode(part)] == gpt2().encode(text)
    assert len(split_text(ENGLISH * 400)) == len(ENGLISH) * 400 // PIECE_LENGTH + 1


def test_lone_surrogate_becomes_the_replacement_character() -> None:
    for text, expected in [("a\ud800b", "a\ufffdb"), ("\udfff", "\ufffd"), ("\ud83d\udea2", "🚢")]:
        assert gpt2().decode(gpt2().encode(text)) == expected
    assert train([ENGLISH + "\ud800"], 280).vocab_size == 280


def test_id_outside_the_vocabulary_is_an_error() -> None:
    for number in (50257, -1, 2**40):
        with pytest.raises(DataError, match=rf"D010.*token {number}; the vocabulary of gpt2 is 50257"):
            gpt2().decode([1, number])


def test_training_is_deterministic_and_covers_every_byte() -> None:
    first, again, other = (train(texts, 310) for texts in ([ENGLISH, CODE], [ENGLISH, CODE], [CODE]))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.vocab_size == 310
    assert first.eot == 309
    assert len(first.encode(ENGLISH)) < len(ENGLISH) / 3
    assert len(train(["ab"], 1000).encode("xyz")) == 3


def test_saved_tokenizer_is_identical(tmp_path: Path) -> None:
    for encoder in (gpt2(), train([ENGLISH], 300)):
        encoder.save(tmp_path / "tokenizer.json")
        for again in (load(tmp_path), load(tmp_path / "tokenizer.json")):
            assert (again.fingerprint, again.eot) == (encoder.fingerprint, encoder.eot)
            assert again.encode(CODE) == encoder.encode(CODE)
            assert again.name == tmp_path.name


def test_fingerprint_is_independent_of_the_merges_format(tmp_path: Path) -> None:
    gpt2().save(tmp_path / "tokenizer.json")
    described = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"]["merges"] = [" ".join(pair) for pair in described["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(described, indent=3), encoding="utf-8")
    assert load(tmp_path).fingerprint == gpt2().fingerprint
    described["model"]["merges"][5:7] = reversed(described["model"]["merges"][5:7])
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    assert load(tmp_path).fingerprint != gpt2().fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "\x00",
        "[" * 100_000,
        '{"model": 3}',
        '{"model": {"vocab": 3}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
    ],
)
def test_malformed_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"D027.*tokenizer.json is not a tokenizer.json: \S+") as caught:
        load(path)
    assert ("it has no model" in caught.value.message) is (text in ("{}", "[]", "[" * 100_000) or ": 3" in text)


def test_missing_tokenizer_and_impossible_vocab_size(tmp_path: Path) -> None:
    for name in (tmp_path / "none.json", tmp_path, "gpt3"):
        with pytest.raises(ConfigError, match=r"C026.*not found\n  help: gpt2, the path"):
            load(name)
    for size in (256, 0, -1, 1 << 40):
        with pytest.raises(ConfigError, match=f"C027.*tokenizer of {size} tokens; 257 to"):
            train([ENGLISH], size)


def test_special_tokens_of_other_tokenizers_are_text(tmp_path: Path) -> None:
    gpt2().save(tmp_path / "tokenizer.json")
    described = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    extra = dict(described["added_tokens"][0], id=50257, content="<|tool|>")
    described["added_tokens"].append(extra)
    described["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    other: Tokenizer = load(tmp_path)
    assert other.vocab_size == 50258
    assert other.encode("a <|tool|> and more text") == gpt2().encode("a <|tool|> and more text")


# --- characters ------------------------------------------------------------------------------------------------------


def test_character_tokenizer_equals_the_library(tmp_path: Path) -> None:
    text = "First Citizen:\nBefore é🚢 <|endoftext|>"
    made = tokenizer.from_characters([text[:20], text[20:]])
    made.save(tmp_path / "tokenizer.json")
    for other in (made, load(tmp_path)):
        library = tokenizers.Tokenizer.from_str(other.to_json())
        library.encode_special_tokens = True
        ids = other.encode(text)
        assert ids == library.encode(text).ids == [sorted(set(text)).index(character) for character in text]
        assert other.decode(ids) == text
        assert (other.vocab_size, other.eot) == (len(set(text)) + 1, len(set(text)))
        assert other.byte_lengths is not None
        assert other.byte_lengths[ids].sum() == len(text.encode())
    assert made.name == f"char-{made.vocab_size}"


def test_unknown_character_is_refused() -> None:
    made = tokenizer.from_characters(["abc"])
    with pytest.raises(ConfigError, match=r"C069\]: the character 'é' is not in the vocabulary of tokenizer 'char-4'"):
        made.encode("abé")


@pytest.mark.parametrize("pattern", ["(a+)+$", "((a{1,20}){1,20}){1,20}$"])
def test_pattern_that_backtracks_for_ever_is_an_error(tmp_path: Path, pattern: str) -> None:
    splitter = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    described = {"version": "1.0", "added_tokens": [], "pre_tokenizer": splitter, "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    hostile = load(tmp_path / "tokenizer.json")
    with pytest.raises(DataError) as caught:
        hostile.encode("a" * 40 + "!")
    assert caught.value.code == "D027"
