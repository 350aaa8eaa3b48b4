"""Losses per token of other tokenizers than GPT-2's: by bytes per token, else by the size of the vocabulary."""

import json
import math
from pathlib import Path

import pytest
from helpers.manifests import write_manifest

from jaxgpt import budget, errors
from jaxgpt.budget import options, plan, recommend, tokens
from jaxgpt.budget.plan import Plan
from jaxgpt.budget.recipes import Recipe
from jaxgpt.budget.scaling_law import CORPORA, ScalingQuery, predict_loss
from jaxgpt.budget.tokens import GPT2_TOKENS, token_scale

pytestmark = pytest.mark.usefixtures("planner_workspace")
SMALL_VOCABULARY = ["fineweb40m", "--gpu", "H100", "--model.vocab-size", "1024", "--corpus", "fineweb"]


def planned(*argv: str) -> Plan:
    return plan.make_plan(options.read([*argv]).inputs)


@pytest.mark.parametrize("bytes_per_token", [2.44, None])
def test_public_run_with_1024_tokens_is_predicted(bytes_per_token: float | None) -> None:
    """parameter-golf's 17M model on FineWeb ends at 2.0606 nats per token after 13,780 steps of 524,288 tokens."""
    asked = ScalingQuery(
        parameters=17.06e6,
        tokens=13_780 * 524_288,
        recipe=Recipe(learning_rate=0.04, optimizer="muon"),
        corpus=CORPORA["fineweb"],
        scale=token_scale(bytes_per_token, 1024),
    )
    expected = predict_loss(asked)
    assert expected.loss == pytest.approx(2.0606, abs=0.03)
    assert expected.low < 2.0606 < expected.high
    assert expected.loss == pytest.approx(sum(expected.terms.values()))


@pytest.mark.parametrize(
    ("vocabulary", "bytes_per_token"), [(256, 1.0), (1024, 2.44), (4096, 3.32), (50_257, 4.6), (65_536, 4.8)]
)
def test_vocabulary_tells_bytes_per_token(vocabulary: int, bytes_per_token: float) -> None:
    scale = tokens.vocabulary_scale(vocabulary)
    assert scale * tokens.GPT2_BYTES_PER_TOKEN == pytest.approx(bytes_per_token, rel=tokens.VOCAB_SPREAD)


def test_plan_says_what_a_token_is_worth(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(budget.main, [*SMALL_VOCABULARY, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert 1.8 < values["rows"][-1]["loss"] < 2.1
    assert values["data"]["corpus"] == "fineweb"
    assert "bits per byte, assumed from a vocabulary of 1,024" in values["summary"][1]
    assert any("per token of this tokenizer" in text for text in values["warnings"])


def test_bytes_of_the_manifest_come_before_the_vocabulary(tmp_path: Path) -> None:
    """The manifest has 4 bytes per token, the vocabulary of 1,024 entries would mean 2.4."""
    write_manifest(tmp_path / "fineweb", 3_000_000_000, 1024)
    by_manifest = planned(*SMALL_VOCABULARY, "--data", "fineweb")
    by_size = planned(*SMALL_VOCABULARY, "--unique-tokens", "3e9")
    assert "4.00 bytes per token" in str(by_manifest.warnings)
    assert by_manifest.last.loss > 1.5 * by_size.last.loss
    assert by_manifest.inputs.corpus.name == "fineweb"


@pytest.mark.parametrize("vocabulary", [50_257, 50_304, 50_432])
def test_paddings_of_gpt2_change_nothing(vocabulary: int) -> None:
    assert token_scale(None, vocabulary) is GPT2_TOKENS
    assert token_scale(4.2, vocabulary) is GPT2_TOKENS
    assert token_scale(None, None) is GPT2_TOKENS


def test_claim_is_compared_in_the_runs_own_tokens() -> None:
    run = planned(*SMALL_VOCABULARY)
    scale = run.last.prediction.token_scale
    limit = recommend.least_loss(run.model.parameters, run.inputs.corpus)
    assert f"would end at {scale * limit:.2f}" in recommend.recommend(run).sentences[-1]
    assert "out of reach" in recommend.recommend(run, claim=scale * limit - 0.1).sentences[-1]
    assert "needs" in recommend.recommend(run, claim=scale * limit + 0.05).sentences[-1]


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    scale = token_scale(2.3, 1024)
    assert scale.value == 0.5
    assert scale.bits_per_byte(1.5) == pytest.approx(GPT2_TOKENS.bits_per_byte(3.0))
    assert GPT2_TOKENS.bits_per_byte(3.0) == pytest.approx(3.0 / math.log(2) / 4.6)
