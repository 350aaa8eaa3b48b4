"""The comparison of vocabularies: the same validation documents, equal FLOPs, differences seed by seed."""

import importlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from jaxgpt import prepare
from jaxgpt.config import model_size

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("vocabulary")
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == BENCH:
            del sys.modules[name]


def prepare_here(files: Sequence[Path], folder: Path, *options: str) -> None:
    if not folder.exists():
        prepare.main([*map(str, files), "--out", str(folder), *options])


def test_all_vocabularies_validate_on_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: ModuleType
) -> None:
    words = [f"{first}{second}" for first in ("sea", "hill", "wood") for second in ("ward", "side", "land", "top")]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(20, 200))) for _ in range(200)]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setattr(vocabulary, "GPT2_VAL_TOKENS", 2_000)
    monkeypatch.setattr(vocabulary, "run_prepare", prepare_here)
    folders = vocabulary.prepare_vocabularies([source], [300, vocabulary.GPT2_ROWS], tmp_path)
    documents = [sorted(vocabulary.read_documents(folder)) for folder in folders.values()]
    assert documents[0] == documents[1]
    assert 3 < len(documents[0]) < 100
    assert set(documents[0]) <= set(texts)
    tokens = [vocabulary.val_split(folder).tokens for folder in folders.values()]
    assert tokens[0] != tokens[1]


def test_trials_take_equal_flops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: ModuleType) -> None:
    split = type("Split", (), {"tokens": 5_000})
    monkeypatch.setattr(vocabulary, "val_split", lambda folder: split)
    for size in (4_096, 50_304):
        trial = vocabulary.make_trial("small", size, 1, 5.2e12, tmp_path)
        config = trial.config(tmp_path, tmp_path)
        assert (config.model.vocab_size, config.run.eval_tokens) == (size, 5_000)
        flops = trial.steps * config.tokens_per_step * model_size.flops_per_token(config.model)
        assert flops == pytest.approx(5.2e12, rel=0.01)


def test_differences_are_between_trials_of_one_seed(vocabulary: ModuleType) -> None:
    facts = {"model": "small", "bytes_per_token": 4.0, "head_flops": 0.5, "steps": 10, "tokens": 1_000_000}
    bits = {(4_096, 1): 2.0, (4_096, 2): 2.4, (50_304, 1): 2.5, (50_304, 2): 2.9}
    results = [{**facts, "vocabulary": n, "seed": seed, "val_bits_per_byte": b} for (n, seed), b in bits.items()]
    small, gpt2 = vocabulary.summarize(results)
    assert small[-2:] == ["2.2000 ± 0.2000", "-0.5000 ± 0.0000"]
    assert gpt2[-1] == "0.0000 ± 0.0000"
