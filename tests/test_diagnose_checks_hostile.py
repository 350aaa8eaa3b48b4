"""Whatever a log and its context contain, sixteen findings come out, each with a known status and plain numbers."""

import json
import math
from typing import Any

import numpy as np
import pytest

from jaxgpt.budget import devices
from jaxgpt.budget.scaling_law import CORPORA
from jaxgpt.config import Optim, schedule
from jaxgpt.config.files import load_config
from jaxgpt.diagnose.checks import CHECKS, run_checks
from jaxgpt.diagnose.context import Baseline, RunContext
from jaxgpt.diagnose.diagnosis import analyze_run, diagnose
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.diagnose.report import build_report
from jaxgpt.logs.formats import jaxgpt_log, nanogpt, table
from jaxgpt.logs.history import Evaluation, History, Replay, RunMetadata, Step
from jaxgpt.utils.report import to_json

LOSSES = [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300, 1e-300, 3.5, 3.6, 10.8, None]
SECONDS = [math.nan, math.inf, 0.0, -1.0, 1e9, 1e-9, 1.0, 1.1, None]
FACTS = [None, 0.0, 1e-9, 1.0, 1e5, 4e7, 1e10, 1e18]


class Dice:
    """Random choices, seeded."""

    def __init__(self, seed: int) -> None:
        self.of = np.random.default_rng(seed)

    def one(self, values: Any) -> Any:
        return values[int(self.of.integers(len(values)))]

    def loss(self, usual: float) -> Any:
        return self.one(LOSSES) if self.of.random() < 0.2 else usual + float(self.of.normal(0, 0.05))


def history(dice: Dice) -> History:
    count, gap = dice.one([0, 1, 2, 3, 7, 8, 60, 300]), dice.one([1, 1, 10, 1000])
    strange = dice.of.random() < 0.5
    usual = 4.0 * np.maximum(np.arange(count), 1) ** -0.05 + 1
    losses = [dice.loss(float(u)) if strange else float(u) for u in usual]
    steps = tuple(
        Step(
            i * gap, losses[i], dice.one(SECONDS), dice.one(SECONDS), dice.one(SECONDS), i, bool(dice.of.random() < 0.8)
        )
        for i in range(count)
    )
    evals = dice.one([0, 1, 2, 3, 5, 30])
    evaluations = tuple(
        Evaluation(i * gap * 5, dice.loss(3.5), dice.loss(3.4), dice.one(SECONDS), i, dice.one(SECONDS))
        for i in range(evals)
    )
    return History(
        source="dice",
        format="log",
        traits=dice.one([nanogpt.TRAITS, jaxgpt_log.TRAITS, table.TRAITS]),
        steps=steps if dice.of.random() < 0.8 else (),
        evaluations=evaluations,
        starts=dice.one([(), (0,), (0, 5, 10**9)]),
        replays=dice.one([(), (Replay(0, 10, 3),), (Replay(5, 10**9, 3),)]),
        metadata=RunMetadata(pause_seconds=dice.one([0.0, 5.0, 1e12])),
    )


def context(dice: Dice, baseline: Baseline | None = None) -> RunContext:
    total = dice.one([None, 1, 2, 100, 3000])
    rate = dice.one([0.0, 1e-9, 6e-4, 10.0])
    kind = dice.one(["cosine", "linear", "constant", "wsd"])
    optim = Optim(learning_rate=rate, min_lr=dice.one([0.0, rate]), schedule=kind, warmup_steps=dice.one([0, 1, 5000]))
    rates = schedule.learning_rates(optim, total or 50) / (rate or 1.0)
    config = dice.one([None, load_config("fineweb40m")])
    return RunContext(
        total_steps=total,
        optim=optim,
        lr_fractions=dice.one([rates, rates, np.zeros(0), np.zeros(len(rates))]),
        corpus=dice.one(list(CORPORA.values())),
        tokens_per_step=dice.one(FACTS),
        eval_tokens=dice.one(FACTS),
        fixed_eval_set=dice.one([True, False]),
        unique_tokens=dice.one(FACTS),
        parameters=dice.one(FACTS),
        weight_decay=dice.one(FACTS),
        dropout=dice.one([None, 0.0, 0.1]),
        vocab_size=dice.one([None, 1, 50304]),
        unigram_entropy=dice.one([None, 7.6]),
        device=dice.one([None, devices.find("rtx 4070")]),
        config=config,
        config_name=config and "fineweb40m",
        schedule_known=dice.one([True, False]),
        target_step_time=dice.one([None, 0.2]),
        target_loss=dice.one([None, 2.5]),
        baseline=baseline,
    )


@pytest.mark.parametrize("seed", [*range(120), 368, 487, 827])
def test_every_log_is_diagnosed(seed: int) -> None:
    dice = Dice(seed)
    baseline = Baseline(history(dice), context(dice)) if dice.of.random() < 0.4 else None
    log, facts = history(dice), context(dice, baseline)
    posterior, forecast, _ = forecast_run(log, facts)
    findings = run_checks(analyze_run(log, facts, posterior, forecast))
    assert sorted(finding.id for finding in findings) == sorted(CHECKS)
    for finding in findings:
        json.dumps([condition._asdict() for condition in finding.conditions])
        assert all(condition.result in (True, False, None) for condition in finding.conditions)
        assert all(isinstance(condition.result, bool | None) for condition in finding.conditions)
        assert finding.cost is None or not math.isnan(finding.cost)
    json.dumps(to_json(build_report(diagnose(log, facts, now=0.0))), allow_nan=False)
