"""Each finding in its three statuses, on histories made by hand."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jaxgpt.budget import devices, scaling_law
from jaxgpt.budget.scaling_law import CORPORA
from jaxgpt.config import Optim, schedule
from jaxgpt.config.files import load_config
from jaxgpt.diagnose.checks import run_checks
from jaxgpt.diagnose.context import RunContext
from jaxgpt.diagnose.finding import IDS, Finding
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.logs.history import Evaluation, History, Replay, RunMetadata, Step

LossCurve = Callable[[np.ndarray], np.ndarray]
TOTAL, WARMUP, EVERY = 2000, 100, 50
COSINE = Optim(learning_rate=1e-3, min_lr=1e-4, schedule="cosine", warmup_steps=WARMUP)
CONSTANT = replace(COSINE, schedule="constant")
SIZE, BATCH = 4e7, 5e6  # 10B tokens, 250 per parameter: where the law was fitted


def context(**changes: Any) -> RunContext:
    """Of a run that reads no token twice, on FineWeb."""
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
        "weight_decay": 0.1,
        "dropout": 0.0,
        "vocab_size": 50304,
    }
    return RunContext(**(usual | changes))


def clean(own: RunContext) -> LossCurve:
    """The curve of a healthy run, which ends where the law says."""
    asked = scaling_law.ScalingQuery(
        parameters=SIZE, tokens=BATCH * TOTAL, recipe=scaling_law.Recipe(learning_rate=1e-3), corpus=CORPORA["fineweb"]
    )
    end = scaling_law.predict_loss(asked).loss

    def loss(steps: np.ndarray) -> np.ndarray:
        rates = np.append(own.lr_fractions, own.lr_fractions[-1])[np.minimum(steps.astype(int), len(own.lr_fractions))]
        return end + 0.4 * ((steps + 20) / TOTAL) ** -0.5 - 0.4 + 0.12 * (rates - 0.1)

    return loss


def history(
    own: RunContext,
    *,
    done: int = TOTAL,
    val: LossCurve | None = None,
    gap: LossCurve | None = None,
    losses: LossCurve | None = None,
    norms: LossCurve | None = None,
    seconds: LossCurve | None = None,
    noise: float = 0.003,
    **more: Any,
) -> History:
    """Evaluations every `EVERY` steps, with train losses `gap` below them, and updates with `losses`."""
    chance = np.random.default_rng(0)
    places = np.arange(EVERY, done + 1, EVERY)
    vals = (val or clean(own))(places.astype(float)) + noise * chance.standard_normal(len(places))
    trains = [None] * len(places) if gap is None else list(vals - gap(places.astype(float)))
    updates = np.arange(done).astype(float)
    columns = [[None] * done if of is None else list(of(updates)) for of in (losses, seconds, norms)]
    steps = tuple(Step(i, loss, second, None, norm, line=i + 1) for i, (loss, second, norm) in enumerate(zip(*columns)))
    if losses is None and seconds is None:
        steps = ()
    evaluations = tuple(
        Evaluation(int(s), float(v), t, None, 10_000 + i) for i, (s, v, t) in enumerate(zip(places, vals, trains))
    )
    return History(**({"source": "made", "format": "table", "steps": steps, "evaluations": evaluations} | more))


def judged(own: RunContext, seen: History) -> dict[str, Finding]:
    posterior, forecast, _ = forecast_run(seen, own)
    return {finding.id: finding for finding in run_checks(seen, own, posterior, forecast)}


def made(changes: Mapping[str, Any] | None = None, **told: Any) -> tuple[RunContext, History]:
    own = context(**(changes or {}))
    return own, history(own, **told)


# Ten epochs of 200M tokens: the end of the first is step 200.
REPEATED: dict[str, Any] = {"unique_tokens": BATCH * TOTAL / 10, "parameters": 2e8}


def widening(steps: np.ndarray) -> np.ndarray:
    return 0.3 * np.maximum(steps - 200, 0) / TOTAL


def rising(steps: np.ndarray) -> np.ndarray:
    return 3.4 + 0.3 * np.abs(steps - 800) / TOTAL


def flat(steps: np.ndarray) -> np.ndarray:
    return 3.5 + np.exp(-steps / 100)


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
)  # what the larger model gains by the law
NOISY: dict[str, Any] = {"fixed_eval_set": False, "eval_tokens": 3.3e6}
RESUMED: dict[str, Any] = {"starts": (0, 1000)}

SUPPORTED: dict[str, list[tuple[RunContext, History]]] = {
    "overfitting": [made(REPEATED, val=rising, gap=widening), made(REPEATED, gap=widening)],
    "severe-overfitting": [made(REPEATED, val=rising, gap=widening)],
    "repetition-risk": [made(REPEATED, done=400)],
    "lr-too-high": [made({"optim": CONSTANT}, done=1800, val=flat)],
    "capacity-limited": [made()],
    "data-limited": [made({"unique_tokens": 1e8})],
    "missing-regularization": [made(REPEATED, val=rising, gap=widening)],
    "unneeded-dropout": [made({"dropout": 0.1})],
    "noise-not-plateau": [made(NOISY, done=1600)],
    "not-annealed": [made({"optim": CONSTANT}, done=1800), made(done=1000)],
    "recipe-or-bug": [
        made(val=lambda steps: 7.5 + 0 * steps),
        made({"parameters": 1e6}, val=lambda steps: 7.5 + 0 * steps),
        made(val=lambda steps: clean(context())(steps) + 0.3),
        made({"optim": replace(COSINE, decay_steps=1000)}),
        made({"optim": replace(COSINE, warmup_steps=1000)}),
        made(losses=training(jump(1000, 1e-9))),
    ],
    "divergence": [
        made(losses=nan_from(1500)),
        made(losses=training(jump(1000, 60))),
        made(losses=training(jump(1000, 1e-9)), norms=lambda steps: 1 + 9.0 * (np.abs(steps - 992) < 8)),
    ],
    "loss-spikes": [made(losses=training(spiked))],
    "data-reused-after-resume": [
        made(format="nanogpt", replays=(Replay(900, 999, 5),), **RESUMED),
        made(losses=training(lambda steps: 4.0 - 0.5 * (steps >= 1000)), **RESUMED),
    ],
    "throughput": [made(losses=training(flat), seconds=slower)],
    "input-or-overhead-bound": [
        made(losses=training(flat), seconds=steady, metadata=RunMetadata(pauses=900.0)),
        made(CARD | {"target_step_time": 0.2}, losses=training(flat), seconds=lambda s: 3.995 + 0 * s),
        made(CARD, losses=training(flat), seconds=lambda s: 9.0 + 0 * s),
    ],
}
NOT_SUPPORTED: dict[str, list[tuple[RunContext, History]]] = {
    "overfitting": [made(gap=widening), made(REPEATED, gap=lambda s: 0 * s), made({"unique_tokens": 5e9})],
    "severe-overfitting": [made(REPEATED, gap=widening), made()],
    "repetition-risk": [made(), made({"unique_tokens": 8e9})],
    "lr-too-high": [made(), made(done=500)],
    "capacity-limited": [
        made(val=lambda steps: clean(context())(steps) + 0.3),
        made({"parameters": 6e8}, val=lambda steps: clean(context())(steps) - LARGER),
    ],
    "data-limited": [made()],
    "missing-regularization": [made(REPEATED | {"weight_decay": 0.8}, val=rising, gap=widening), made()],
    "unneeded-dropout": [
        made(),
        made(REPEATED | {"dropout": 0.1}, gap=lambda steps: 0 * steps),
        made({"dropout": 0.1, "unique_tokens": 4e9}, gap=widening),
    ],
    "noise-not-plateau": [
        made(),
        made(NOISY, done=300),
        made(NOISY, done=TOTAL - 10, seconds=steady),
        made(NOISY, done=1600, val=lambda steps: clean(context())(steps) - 0.3 * (steps >= 1580)),
    ],
    "not-annealed": [made(), made(done=50), made({"parameters": None}, done=50)],
    "recipe-or-bug": [made(), made(losses=training(jump(1000, 60)))],
    "divergence": [made(losses=training(flat)), made(losses=training(jump(1000, 1e-9))), made(losses=training(spiked))],
    "loss-spikes": [
        made(losses=training(flat)),
        made(losses=training(odd)),
        made(losses=training(flat, noise=0.1)),
        made(losses=training(jump(1000, 1e-9))),
    ],
    "data-reused-after-resume": [
        made(),
        made(losses=training(flat), **RESUMED),
        made(losses=training(flat, noise=0.4), **RESUMED),
    ],
    "throughput": [
        made(losses=training(flat), seconds=steady),
        made(losses=training(flat), seconds=lambda s: 1.3 - slower(s)),
    ],
    "input-or-overhead-bound": [
        made(CARD, losses=training(flat), seconds=lambda s: 3.995 + 0 * s, metadata=RunMetadata(pauses=9.0))
    ],
}
EMPTY = History(source="made", format="table")
CANNOT_TELL: dict[str, list[tuple[RunContext, History]]] = {
    "overfitting": [
        made({"unique_tokens": None}),
        made(REPEATED, val=rising),
        made(REPEATED | {"fixed_eval_set": False, "eval_tokens": 1e5}, gap=lambda steps: widening(steps) / 4),
    ],
    "severe-overfitting": [made(REPEATED, val=rising)],
    "repetition-risk": [made(REPEATED | {"parameters": None}), made({"unique_tokens": None})],
    "lr-too-high": [
        made({"optim": CONSTANT, "schedule_known": False}, val=flat),
        (context(optim=CONSTANT), replace(EMPTY, saves=(1000,), steps=(Step(1800, 4.0),))),
    ],
    "capacity-limited": [made({"corpus": CORPORA["unknown"]}), made({"parameters": 1e6}), made({"parameters": None})],
    "data-limited": [made({"unique_tokens": None}), made({"unique_tokens": 1e8, "parameters": 4e6})],
    "missing-regularization": [made(REPEATED | {"weight_decay": None}, val=rising, gap=widening)],
    "unneeded-dropout": [made({"dropout": None}), made(REPEATED | {"dropout": 0.1, "unique_tokens": 4e9})],
    "noise-not-plateau": [made(NOISY | {"total_steps": None}, done=1600), made(done=50)],
    "not-annealed": [
        made({"optim": CONSTANT, "schedule_known": False}),
        (replace(context(), lr_fractions=np.zeros(0), total_steps=None), made()[1]),
    ],
    "recipe-or-bug": [made({"parameters": 1e6}), made({"corpus": CORPORA["unknown"]})],
    "divergence": [
        (context(), EMPTY),
        made(REPEATED, val=lambda steps: rising(steps) + np.maximum(steps - 900, 0) / 500),
    ],
    "loss-spikes": [made()],
    "data-reused-after-resume": [made(**RESUMED)],
    "throughput": [made()],
    "input-or-overhead-bound": [made(), made(losses=training(flat), seconds=steady)],
}
WORDS = {"confirmed": SUPPORTED, "ruled out": NOT_SUPPORTED, "unknown": CANNOT_TELL}
CASES = [
    pytest.param(name, status, own, seen, id=f"{name}: {status} {number}")
    for status, table in WORDS.items()
    for name in IDS
    for number, (own, seen) in enumerate(table[name])
]


@pytest.mark.parametrize(("name", "status", "own", "seen"), CASES)
def test_status(name: str, status: str, own: RunContext, seen: History) -> None:
    found = judged(own, seen)[name]
    assert (found.status, found.conditions) == (status, found.conditions)
    for condition in found.conditions:
        assert condition.question
        assert condition.result is None or condition.evidence or not condition.lines
    if status == "unknown":
        assert any(condition.missing for condition in found.conditions if condition.result is None)
    if status != "confirmed":
        assert found.recommendations == ()


def test_what_follows_from_overfitting_stands_behind_it() -> None:
    found = judged(*made(REPEATED, gap=lambda steps: widening(steps) / 2, done=1000))
    assert found["overfitting"].status == found["repetition-risk"].status == "confirmed"
    own = [float(found["repetition-risk"].conditions[1].evidence.split()[0]), found["overfitting"].weight]
    assert own[0] > own[1] > found["repetition-risk"].weight


def test_a_model_with_few_tokens_is_at_its_level_and_not_limited_by_size() -> None:
    level, ratio = judged(*NOT_SUPPORTED["capacity-limited"][1])["capacity-limited"].conditions
    assert (level.result, ratio.result) == (True, False)


def test_nothing_is_repeated_in_the_first_epoch() -> None:
    first = judged(*made(done=400))["overfitting"].conditions[0]
    assert (first.result, first.evidence) == (False, "0.10 epochs at step 400")


def test_gradients_that_grow_are_told_before_the_loss_rises() -> None:
    own, seen = made(losses=training(flat), norms=lambda steps: 1 + 9.0 * (steps >= TOTAL - 8))
    found = judged(own, seen)["divergence"]
    assert found.status == "ruled out"
    assert "the gradient norm grew from 1 to 10" in found.conditions[1].evidence


def test_all_verdicts_are_told_once_supported_first_by_weight() -> None:
    own, seen = made(REPEATED, val=rising, gap=widening)
    found = run_checks(seen, own, *forecast_run(seen, own)[:2])
    assert sorted(finding.id for finding in found) == sorted(IDS)
    held = [finding for finding in found if finding.status == "confirmed"]
    assert found[: len(held)] == tuple(held)
    assert [finding.weight for finding in held] == sorted((finding.weight for finding in held), reverse=True)
    assert [finding.id for finding in held[:2]] == ["severe-overfitting", "overfitting"]
    statuses = [finding.status for finding in found]
    assert statuses == sorted(statuses, key=["confirmed", "unknown", "ruled out"].index)
