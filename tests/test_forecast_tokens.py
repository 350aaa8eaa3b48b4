"""Forecasts of runs with other tokenizers than GPT-2's."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.runs import cosine, drawn, upto

from jaxgpt import logs
from jaxgpt.budget.recommend import least_loss
from jaxgpt.diagnose.context import RunContext, resolve_context
from jaxgpt.diagnose.context.tokens import GPT2_TOKENS
from jaxgpt.diagnose.diagnosis import diagnose
from jaxgpt.diagnose.forecast.annealing import fit
from jaxgpt.diagnose.forecast.law_variants import LAW_VARIANTS
from jaxgpt.diagnose.forecast.run_forecast import forecast_run, scaling_law_prior
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import History

# A public run of 17M parameters with a vocabulary of 1,024, which ended at 2.0606 after 13,780 steps.
LOSSES = {
    0: 6.937,
    800: 2.3868,
    1600: 2.2631,
    2400: 2.2158,
    3200: 2.1881,
    4000: 2.1718,
    4800: 2.1579,
    5600: 2.1455,
    6400: 2.1377,
    7200: 2.1299,
    8000: 2.1232,
    8800: 2.1192,
    9600: 2.1138,
}
END = 2.0606
SCHEDULE = {"schedule": "trapezoid", "decay_steps": 1200, "total_steps": 13_780, "warmup": 0}
RUN = {**SCHEDULE, "batch_tokens": 524_288.0, "params": 17_059_912.0}


def table(last: int, first: int = 0) -> History:
    rows = "".join(f"{step},{loss}\n" for step, loss in LOSSES.items() if first <= step <= last)
    return logs.read_text("step,val_loss\n" + rows, "table")


def context(history: History, **options: object) -> RunContext:
    return resolve_context(history, Options(**(RUN | options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [4000, 9600])
@pytest.mark.parametrize(
    "facts", [{}, {"corpus": "fineweb", "optimizer": "muon", "peak_lr": 0.04, "weight_decay": 0.0}]
)
def test_small_vocabulary_is_forecast_within_its_interval(last: int, facts: dict[str, object]) -> None:
    history = table(last)
    forecast = forecast_run(history, context(history, **facts)).final_loss
    assert forecast is not None
    assert forecast.low95 <= END <= forecast.high95
    assert forecast.mean == pytest.approx(END, abs=0.02)
    assert forecast.high95 - forecast.low95 < 0.2


def scale_of(history: History, **metadata: object) -> tuple[float, float]:
    changed = replace(history, metadata=replace(history.metadata, **metadata))
    return context(changed).token_scale[:2]


def test_scale_is_known_best_from_bytes() -> None:
    history = table(4000)
    by_bytes = scale_of(history, bytes_per_token=2.442)
    by_vocabulary = scale_of(history, hyperparameters={"vocab_size": 1024.0})
    by_first_loss = scale_of(history)
    assert by_bytes == pytest.approx((0.53, 0.05), abs=0.01)
    assert by_vocabulary == pytest.approx((0.53, 0.08), abs=0.01)
    assert by_first_loss == pytest.approx((0.53, 0.08), abs=0.01)
    assert scale_of(history, hyperparameters={"vocab_size": 256.0})[0] == pytest.approx(1 / 4.6)


@pytest.mark.parametrize("facts", [{"vocab_size": 50_257.0}, {"vocab_size": 50_304.0}, {}])
def test_gpt2_tokens_need_no_scale(facts: dict[str, float]) -> None:
    history = table(4000, first=800)
    changed = replace(history, metadata=replace(history.metadata, hyperparameters=facts))
    assert context(changed).token_scale is GPT2_TOKENS
    assert not any("GPT-2 token" in note for note in context(changed).assumed)


def test_report_says_what_the_scale_was_derived_from() -> None:
    assumed = "\n".join(context(table(4000)).assumed)
    assert "a token is assumed to have 0.53 (± 0.04) of the loss of a GPT-2 token: a loss of 6.94 at step 0" in assumed


def test_forecast_of_smaller_tokens_is_the_same_per_byte() -> None:
    curve = upto(drawn(np.random.default_rng(2), cosine(4000, 100), 100, LAW_VARIANTS[2], 0.002), 0.5)
    half = replace(curve, losses=curve.losses / 2, token_scale=0.5)
    assert fit(half).final_loss()[:2] == pytest.approx([value / 2 for value in fit(curve).final_loss()[:2]], rel=1e-3)
    unsure = fit(replace(half, token_spread=0.15)).final_loss()
    assert unsure.sd > fit(half).final_loss().sd


def test_scaling_law_is_converted_to_the_tokens_of_the_run() -> None:
    history = table(4000)
    run = context(history, corpus="fineweb")
    law = scaling_law_prior(run)
    unscaled = scaling_law_prior(replace(run, token_scale=GPT2_TOKENS))
    assert law is not None
    assert unscaled is not None
    scale, spread, _ = run.token_scale
    assert law.mean == pytest.approx(scale * unscaled.mean, abs=1e-6)
    assert law.sd == pytest.approx(math.hypot(scale * unscaled.sd, spread * law.mean), rel=1e-3)


def test_target_is_compared_in_the_tokens_of_the_run() -> None:
    history = table(9600)
    run = context(history, corpus="fineweb", target_loss=1.5)
    target = diagnose(history, run).target
    assert target is not None
    assert not target.possible
    limit = float(target.reason.split("(limit ")[1].split(")")[0])
    assert limit == pytest.approx(run.token_scale.value * least_loss(run.parameters or 0, run.corpus), abs=0.01)
    assert limit < END


def test_target_without_a_forecast_is_in_the_same_tokens() -> None:
    history = table(0)
    unwarmed = replace(context(history, corpus="fineweb", target_loss=2.2), total_steps=None)
    target = diagnose(history, unwarmed).target
    assert target is not None
    assert target.expected is not None
    assert target.expected.mean < 5


def test_unusual_recipe_covers_an_unknown_optimizer() -> None:
    history = table(4000)
    run = replace(context(history, optimizer="other", corpus="fineweb"), token_scale=GPT2_TOKENS)
    usual = scaling_law_prior(run)
    unusual = scaling_law_prior(replace(run, dropout=0.3))
    assert usual is not None
    assert unusual is not None
    assert unusual.sd == pytest.approx(usual.sd, rel=0.02)
