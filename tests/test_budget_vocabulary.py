"""The choice of a vocabulary: text in the same time, what it costs at equal text, and what is said of it."""

import json
import math
from dataclasses import replace

import pytest

from jaxgpt import budget, errors
from jaxgpt.budget import command, options, vocabulary
from jaxgpt.budget.plan import Inputs
from jaxgpt.config.model_size import flops_per_token

pytestmark = pytest.mark.usefixtures("planner_workspace")


def inputs(*argv: str) -> Inputs:
    return command.calibrated_inputs(options.read([*argv]))


def without_time(asked: Inputs) -> Inputs:
    """As for a CPU that was not measured."""
    return replace(asked, device=None, calibration=None)


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert errors.run(budget.main, [*argv, "--verbose"]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_text_follows_flops_without_a_step_time() -> None:
    """By hand, for 16,384: 6 x 384 FLOPs less for each of 33,920 rows, and tokens of 0.89 times as much text."""
    asked = without_time(inputs("fineweb40m", "--gpu", "RTX 4070"))
    choice = vocabulary.compare(asked, 20_000, 16_384)
    flops = flops_per_token(asked.config.model)
    assert choice.speed == pytest.approx(flops / (flops - 6 * 384 * (50_304 - 16_384)))
    assert choice.text == pytest.approx(choice.speed * 0.2422 / 0.2723, rel=1e-3)
    assert choice.steps == round(20_000 * choice.speed)
    assert choice.own_head_fraction == pytest.approx(6 * 384 * 50_304 / flops)


def test_equal_text_leaves_only_the_cost_of_the_vocabulary() -> None:
    """The smaller embedding does not count as a smaller model: two halvings below 24,576 cost 0.010 bits."""
    change, sd = vocabulary.change_in_bits(inputs("fineweb40m", "--gpu", "H100"), 20_000, 1.0, 6_144)
    assert change == pytest.approx(2 * vocabulary.COST)
    assert sd == pytest.approx(math.hypot(2 * vocabulary.COST_SD, vocabulary.NOISE_SD))


def test_more_text_gains_what_more_steps_gain() -> None:
    """Twice the text and no halving below 24,576: the gain of twice the steps, in bits per byte."""
    asked = inputs("fineweb40m", "--gpu", "H100")
    change, _ = vocabulary.change_in_bits(asked, 20_000, 2.0, 32_768)
    law = 0.269 * ((20_000 * 524_288 / 1e10) ** -0.262) * (1 - 2**-0.262)
    repeated = vocabulary.change_in_bits(replace(asked, tokens=replace(asked.tokens, unique=None)), 20_000, 2.0, 32_768)
    assert repeated[0] == pytest.approx(-law / math.log(2) / 4.6)
    assert change > repeated[0]  # repeated tokens gain less


@pytest.mark.parametrize(
    ("outside", "width", "trained", "best"),
    [("fineweb40m", 384, 20_000, 11_800), ("gpt2_124m", 768, 19_073, 12_000)],
)
def test_published_formula_has_its_best_there(outside: str, width: int, trained: int, best: int) -> None:
    """Where the derivative of Tao et al.'s loss, as their script states it, is zero."""
    config = inputs(outside, "--gpu", "H100").config
    assert config.model.n_embd == width
    assert vocabulary.published_best(config, trained * config.tokens_per_step) == pytest.approx(best, rel=0.03)


def test_large_head_gets_a_smaller_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "fineweb40m", "--gpu", "H100")
    assert "Train a vocabulary of 32,768 on your text (prepare --train-tokenizer 32768" in text
    assert "the LM head takes 29% of the FLOPs instead of 39%" in text
    assert "bits per byte lower, by runs of Tao et al. 2024, whose own formula has its best at 12,000)" in text


def test_short_run_is_expected_to_end_lower(capsys: pytest.CaptureFixture[str]) -> None:
    """With 100 steps, more text brings more than the uncertainty of it."""
    text = answer(capsys, "fineweb40m", "--gpu", "H100", "--lengths", "100", "--optim.warmup-steps", "10")
    assert "That is expected to end 0.0" in text
    assert "hardly changes" not in text


def test_small_model_gets_speed_and_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "books", "--gpu", "H100")
    assert "bits per byte below GPT-2's with 0.8M parameters outside the embedding" in text
    assert errors.run(budget.main, ["books", "--gpu", "H100", "--json"]) == 0
    choice = json.loads(capsys.readouterr().out)["recommendation"]["vocabulary"]
    assert choice["bits_per_byte"] is None
    assert choice["text"] > 1.3


@pytest.mark.parametrize("argv", [("gpt2_124m",), ("shakespeare_char",), ("quickstart",)])
def test_suitable_vocabulary_is_not_mentioned(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    assert "Train a vocabulary" not in answer(capsys, *argv, "--gpu", "H100")


def test_smaller_embedding_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 1.155 (0.2755^-0.214 - 0.4056^-0.214) nats, times the scale of 16,384 entries."""
    text = answer(capsys, "fineweb40m", "--gpu", "H100", "--model.vocab-size", "16384")
    assert "takes the smaller embedding for a smaller model: 0.10 nats of the predicted loss" in text
