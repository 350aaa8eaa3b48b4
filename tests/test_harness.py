"""`evaluate --tasks`: our model in lm-evaluation-harness, against sums of its own log-probabilities."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxgpt import errors, evaluate

NEEDS_HARNESS = "lm-evaluation-harness is not installed: pip install '.[eval]'"


def test_without_the_harness_the_error_says_what_to_install(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "jaxgpt.generation.harness", raising=False)
    assert errors.run(evaluate.main, ["a", "--tasks", "piqa"]) == 2
    assert (
        "error[C084]: --tasks needs lm-evaluation-harness\n  help: pip install 'jaxgpt[eval]'"
        in capsys.readouterr().err
    )


@pytest.fixture
def model(finished: Path) -> Any:
    pytest.importorskip("lm_eval", reason=NEEDS_HARNESS)
    import jaxgpt

    return jaxgpt.load("a").model


def slow_score(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One forward pass of exactly these tokens."""
    from jaxgpt.export.exporter import exact_logits

    ids = (context + continuation)[-(model.config.model.block_size + 1) :]
    logits_TxV = exact_logits(model, np.array(ids[:-1])).astype(np.float64)
    targets = ids[-len(continuation) :]
    rows = logits_TxV[-len(continuation) :]
    logprobs = [row[target] - math.log(np.exp(row).sum()) for row, target in zip(rows, targets)]
    return sum(logprobs), all(int(row.argmax()) == target for row, target in zip(rows, targets))


def test_continuations_have_the_scores_of_single_passes(model: Any) -> None:
    from jaxgpt.generation.harness import HarnessModel

    rng = np.random.default_rng(0)
    lengths = [(1, 1), (3, 5), (10, 6), (15, 2), (40, 4), (2, 14)]  # the block has 16 tokens
    pairs = [tuple(rng.integers(0, 64, n).tolist() for n in pair) for pair in lengths]
    requests = [(("", ""), context, continuation) for context, continuation in pairs]
    for (score, is_greedy), (context, continuation) in zip(
        HarnessModel(model, 4)._loglikelihood_tokens(requests), pairs
    ):
        expected, expected_greedy = slow_score(model, context, continuation)
        assert score == pytest.approx(expected, abs=1e-4)
        assert is_greedy == expected_greedy


def test_local_tasks(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = [{"context": '!"#', "good": "$%", "bad": "&'(", "text": "!\"#$%&'()*+,-./0123456789"}] * 3
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, documents)))
    task = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
    }
    choice = {"output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": ["{{good}}", "{{bad}}"]}
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    metrics = {
        "choice": (choice | {"doc_to_target": 0, "target_delimiter": ""}, "acc"),
        "rolling": (rolling, "bits_per_byte"),
    }
    for name, (values, metric) in metrics.items():
        described = task | values | {"task": name, "metric_list": [{"metric": metric}]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(described))  # JSON is YAML
    argv = ["a", "--tasks", "choice,rolling", "--task-dir", str(tmp_path), "--limit", "2"]
    assert errors.run(evaluate.main, argv) == 0
    out = capsys.readouterr().out
    assert "choice: acc " in out
    assert "rolling: bits_per_byte " in out
    (written,) = Path("runs/a/evaluations").glob("step-20-*.json")
    assert json.loads(written.read_text())["limit"] == 2
    assert errors.run(evaluate.main, ["a", "--tasks", "chioce", "--task-dir", str(tmp_path)]) == 2
    assert "did you mean 'choice'?" in capsys.readouterr().err
