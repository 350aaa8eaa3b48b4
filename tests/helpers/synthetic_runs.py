"""Synthetic runs: histories with a known cause, and the status that each finding has for them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxgpt.budget import devices, scaling_law
from jaxgpt.budget.scaling_law import CORPORA
from jaxgpt.config import Optim, schedule
from jaxgpt.config.files import load_config
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.checks import run_checks
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.diagnosis import analyze_run
from jaxgpt.diagnose.finding import Finding
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.logs.formats import nanogpt
from jaxgpt.logs.history import Evaluation, History, Replay, RunMetadata, Step

LossCurve = Callable[[np.ndarray], np.ndarray]
TOTAL, WARMUP, EVERY = 2000, 100, 50
COSINE = Optim(learning_rate=1e-3, min_lr=1e-4, schedule="cosine", warmup_steps=WARMUP)
CONSTANT = replace(COSINE, schedule="constant")
TOO_HIGH = replace(CONSTANT, learning_rate=1e-2)
WSD = replace(TOO_HIGH, schedule="wsd", decay_steps=100)
SIZE, BATCH = 4e7, 5e6  # 10B tokens, 250 per parameter: where the scaling law was fitted


def make_context(**changes: Any) -> RunContext:
    """The context of a run that reads no token twice, on FineWeb."""
    optim = changes.get("optim", COSINE)
    total = changes.get("total_steps", TOTAL)
    usual = {
        "total_steps": total,
        "optim": optim,
        "lr_fractions": schedule.learning_rates(optim, total or TOTAL) / optim.learning_rate,
        "corpus": CORPORA["fineweb"],
        "tokens_per_step": BATCH,
        "fixed_eval_set": True,
        "unique_tokens": 2e10,
        "parameters": SIZE,
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "dropout": 0.0,
        "vocab_size": 50304,
    }
    return RunContext(**(usual | changes))


def healthy_curve(context: RunContext) -> LossCurve:
    """The curve of a healthy run, which ends at the loss that the scaling law predicts."""
    recipe = scaling_law.Recipe(learning_rate=1e-3, tokens_per_step=BATCH)
    query = scaling_law.ScalingQuery(parameters=SIZE, tokens=BATCH * TOTAL, recipe=recipe, corpus=CORPORA["fineweb"])
    end = scaling_law.predict_loss(query).loss

    def loss(steps: np.ndarray) -> np.ndarray:
        rates = np.append(context.lr_fractions, context.lr_fractions[-1])[
            np.minimum(steps.astype(int), len(context.lr_fractions))
        ]
        return end + 0.4 * ((steps + 20) / TOTAL) ** -0.5 - 0.4 + 0.12 * (rates - 0.1)

    return loss


def make_history(
    context: RunContext,
    *,
    done: int = TOTAL,
    val: LossCurve | None = None,
    gap: LossCurve | None = None,
    losses: LossCurve | None = None,
    norms: LossCurve | None = None,
    seconds: LossCurve | None = None,
    noise: float = 0.003,
    **fields: Any,
) -> History:
    """A log with evaluations every `EVERY` steps, whose train losses are `gap` lower, and steps with `losses`."""
    random = np.random.default_rng(0)
    steps_evaluated = np.arange(EVERY, done + 1, EVERY)
    vals = (val or healthy_curve(context))(steps_evaluated.astype(float)) + noise * random.standard_normal(
        len(steps_evaluated)
    )
    trains = [None] * len(steps_evaluated) if gap is None else list(vals - gap(steps_evaluated.astype(float)))
    every_step = np.arange(done).astype(float)
    columns = [[None] * done if of is None else list(of(every_step)) for of in (losses, seconds, norms)]
    steps = tuple(Step(i, loss, second, None, norm, line=i + 1) for i, (loss, second, norm) in enumerate(zip(*columns)))
    if losses is None and seconds is None:
        steps = ()
    evaluations = tuple(
        Evaluation(int(s), float(v), t, None, 10_000 + i)
        for i, (s, v, t) in enumerate(zip(steps_evaluated, vals, trains))
    )
    return History(**({"source": "made", "format": "table", "steps": steps, "evaluations": evaluations} | fields))


def find_all(context: RunContext, history: History) -> dict[str, Finding]:
    """The findings of a run by id."""
    return {finding.id: finding for finding in run_checks(analyze(context, history))}


def analyze(context: RunContext, history: History) -> RunAnalysis:
    posterior, forecast, _ = forecast_run(history, context)
    return analyze_run(history, context, posterior, forecast)


def make_run(changes: Mapping[str, Any] | None = None, **curves: Any) -> tuple[RunContext, History]:
    context = make_context(**(changes or {}))
    return context, make_history(context, **curves)


# Ten epochs of 200M tokens: the end of the first is step 200.
REPEATED: dict[str, Any] = {"unique_tokens": BATCH * TOTAL / 10, "parameters": 2e8}


def widening(steps: np.ndarray) -> np.ndarray:
    return 0.3 * np.maximum(steps - 200, 0) / TOTAL


def rising(steps: np.ndarray) -> np.ndarray:
    return 3.4 + 0.3 * np.abs(steps - 800) / TOTAL


def flat(steps: np.ndarray) -> np.ndarray:
    return 3.5 + np.exp(-steps / 100)


def slow(steps: np.ndarray) -> np.ndarray:
    return 3.5 + 0.1 * ((steps + 20) / TOTAL) ** -0.5


def training(level: LossCurve, noise: float = 0.02) -> LossCurve:
    return lambda steps: level(steps) + noise * np.random.default_rng(1).standard_normal(len(steps))


def jump(at: int, width: float, to: float = 7.5) -> LossCurve:
    return lambda steps: 3.6 + (to - 3.6) * np.clip((steps - at) / width, 0, 1)


def nan_from(at: int) -> LossCurve:
    return lambda steps: np.where(steps < at, 4.0, np.nan)


def spiked(steps: np.ndarray) -> np.ndarray:
    return 4.0 + np.where(steps == 700, 3.0, 0.0) + np.where(steps == 701, 1.5, 0.0)


def odd(steps: np.ndarray) -> np.ndarray:
    return 4.0 + np.where(steps == 700, 3.0, 0.0)


def slower(steps: np.ndarray) -> np.ndarray:
    return (1.0 + 0.2 * (steps >= 1200)) * (1 + 0.01 * np.random.default_rng(2).standard_normal(len(steps)))


def steady(steps: np.ndarray) -> np.ndarray:
    return 1.0 + 0.01 * np.random.default_rng(2).standard_normal(len(steps))


REFERENCE = load_config("fineweb40m")
CARD: dict[str, Any] = {"config": REFERENCE, "config_name": "fineweb40m", "device": devices.find("rtx 4070")}
LARGER = scaling_law.LAW.capacity_term(SIZE) - scaling_law.LAW.capacity_term(
    6e8
)  # the gain of the larger model by the scaling law
NOISY: dict[str, Any] = {"fixed_eval_set": False, "eval_tokens": 3.3e6}
RESUMED: dict[str, Any] = {"starts": (0, 1000)}

CONFIRMED: dict[str, list[tuple[RunContext, History]]] = {
    "overfitting": [make_run(REPEATED, val=rising, gap=widening), make_run(REPEATED, gap=widening)],
    "severe-overfitting": [make_run(REPEATED, val=rising, gap=widening)],
    "repetition-risk": [make_run(REPEATED, done=400)],
    "lr-too-high": [make_run({"optim": TOO_HIGH}, done=1800, val=flat)],
    "capacity-limited": [make_run()],
    "data-limited": [make_run({"unique_tokens": 1e8})],
    "missing-regularization": [make_run(REPEATED, val=rising, gap=widening)],
    "unneeded-dropout": [make_run({"dropout": 0.1})],
    "noise-not-plateau": [make_run(NOISY, done=1600, val=slow, noise=0.03)],
    "not-annealed": [make_run({"optim": CONSTANT}, done=1800), make_run(done=1000)],
    "recipe-or-bug": [
        make_run(val=lambda steps: 7.5 + 0 * steps),
        make_run({"parameters": 1e6}, val=lambda steps: 7.5 + 0 * steps),
        make_run(val=lambda steps: healthy_curve(make_context())(steps) + 0.6),
        make_run({"optim": replace(COSINE, decay_steps=1000)}),
        make_run({"optim": replace(COSINE, warmup_steps=1000)}),
        make_run(losses=training(jump(1000, 1e-9))),
    ],
    "divergence": [
        make_run(losses=nan_from(1500)),
        make_run(losses=training(jump(1000, 60))),
        make_run(losses=training(jump(1000, 1e-9)), norms=lambda steps: 1 + 9.0 * (np.abs(steps - 992) < 8)),
    ],
    "loss-spikes": [make_run(losses=training(spiked))],
    "data-reused-after-resume": [
        make_run(traits=nanogpt.TRAITS, replays=(Replay(900, 999, 5),), **RESUMED),
        make_run(losses=training(lambda steps: 4.0 - 0.5 * (steps >= 1000)), **RESUMED),
    ],
    "throughput": [make_run(losses=training(flat), seconds=slower)],
    "input-or-overhead-bound": [
        make_run(losses=training(flat), seconds=steady, metadata=RunMetadata(pause_seconds=900.0)),
        make_run(CARD | {"target_step_time": 0.2}, losses=training(flat), seconds=lambda s: 3.995 + 0 * s),
        make_run(CARD, losses=training(flat), seconds=lambda s: 9.0 + 0 * s),
    ],
}
RULED_OUT: dict[str, list[tuple[RunContext, History]]] = {
    "overfitting": [make_run(gap=widening), make_run(REPEATED, gap=lambda s: 0 * s), make_run({"unique_tokens": 5e9})],
    "severe-overfitting": [make_run(REPEATED, gap=widening), make_run()],
    "repetition-risk": [make_run(), make_run({"unique_tokens": 8e9})],
    "lr-too-high": [
        make_run(),
        make_run(done=500),
        make_run({"optim": CONSTANT}, done=1800, val=flat),
        make_run({"optim": WSD}, done=1800, val=flat),
    ],
    "capacity-limited": [
        make_run(val=lambda steps: healthy_curve(make_context())(steps) + 0.6),
        make_run({"parameters": 6e8}, val=lambda steps: healthy_curve(make_context())(steps) - LARGER),
    ],
    "data-limited": [make_run()],
    "missing-regularization": [make_run(REPEATED | {"weight_decay": 0.8}, val=rising, gap=widening), make_run()],
    "unneeded-dropout": [
        make_run(),
        make_run(REPEATED | {"dropout": 0.1}, gap=lambda steps: 0 * steps),
        make_run({"dropout": 0.1, "unique_tokens": 4e9}, gap=widening),
    ],
    "noise-not-plateau": [
        make_run(),
        make_run(NOISY, done=300),
        make_run(NOISY, done=TOTAL - 10, seconds=steady),
        make_run(NOISY, done=1600, val=lambda steps: healthy_curve(make_context())(steps) - 0.3 * (steps >= 1580)),
    ],
    "not-annealed": [make_run(), make_run(done=50), make_run({"parameters": None}, done=50)],
    "recipe-or-bug": [make_run(), make_run(losses=training(jump(1000, 60)))],
    "divergence": [
        make_run(losses=training(flat)),
        make_run(losses=training(jump(1000, 1e-9))),
        make_run(losses=training(spiked)),
    ],
    "loss-spikes": [
        make_run(losses=training(flat)),
        make_run(losses=training(odd)),
        make_run(losses=training(flat, noise=0.1)),
        make_run(losses=training(jump(1000, 1e-9))),
    ],
    "data-reused-after-resume": [
        make_run(),
        make_run(losses=training(flat), **RESUMED),
        make_run(losses=training(flat, noise=0.4), **RESUMED),
    ],
    "throughput": [
        make_run(losses=training(flat), seconds=steady),
        make_run(losses=training(flat), seconds=lambda s: 1.3 - slower(s)),
    ],
    "input-or-overhead-bound": [
        make_run(CARD, losses=training(flat), seconds=lambda s: 3.995 + 0 * s, metadata=RunMetadata(pause_seconds=9.0))
    ],
}
EMPTY = History(source="made", format="table")
UNKNOWN: dict[str, list[tuple[RunContext, History]]] = {
    "overfitting": [
        make_run({"unique_tokens": None}),
        make_run(REPEATED, val=rising),
        make_run(REPEATED | {"fixed_eval_set": False}, gap=lambda steps: widening(steps) / 4, noise=0.1),
    ],
    "severe-overfitting": [make_run(REPEATED, val=rising)],
    "repetition-risk": [make_run(REPEATED | {"parameters": None}), make_run({"unique_tokens": None})],
    "lr-too-high": [
        make_run({"optim": TOO_HIGH, "schedule_known": False}, val=flat),
        make_run({"optim": TOO_HIGH, "optimizer": "muon"}, done=1800, val=flat),
        make_run({"optim": TOO_HIGH, "optimizer": None}, done=1800, val=flat),
        make_run({"optim": TOO_HIGH, "sources": {"peak_lr": "assumption"}}, done=1800, val=flat),
        (make_context(optim=TOO_HIGH), replace(EMPTY, saves=(1000,), steps=(Step(1800, 4.0),))),
    ],
    "capacity-limited": [
        make_run({"corpus": CORPORA["unknown"]}),
        make_run({"parameters": 1e6}),
        make_run({"parameters": None}),
    ],
    "data-limited": [make_run({"unique_tokens": None}), make_run({"unique_tokens": 1e8, "parameters": 4e6})],
    "missing-regularization": [make_run(REPEATED | {"weight_decay": None}, val=rising, gap=widening)],
    "unneeded-dropout": [make_run({"dropout": None}), make_run(REPEATED | {"dropout": 0.1, "unique_tokens": 4e9})],
    "noise-not-plateau": [make_run(NOISY | {"total_steps": None}, done=1600, val=slow, noise=0.03), make_run(done=50)],
    "not-annealed": [
        make_run({"optim": CONSTANT, "schedule_known": False}),
        (replace(make_context(), lr_fractions=np.zeros(0), total_steps=None), make_run()[1]),
    ],
    "recipe-or-bug": [make_run({"parameters": 1e6}), make_run({"corpus": CORPORA["unknown"]})],
    "divergence": [
        (make_context(), EMPTY),
        make_run(REPEATED, val=lambda steps: rising(steps) + np.maximum(steps - 900, 0) / 500),
    ],
    "loss-spikes": [make_run()],
    "data-reused-after-resume": [make_run(**RESUMED)],
    "throughput": [make_run()],
    "input-or-overhead-bound": [make_run(), make_run(losses=training(flat), seconds=steady)],
}
BY_STATUS = {"confirmed": CONFIRMED, "ruled out": RULED_OUT, "unknown": UNKNOWN}
