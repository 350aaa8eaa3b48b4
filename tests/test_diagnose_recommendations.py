"""Recommendation and other ends: commands that the command line takes, and that train what was forecast."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_diagnose_checks import (
    BATCH,
    CARD,
    COSINE,
    REPEATED,
    SIZE,
    SUPPORTED,
    TOTAL,
    clean,
    context,
    history,
    judged,
    jump,
    made,
    rising,
    training,
    widening,
)

from jaxgpt.budget import scaling_law
from jaxgpt.config import Config, schedule
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import parameters
from jaxgpt.config.options import Parser
from jaxgpt.diagnose import diagnosis, suggested_commands
from jaxgpt.diagnose.checks import recommendations
from jaxgpt.diagnose.context import Baseline, RunContext
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.diagnose.forecast import scenarios
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.logs.history import History

CONFIG = load_config("fineweb40m").replace({"run": {"steps": TOTAL, "name": "mine"}, "optim": {"warmup_steps": 100}})


def parsed(command: str) -> tuple[Config, argparse.Namespace]:
    """What `train` makes of a command."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "jaxgpt.train"]
    parser = Parser("train", "")
    parser.add_argument("--fork")
    return parse_config(parser, words[3:])


def of_ours(own: RunContext, seen: History) -> tuple[RunContext, History]:
    """The same run as one of jaxgpt's, with a config."""
    config = CONFIG.replace({"optim": {"warmup_steps": min(own.optim.warmup_steps, own.total_steps or 1)}})
    return replace(own, config=config), replace(seen, format=suggested_commands.OWN)


EVERY = [pytest.param(*case, id=f"{name} {i}") for name, held in SUPPORTED.items() for i, case in enumerate(held)]


@pytest.mark.parametrize(("own", "seen"), EVERY)
def test_every_command_is_taken(own: RunContext, seen: History) -> None:
    own, seen = of_ours(own, seen)
    posterior, *_ = forecast_run(seen, own)
    told = [one.command for finding in judged(own, seen).values() for one in finding.recommendations]
    told += [one.command for one in (scenarios.forecast_scenarios(seen, own, posterior) if posterior else ())]
    for command in filter(None, told):
        if shlex.split(command)[2] == "jaxgpt.train":
            config, options = parsed(command)
            assert config.run.name != CONFIG.run.name or not options.fork


def test_what_is_forecast_is_what_the_command_trains() -> None:
    own, seen = of_ours(*made(done=1000))
    for ending in scenarios.possible_scenarios(seen, own):
        config, options = parsed(scenarios.scenario_command(seen, own, ending))
        assert options.fork == "runs/mine"
        assert config.run.steps == ending.steps
        trained = schedule.learning_rates(config.optim, config.run.steps)[1000:] / own.optim.learning_rate
        np.testing.assert_allclose(ending.lr_fractions(own)[1000:], trained, atol=2e-3)
        np.testing.assert_array_equal(ending.lr_fractions(own)[:1000], own.lr_fractions[:1000])


def test_ending_now_falls_to_nothing_from_where_the_rate_stands() -> None:
    own, _ = made(done=1000)
    ending = scenarios.cooldown_now(own, 1000)
    assert ending is not None
    rates = ending.lr_fractions(own)
    assert len(rates) == 1100
    assert rates[1000] == pytest.approx(own.lr_fractions[999], rel=0.02)
    assert np.all(np.diff(rates[1000:]) < 0)
    assert rates[-1] < 0.02


def test_a_log_of_other_software_has_nothing_to_fork() -> None:
    own, seen = of_ours(*made(done=1000))
    posterior, *_ = forecast_run(seen, own)
    assert posterior is not None
    foreign = scenarios.forecast_scenarios(replace(seen, format="nanogpt"), own, posterior)
    assert [one.command for one in foreign if one.what.startswith("end now")] == [""]
    assert not any("--fork" in one.command for one in foreign)
    assert sum(bool(one.command) for one in foreign) == len(foreign) - 1


def test_a_run_that_is_over_is_not_gone_on_with() -> None:
    own, seen = of_ours(*made())
    assert "--fork" not in suggested_commands.train(seen, own, {"optim": {"grad_clip": 0.5}}, name="clipped", fork=True)
    more = suggested_commands.train(seen, own, {"run": {"steps": 2 * TOTAL}}, name="longer", fork=True)
    assert more.endswith("--fork runs/mine")


def test_a_run_that_broke_goes_on_from_before_it_did() -> None:
    own, seen = of_ours(*made(losses=training(jump(1000, 60)), saves=(500, 900, 1400), done=1500))
    found = judged(own, seen)["divergence"]
    config, options = parsed(found.recommendations[0].command)
    assert options.fork == "runs/mine/checkpoints/900"
    assert config.optim.learning_rate == pytest.approx(own.optim.learning_rate / recommendations.GENTLER, rel=0.02)
    early = judged(own, replace(seen, saves=(1400,)))["divergence"]
    assert "--fork" not in early.recommendations[0].command


def test_a_contradiction_gives_no_command() -> None:
    own, seen = of_ours(*made())
    assert suggested_commands.train(seen, own, {"optim": {"min_lr": 1.0}}) == ""
    assert suggested_commands.train(seen, replace(own, config=None), {}) == ""


def test_a_config_without_a_name_is_written_as_changes_to_the_nearest() -> None:
    own, seen = of_ours(*made())
    small = load_config("quickstart").replace({"optim": {"beta2": 0.97}})
    command = suggested_commands.train(seen, replace(own, config=small), {}, name="again")
    assert "--config quickstart --optim.beta2 0.97 --run.name" in command
    assert parsed(command)[0].optim == small.optim


def test_a_larger_model_is_advised_inside_the_fitted_range_alone() -> None:
    own, seen = made(CARD | {"device": None})
    found = judged(own, seen)["capacity-limited"]
    larger = next(one for one in found.recommendations if "for as many FLOPs" in one.what)
    config, _ = parsed(larger.command)
    size, tokens = parameters(config.model), config.run.steps * config.tokens_per_step
    assert scaling_law.extrapolation(size, tokens)[0] == ()
    assert size > SIZE
    assert size * tokens == pytest.approx(SIZE * BATCH * TOTAL, rel=0.01)
    assert larger.gain is not None
    assert larger.low is not None
    assert 0 < larger.low < larger.gain
    far = judged(*made(CARD | {"parameters": 2e6}))["capacity-limited"]
    assert far.recommendations == ()


def test_what_surely_gains_comes_first() -> None:
    def of(*held: Recommendation) -> Finding:
        return Finding(id="input-or-overhead-bound", conditions=(), recommendations=held)

    unsure = Recommendation(what="unsure", gain=0.5, low=-0.1, high=1.1)
    small, large = (Recommendation(what=str(gain), gain=gain, low=gain / 2, high=2 * gain) for gain in (0.01, 0.2))
    words = Recommendation(what="words")
    told = recommendations.ordered([of(words, unsure), of(small, large), of(large)])
    assert told == (large, small, unsure, words)


def beside(
    own: dict[str, Any], baseline: dict[str, Any] | None = None, above: float = 0.3, **told: Any
) -> dict[str, str]:
    """Statuses of a run that ends `above` the clean curve beside a baseline on it."""
    other = context(**(baseline or {}))
    lifted = told.pop("val", lambda steps: clean(context())(steps) + above * steps / TOTAL)
    mine = context(baseline=Baseline(history(other), other), **own)
    return {name: finding.status for name, finding in judged(mine, history(mine, val=lifted, **told)).items()}


CAUSES = ("lr-too-high", "not-annealed", "capacity-limited", "overfitting", "recipe-or-bug", "data-limited")
HOT, HELD = replace(COSINE, learning_rate=5e-3, min_lr=5e-4), replace(COSINE, schedule="constant")


@pytest.mark.parametrize(
    ("own", "told", "cause"),
    [
        ({"optim": HOT}, {}, {"lr-too-high"}),
        ({"optim": HELD}, {}, {"not-annealed"}),
        ({"parameters": 1e7}, {}, {"capacity-limited"}),
        ({"unique_tokens": 1e9}, {"val": rising, "gap": widening}, {"overfitting", "data-limited"}),
        ({}, {}, {"recipe-or-bug"}),
        ({"optim": replace(COSINE, warmup_steps=0)}, {}, {"recipe-or-bug"}),
        ({"optim": HELD}, {"val": lambda steps: clean(context())(steps) + 0.3}, set()),
        ({}, {"above": 0.0}, set()),
        ({"optim": HOT, "parameters": 1e7}, {"above": 0.0}, set()),
    ],
)  # fmt: skip
def test_beside_a_baseline_the_difference_that_matters_is_the_cause(
    own: dict[str, Any], told: dict[str, Any], cause: set[str]
) -> None:
    found = beside(own, **told)
    assert {name for name in CAUSES if found[name] == "confirmed"} == cause


def test_a_baseline_that_still_warms_up_has_not_decayed_earlier() -> None:
    found = beside(
        {"optim": replace(COSINE, warmup_steps=0)}, {"optim": replace(COSINE, warmup_steps=400)}, done=200, above=3.0
    )
    assert found["not-annealed"] == "ruled out"
    assert found["recipe-or-bug"] == "confirmed"


def test_the_missing_warmup_is_named_with_a_command() -> None:
    other = context()
    lifted = history(other, val=lambda steps: clean(other)(steps) + 0.1)
    own, seen = of_ours(
        context(optim=replace(COSINE, warmup_steps=0), baseline=Baseline(history(other), other)), lifted
    )
    fault = judged(own, seen)["recipe-or-bug"]
    assert "a warmup of 0 steps, the baseline's 100" in fault.conditions[0].evidence
    assert parsed(fault.recommendations[0].command)[0].optim.warmup_steps == 100
    assert fault.recommendations[0].gain == pytest.approx(0.1, abs=0.02)


def test_two_differences_at_once_are_told_apart_by_nothing() -> None:
    found = beside({"optim": HOT, "parameters": 1e7})
    assert found["lr-too-high"] == found["capacity-limited"] == "ruled out"


def test_a_baseline_that_covers_other_steps_says_nothing() -> None:
    other = context()
    far = replace(history(other), evaluations=())
    mine = context(optim=HOT, baseline=Baseline(far, other))
    assert judged(mine, history(mine))["lr-too-high"].status == "unknown"


def test_repeated_text_is_named_by_the_missing_and_the_stronger() -> None:
    own, seen = of_ours(*made(REPEATED, val=rising, gap=widening))
    found = judged(own, seen)
    best = found["severe-overfitting"].recommendations[0]
    assert best.command == "python -m jaxgpt.evaluate runs/mine --step best"
    decay = found["missing-regularization"].recommendations[0]
    assert parsed(decay.command)[0].optim.weight_decay == recommendations.STRONG_DECAY
    assert decay.gain == pytest.approx(recommendations.MENDED * scaling_law.repetition_cost(2e8, 1e10, 1e9))


def test_baseline_and_claim_are_options(tmp_path: Path) -> None:
    from jaxgpt import logs
    from jaxgpt.diagnose.context import resolve_context
    from jaxgpt.diagnose.options import Options

    for name, last in (("mine", 4.5), ("baseline", 4.0)):
        rows = [f"{step},{last + 100 / (step + 20)}" for step in range(0, 1001, 50)]
        (tmp_path / f"{name}.csv").write_text("step,val_loss\n" + "\n".join(rows))
    seen = logs.read(tmp_path / "mine.csv")
    own = resolve_context(
        seen, Options(baseline=str(tmp_path / "baseline.csv"), target_loss=3.0, total_steps=1000, config="fineweb40m")
    )
    found = diagnosis.diagnose(seen, own, now=0.0)
    level = next(v for v in found.findings if v.id == "recipe-or-bug").conditions[0]
    assert "+0.500" in level.evidence
    assert [claim.possible for claim in found.claims if claim.high == 3.0] == [False]
