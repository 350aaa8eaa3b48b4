"""Near-duplicates that an audit knows fall on one side of the split."""

from pathlib import Path

import pytest
from helpers.corpora import parquet, splits_of, stories

from jaxgpt import audit
from jaxgpt.data.tokenizer import gpt2
from jaxgpt.errors import ConfigError
from jaxgpt.prepare.pipeline import prepare


def pairs(count: int) -> list[tuple[str, str]]:
    """Long texts, each with one that differs from it in a single word."""
    return [(text, text.replace(":", " again:", 1)) for text in (" ".join(stories(8, n)) for n in range(count))]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    texts = pairs(60)
    return parquet(tmp_path / "a.parquet", text=[one for one, _ in texts] + [other for _, other in texts])


def count_separated(train: list[str], val: list[str]) -> int:
    """How many pairs stand on both sides."""
    return sum((one in val) != (other in val) for one, other in pairs(60))


def test_near_duplicates_stay_in_one_split(tmp_path: Path, source: Path) -> None:
    prepare([str(source)], tmp_path / "first", val_tokens=4000)
    assert count_separated(*splits_of(tmp_path / "first")) > 3
    audit.main([str(tmp_path / "first")])
    made = prepare([str(source)], tmp_path / "second", val_tokens=4000, audit=tmp_path / "first")
    train, val = splits_of(tmp_path / "second")
    assert count_separated(train, val) == 0
    assert len(train) + len(val) == 120
    assert made.splits["val"].tokens >= 4000
    assert made.settings.clusters is not None
    again = prepare([str(source)], tmp_path / "second", val_tokens=4000, audit=tmp_path / "first")
    assert again == made


def test_audit_of_another_tokenizer_is_refused(tmp_path: Path, source: Path) -> None:
    prepare([str(source)], tmp_path / "data")
    with pytest.raises(ConfigError, match=r"C033.*has not been audited"):
        prepare([str(source)], tmp_path / "x", audit=tmp_path / "data")
    audit.main([str(tmp_path / "data")])
    with pytest.raises(ConfigError, match=r"C033.*not by a new tokenizer"):
        prepare([str(source)], tmp_path / "x", audit=tmp_path / "data", train_tokenizer=300)
    gpt2().save(tmp_path / "own.json")
    prepare([str(source)], tmp_path / "x", audit=tmp_path / "data", tokenizer=str(tmp_path / "own.json"))
