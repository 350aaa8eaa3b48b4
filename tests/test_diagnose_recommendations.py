"""Recommendations and scenarios: their commands can be parsed, and train exactly the config that was forecast."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.synthetic_runs import (
    BATCH,
    CARD,
    CONFIRMED,
    COSINE,
    REPEATED,
    SIZE,
    TOTAL,
    analyze,
    find_all,
    healthy_curve,
    jump,
    make_context,
    make_history,
    make_run,
    rising,
    training,
    widening,
)

from jaxgpt.budget import devices, memory, scaling_law
from jaxgpt.config import Config, schedule
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import parameters
from jaxgpt.config.options import Parser
from jaxgpt.diagnose import diagnosis, messages
from jaxgpt.diagnose.checks import recommendations
from jaxgpt.diagnose.checks.larger_model import for_same_flops
from jaxgpt.diagnose.context import Baseline, RunContext
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.diagnose.forecast import scenarios
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.diagnose.suggested_commands import train_command
from jaxgpt.logs.formats import jaxgpt_log, nanogpt
from jaxgpt.logs.history import History, RunMetadata

CONFIG = load_config("fineweb40m").replace({"run": {"steps": TOTAL, "name": "mine"}, "optim": {"warmup_steps": 100}})


def parsed(command: str) -> tuple[Config, argparse.Namespace]:
    """The config that `train` reads from a command, and its other options."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "jaxgpt.train"]
    parser = Parser("train", "")
    parser.add_argument("--fork")
    return parse_config(parser, words[3:])


def with_config(context: RunContext, history: History) -> tuple[RunContext, History]:
    """The same run as one of jaxgpt's, with a config."""
    config = CONFIG.replace({"optim": {"warmup_steps": min(context.optim.warmup_steps, context.total_steps or 1)}})
    return replace(context, config=config), replace(history, traits=jaxgpt_log.TRAITS)


EVERY = [pytest.param(*case, id=f"{name} {i}") for name, cases in CONFIRMED.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize(("context", "history"), EVERY)
def test_every_command_can_be_parsed(context: RunContext, history: History) -> None:
    context, history = with_config(context, history)
    posterior, *_ = forecast_run(history, context)
    commands = [one.command for finding in find_all(context, history).values() for one in finding.recommendations]
    commands += [
        one.command for one in (scenarios.forecast_scenarios(history, context, posterior) if posterior else ())
    ]
    for command in filter(None, commands):
        if shlex.split(command)[2] == "jaxgpt.train":
            config, options = parsed(command)
            assert config.run.name != CONFIG.run.name or not options.fork


def test_commands_train_what_was_forecast() -> None:
    context, history = with_config(*make_run(done=1000))
    for ending in scenarios.possible_scenarios(history, context):
        config, options = parsed(scenarios.scenario_command(history, context, ending))
        assert options.fork == "runs/mine"
        assert config.run.steps == ending.steps
        trained = schedule.learning_rates(config.optim, config.run.steps)[1000:] / context.optim.learning_rate
        np.testing.assert_allclose(ending.lr_fractions(context)[1000:], trained, atol=2e-3)
        np.testing.assert_array_equal(ending.lr_fractions(context)[:1000], context.lr_fractions[:1000])


def test_commands_have_the_length_of_the_run_not_of_its_config() -> None:
    context, history = with_config(*make_run(done=1000))
    history = replace(history, traits=nanogpt.TRAITS)
    context = replace(context, total_steps=TOTAL // 2)
    config, _ = parsed(train_command(history, context, {"optim": {"warmup_steps": 50}}, name="warmup"))
    assert config.run.steps == TOTAL // 2


def test_cooldown_starts_at_the_current_learning_rate() -> None:
    context, _ = make_run(done=1000)
    ending = scenarios.cooldown_now(context, 1000)
    assert ending is not None
    rates = ending.lr_fractions(context)
    assert len(rates) == 1100
    assert rates[1000] == pytest.approx(context.lr_fractions[999], rel=0.02)
    assert np.all(np.diff(rates[1000:]) < 0)
    assert rates[-1] < 0.02


def test_logs_of_other_software_cannot_be_forked() -> None:
    context, history = with_config(*make_run(done=1000))
    posterior, *_ = forecast_run(history, context)
    assert posterior is not None
    foreign = scenarios.forecast_scenarios(replace(history, traits=nanogpt.TRAITS), context, posterior)
    assert [one.command for one in foreign if one.description.startswith("cool down now")] == [""]
    assert not any("--fork" in one.command for one in foreign)
    assert sum(bool(one.command) for one in foreign) == len(foreign) - 1


def test_a_finished_run_is_only_forked_to_extend_it() -> None:
    context, history = with_config(*make_run())
    assert "--fork" not in train_command(
        history, context, {"optim": {"grad_clip": 0.5}}, name="clipped", checkpoint="latest"
    )
    more = train_command(history, context, {"run": {"steps": 2 * TOTAL}}, name="longer", checkpoint="latest")
    assert more.endswith("--fork runs/mine")


def test_a_diverged_run_is_forked_from_before_the_rise() -> None:
    context, history = with_config(*make_run(losses=training(jump(1000, 60)), saves=(500, 900, 1400), done=1500))
    finding = find_all(context, history)["divergence"]
    config, options = parsed(finding.recommendations[0].command)
    assert options.fork == "runs/mine/checkpoints/900"
    assert config.optim.learning_rate == pytest.approx(
        context.optim.learning_rate / recommendations.LR_REDUCTION, rel=0.02
    )
    early = find_all(context, replace(history, saves=(1400,)))["divergence"]
    assert "--fork" not in early.recommendations[0].command


def test_contradicting_changes_give_no_command() -> None:
    context, history = with_config(*make_run())
    assert train_command(history, context, {"optim": {"min_lr": 1.0}}) == ""
    assert train_command(history, replace(context, config=None), {}) == ""


def test_an_unnamed_config_is_written_as_changes() -> None:
    context, history = with_config(*make_run())
    small = load_config("quickstart").replace({"optim": {"beta2": 0.97}})
    command = train_command(history, replace(context, config=small), {}, name="again")
    assert "--config quickstart --optim.beta2 0.97 --run.name" in command
    assert parsed(command)[0].optim == small.optim


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("config_name", [None, "quickstart", "fineweb40m"])
def test_random_configs_survive_their_command(seed: int, config_name: str | None) -> None:
    """Commands are parsed back as exactly the config, with all digits of floats and with empty lists."""
    random = np.random.default_rng(seed)
    changed = load_config("quickstart").replace(
        {
            "data": {"sources": [(), ("a b.parquet",), ("x", "none")][seed % 3]},
            "optim": {
                "learning_rate": float(random.lognormal(-7, 1)),
                "min_lr": 0.0,
                "beta2": float(random.uniform(0.9, 0.9999)),
                "weight_decay": float(random.uniform(0, 2)),
                "decay_steps": [None, int(random.integers(200, 10**9))][seed % 2],
            },
            "run": {
                "eval_tokens": int(random.integers(1, 2**53)),
                "early_stop": bool(seed % 2),
                "sample_prompt": ["", "-1 'x' $y", "none"][seed % 3],
            },
        }
    )
    context, history = with_config(*make_run())
    context = replace(context, config=changed, config_name=config_name)
    assert parsed(train_command(history, context, {}))[0] == changed


def test_a_larger_model_needs_the_fitted_range() -> None:
    context, history = make_run(CARD | {"device": None})
    finding = find_all(context, history)["capacity-limited"]
    larger = next(one for one in finding.recommendations if "For the same compute" in one.action)
    config, _ = parsed(larger.command)
    size, tokens = parameters(config.model), config.run.steps * config.tokens_per_step
    assert scaling_law.extrapolation(size, tokens)[0] == ()
    assert size > SIZE
    assert size * tokens == pytest.approx(SIZE * BATCH * TOTAL, rel=0.01)
    assert larger.gain is not None
    assert larger.low is not None
    assert 0 < larger.low < larger.gain
    far = find_all(*make_run(CARD | {"parameters": 2e6}))["capacity-limited"]
    assert far.recommendations == ()


def test_certain_gains_come_first() -> None:
    def finding(*items: Recommendation) -> Finding:
        return Finding(id="input-or-overhead-bound", conditions=(), recommendations=items)

    unsure = Recommendation(action="unsure", gain=0.5, low=-0.1, high=1.1)
    small, large = (Recommendation(action=str(gain), gain=gain, low=gain / 2, high=2 * gain) for gain in (0.01, 0.2))
    words = Recommendation(action="words")
    ordered = recommendations.ordered([finding(words, unsure), finding(small, large), finding(large)])
    assert ordered == (large, small, unsure, words)


def compare_statuses(
    changes: dict[str, Any], baseline: dict[str, Any] | None = None, above: float = 0.3, **curves: Any
) -> dict[str, str]:
    """The statuses of a run that ends `above` the clean curve, compared with a baseline run on it."""
    other = make_context(**(baseline or {}))
    lifted = curves.pop("val", lambda steps: healthy_curve(make_context())(steps) + above * steps / TOTAL)
    context = make_context(baseline=Baseline(make_history(other), other), **changes)
    return {
        name: finding.status for name, finding in find_all(context, make_history(context, val=lifted, **curves)).items()
    }


def high_and_rising(steps: np.ndarray) -> np.ndarray:
    return rising(steps) + 0.3


CAUSES = ("lr-too-high", "not-annealed", "capacity-limited", "overfitting", "recipe-or-bug", "data-limited")
HIGH_LR, CONSTANT = replace(COSINE, learning_rate=5e-3, min_lr=5e-4), replace(COSINE, schedule="constant")


@pytest.mark.parametrize(
    ("changes", "curves", "cause"),
    [
        ({"optim": HIGH_LR}, {}, {"lr-too-high"}),
        ({"optim": CONSTANT}, {}, {"not-annealed"}),
        ({"parameters": 1e7}, {}, {"capacity-limited"}),
        ({"unique_tokens": 1e9}, {"val": high_and_rising, "gap": widening}, {"overfitting", "data-limited"}),
        ({}, {}, {"recipe-or-bug"}),
        ({"optim": replace(COSINE, warmup_steps=0)}, {}, {"recipe-or-bug"}),
        ({"optim": CONSTANT}, {"val": lambda steps: healthy_curve(make_context())(steps) + 0.3}, set()),
        ({}, {"above": 0.0}, set()),
        ({"optim": HIGH_LR, "parameters": 1e7}, {"above": 0.0}, set()),
    ],
)  # fmt: skip
def test_baseline_shows_which_difference_is_the_cause(
    changes: dict[str, Any], curves: dict[str, Any], cause: set[str]
) -> None:
    statuses = compare_statuses(changes, **curves)
    assert {name for name in CAUSES if statuses[name] == "confirmed"} == cause


def test_a_baseline_that_still_warms_up_has_not_decayed_earlier() -> None:
    statuses = compare_statuses(
        {"optim": replace(COSINE, warmup_steps=0)}, {"optim": replace(COSINE, warmup_steps=400)}, done=200, above=3.0
    )
    assert statuses["not-annealed"] == "ruled out"
    assert statuses["recipe-or-bug"] == "confirmed"


def test_a_missing_warmup_has_a_command() -> None:
    other = make_context()
    lifted = make_history(other, val=lambda steps: healthy_curve(other)(steps) + 0.1)
    context, history = with_config(
        make_context(optim=replace(COSINE, warmup_steps=0), baseline=Baseline(make_history(other), other)), lifted
    )
    fault = find_all(context, history)["recipe-or-bug"]
    assert "a warmup of 0 steps, the baseline run's 100" in fault.conditions[0].evidence
    assert parsed(fault.recommendations[0].command)[0].optim.warmup_steps == 100
    assert fault.recommendations[0].gain == pytest.approx(0.1, abs=0.02)


def test_two_differences_rule_each_other_out() -> None:
    statuses = compare_statuses({"optim": HIGH_LR, "parameters": 1e7})
    assert statuses["lr-too-high"] == statuses["capacity-limited"] == "ruled out"


def test_a_baseline_that_covers_other_steps_says_nothing() -> None:
    other = make_context()
    far = replace(make_history(other), evaluations=())
    context = make_context(optim=HIGH_LR, baseline=Baseline(far, other))
    assert find_all(context, make_history(context))["lr-too-high"].status == "unknown"


def test_remedies_for_repeated_text() -> None:
    context, history = with_config(*make_run(REPEATED, val=rising, gap=widening))
    findings = find_all(context, history)
    best = findings["severe-overfitting"].recommendations[0]
    assert best.command == "python -m jaxgpt.evaluate runs/mine --step best"
    decay = findings["missing-regularization"].recommendations[0]
    assert parsed(decay.command)[0].optim.weight_decay == recommendations.STRONG_DECAY
    assert decay.gain == pytest.approx(
        recommendations.REGULARIZATION_GAIN * scaling_law.repetition_cost(2e8, 1e10, 1e9)
    )


def test_baseline_and_target_loss_are_options(tmp_path: Path) -> None:
    from jaxgpt import logs
    from jaxgpt.diagnose.context import resolve_context
    from jaxgpt.diagnose.options import Options

    for name, last in (("mine", 4.5), ("baseline", 4.0)):
        rows = [f"{step},{last + 100 / (step + 20)}" for step in range(0, 1001, 50)]
        (tmp_path / f"{name}.csv").write_text("step,val_loss\n" + "\n".join(rows))
    history = logs.read(tmp_path / "mine.csv")
    context = resolve_context(
        history,
        Options(baseline=str(tmp_path / "baseline.csv"), target_loss=3.0, total_steps=1000, config="fineweb40m"),
    )
    result = diagnosis.diagnose(history, context, now=0.0)
    level = next(v for v in result.findings if v.id == "recipe-or-bug").conditions[0]
    assert "+0.500" in level.evidence
    assert result.target is not None
    assert not result.target.possible


@pytest.mark.parametrize(
    ("gain", "low", "high", "sentence"),
    [
        (None, None, None, "Do it."),
        (0.2312, 0.18, 0.281, "Do it: about 0.23 lower (80 %: 0.18 to 0.28)."),
        (0.0162, -0.004, 0.036, "Do it: about 0.016 lower (80 %: −0.004 to 0.036)."),
    ],
)
def test_recommendations_are_sentences(
    gain: float | None, low: float | None, high: float | None, sentence: str
) -> None:
    recommendation = Recommendation(action="Do it", gain=gain, low=low, high=high)
    assert messages.recommendation_sentence(recommendation) == sentence


def test_a_target_is_compared_with_all_devices() -> None:
    """8 x 312 TFLOP/s, each with an eighth of every micro-batch."""
    a100 = devices.find("a100")
    config = CONFIG.replace({"mesh": {"data_parallel": 8}, "data": {"micro_batch": 64}})
    context, history = make_run({"config": config, "device": a100, "target_step_time": 1e-6})
    finding = find_all(context, history)["input-or-overhead-bound"]
    assert f"; 8 x {a100.name} have 2,496 TFLOP/s" in finding.conditions[0].evidence


@pytest.mark.parametrize("stated_by", ["log", "config"])
def test_a_larger_model_uses_all_devices(stated_by: str) -> None:
    """Its micro-batch is shared by the devices of the run, whose count the log or the config states."""
    config = CONFIG.replace({"data": {"micro_batch": 24, "accum": 25}})
    batch = float(config.tokens_per_step)
    count = {"metadata": RunMetadata(device_count=3)} if stated_by == "log" else {}
    if stated_by == "config":
        config = config.replace({"mesh": {"data_parallel": 3}})
    changes = {"config": config, "device": devices.find("rtx 4070"), "tokens_per_step": batch, "total_steps": 40_000}
    run = analyze(*make_run(changes, **count))
    larger = for_same_flops(run)
    assert larger is not None
    data = larger.changes["data"]
    assert data["micro_batch"] * data["accum"] == 600
    assert data["micro_batch"] % 3 == 0
    shaped = config.replace(larger.changes)
    largest = memory.max_micro_batch(shaped, devices.find("rtx 4070").usable)
    assert largest < data["micro_batch"] <= 3 * largest


def test_every_missing_fact_has_a_reason() -> None:
    """More epochs than the repetition law covers, at a size and a corpus that the scaling law does."""
    findings = find_all(*make_run({"unique_tokens": 1e7}))
    missing = [condition.missing for condition in findings["data-limited"].conditions if condition.missing]
    assert missing
    assert all(text.startswith("1,000 epochs are outside") for text in missing)
