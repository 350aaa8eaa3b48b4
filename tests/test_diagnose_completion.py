"""When a run ends: the arithmetic, what must not change it, and its notes on little data."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxgpt.budget.scaling_law import CORPORA
from jaxgpt.config import Optim
from jaxgpt.diagnose.completion import CompletionEstimate, estimate_completion, missing_for_completion, trend
from jaxgpt.diagnose.completion.estimate import steps_left
from jaxgpt.diagnose.context import RunContext
from jaxgpt.logs.formats import nanogpt
from jaxgpt.logs.history import Evaluation, History, Replay, RunMetadata, Step
from jaxgpt.utils.eta import estimate_eta, estimate_step_time

NOW = 1_750_000_000.0
NANOGPT = nanogpt.TRAITS


def context(steps: int) -> RunContext:
    return RunContext(total_steps=steps, optim=Optim(), lr_fractions=np.ones(max(steps, 0)), corpus=CORPORA["unknown"])


def history(seconds: Sequence[float], every: int = 1, **facts: Any) -> History:
    steps = tuple(Step(every * n, 3.0, took, line=n + 1) for n, took in enumerate(seconds))
    return History(**{"source": "<stdin>", "format": "jaxgpt", "steps": steps} | facts)


def estimate(log: History, steps: int, now: float = NOW) -> CompletionEstimate:
    answer = estimate_completion(log, context(steps), now)
    assert answer
    return answer


def noisy(count: int, level: float = 4.0, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return level * (1 + 0.01 * np.random.default_rng(seed).standard_normal(count))


# --- one line --------------------------------------------------------------------------------------------------------


def test_one_line_gives_an_eta_with_notes() -> None:
    log = History(source="<stdin>", format="nanogpt", traits=NANOGPT, steps=(Step(100, 3.9, 3.99511, line=1),))
    answer = estimate(log, 6000)
    rounded = round(answer.seconds)
    assert (rounded // 3600, rounded % 3600 // 60, rounded % 60) == (6, 32, 51)  # updates 101 to 6,000
    assert answer.low < 0.92 * answer.seconds
    assert answer.high > 1.2 * answer.seconds
    assert any("one line" in note for note in answer.notes)
    assert any("evaluation" in note for note in answer.notes)
    assert answer.trend is None
    assert answer.end_time == pytest.approx(NOW + answer.seconds, abs=0.01)
    assert answer.counted_from == "now"


def test_interval_narrows_with_more_lines() -> None:
    widths = [(p.high - p.low) / p.seconds for n in (1, 2, 3, 50, 5000) if (p := estimate_step_time(noisy(n)))]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0.3
    assert 0.03 < widths[-1] < 0.08


def test_steps_left_of_jaxgpt_and_nanogpt() -> None:
    assert steps_left(history([1.0] * 101), context(6000)) == 5899
    assert steps_left(history([1.0] * 101, format="nanogpt", traits=NANOGPT), context(6000)) == 5900
    evaluated = History(source="x", format="nanogpt", traits=NANOGPT, evaluations=(Evaluation(6000, 3.5),))
    assert steps_left(evaluated, context(6000)) == 0
    assert steps_left(history([1.0] * 101, format="nanogpt"), context(6000)) == 5899  # jaxgpt's output, piped
    assert steps_left(history([1.0] * 7000), context(6000)) == 0


# --- what must not change it -----------------------------------------------------------------------------------------


def test_eta_of_panel_and_log_agree() -> None:
    seconds = noisy(500)
    left = estimate_eta(list(seconds), 1500)
    assert left
    assert estimate(history(seconds), 2000).seconds == pytest.approx(left.seconds, rel=1e-12)


@pytest.mark.parametrize("spoiled", [{0: 300.0}, {390: 28_800.0}, {7: 100.0, 300: 50.0}])
def test_outliers_do_not_move_the_eta(spoiled: dict[int, float]) -> None:
    seconds = noisy(400)
    for step, took in spoiled.items():
        seconds[step] = took
    assert estimate(history(seconds), 2000).seconds == pytest.approx(1600 * 4.0, rel=0.06)


def test_hiccups_count_but_one_night_does_not() -> None:
    seconds = noisy(200)
    seconds[::10] += 8.0  # a tenth of the steps waits for data: 0.8 s per step
    assert estimate(history(seconds), 1200).seconds == pytest.approx(1000 * 4.8, rel=0.02)


def test_idle_time_is_reported_but_not_expected() -> None:
    steps, clock = [], NOW - 100_000.0
    for n in range(300):
        clock += 4.0 + (40_000.0 if n == 150 else 0.0)
        steps.append(Step(n, 3.0, 4.0, line=n + 1, step_only=n not in (0, 150), time=clock))
    answer = estimate(History(source="x", format="jaxgpt", steps=tuple(steps), starts=(0, 150)), 1000, now=clock + 5)
    assert answer.seconds == pytest.approx(700 * 4.0)
    assert answer.end_time == pytest.approx(clock + 2800.0, abs=0.01)
    assert answer.counted_from == "the log's last record"
    parts = {part.name: part for part in answer.breakdown}
    assert parts["between processes"].spent == pytest.approx(40_000.0)
    assert parts["training"].spent == pytest.approx(1200.0)
    assert max(s.seconds for s in answer.scenarios if "stops" in s.description) > 10 * answer.seconds


def test_silent_log_counts_from_now() -> None:
    steps = tuple(Step(n, 3.0, 4.0, time=NOW - 90_000 + 4 * n) for n in range(100))
    answer = estimate(History(source="x", format="jaxgpt", steps=steps), 200)
    assert answer.end_time == pytest.approx(NOW + 400.0, abs=0.01)
    assert answer.counted_from == "now, if it is still running: the log's last record is 1 day old"


def test_log_without_times_counts_from_file_change(tmp_path: Path) -> None:
    file = tmp_path / "out.log"
    file.write_text("x")
    changed = file.stat().st_mtime
    answer = estimate(history([4.0] * 50, source=str(file)), 100, now=changed + 60)
    assert answer.end_time == pytest.approx(changed + 200.0, abs=0.01)
    assert answer.counted_from == "the file's last change"


# --- evaluation and saving -------------------------------------------------------------------------------------------


def nanogpt(every: int = 10, evaluate: int = 500, length: int = 2000) -> History:
    """3 s per step, 60 s for each evaluation inside the time of the step after it, 40 s of compiling in the first."""
    steps = tuple(
        Step(n, 3.0, 3.0 + 60.0 * (n % evaluate == 0) + 40.0 * (n == 0), step_only=n % evaluate != 0)
        for n in range(0, length + 1, every)
    )
    evaluations = tuple(Evaluation(n, 3.1) for n in range(0, length + 1, evaluate))
    return History(source="-", format="nanogpt", traits=NANOGPT, steps=steps, evaluations=evaluations)


def test_evaluation_within_step_time_is_separated() -> None:
    answer = estimate(nanogpt(), 5000)
    parts = {part.name: part for part in answer.breakdown}
    assert parts["training"].remaining == pytest.approx(3000 * 3.0)  # updates 2,001 to 5,000
    assert parts["training"].spent == pytest.approx(2001 * 3.0)
    assert parts["evaluation and saving"].spent == pytest.approx(4 * 60.0)
    assert parts["evaluation and saving"].remaining == pytest.approx(6 * 60.0)  # 2,500 to 5,000
    assert parts["compiling"].spent == pytest.approx(100.0)  # with the first evaluation, which no line tells apart
    assert answer.seconds == pytest.approx(9360.0)
    assert {s.description: s.seconds for s in answer.scenarios}["without evaluation and saving"] == pytest.approx(
        9000.0
    )


def test_logged_pauses_are_expected_to_recur() -> None:
    evaluations = tuple(Evaluation(n, 3.1) for n in (100, 200, 300, 400))
    log = history([2.0] * 401, evaluations=evaluations, metadata=RunMetadata(pause_seconds=80.0))
    assert estimate(log, 1000).seconds == pytest.approx(599 * 2.0 + 6 * 20.0)


def test_unknown_evaluation_cost_is_noted() -> None:
    log = history([2.0] * 401, evaluations=(Evaluation(200, 3.1), Evaluation(400, 3.0)))
    assert any("none is counted" in note for note in estimate(log, 1000).notes)


def test_steps_after_the_last_time_count_as_trained() -> None:
    log = history([2.0] * 100, evaluations=(Evaluation(500, 3.0),))
    training = {part.name: part for part in estimate(log, 1000).breakdown}["training"]
    assert training.spent == pytest.approx(500 * 2.0)
    assert training.remaining == pytest.approx(500 * 2.0)


def test_repeated_steps_are_reported() -> None:
    log = history([2.0] * 400, replays=(Replay(300, 349, line=350),))
    assert {part.name: part.spent for part in estimate(log, 1000).breakdown}["repeated steps"] == pytest.approx(100.0)


# --- trend -----------------------------------------------------------------------------------------------------------


def test_jump_of_step_time_is_located() -> None:
    seconds = np.concatenate([noisy(3000, 4.0), noisy(1000, 5.0, seed=1)])
    answer = estimate(history(seconds), 10_000)
    assert answer.trend
    assert answer.trend.kind == "jump"
    assert answer.trend.since == pytest.approx(3000, abs=20)
    assert answer.trend.change == pytest.approx(0.25, abs=0.01)
    assert answer.seconds == pytest.approx(6000 * 5.0, rel=0.02)


def test_step_time_uses_steps_after_a_jump() -> None:
    seconds = np.concatenate([noisy(60, 4.0), noisy(60, 5.0, seed=1)])  # all of them among the last 200 lines
    assert estimate(history(seconds), 1120).seconds == pytest.approx(1000 * 5.0, rel=0.02)


def test_small_change_is_not_a_trend() -> None:
    seconds = np.concatenate([noisy(3000, 4.0), noisy(3000, 4.04, seed=1)])
    assert estimate(history(seconds), 10_000).trend is None


def test_step_time_after_recovery_counts() -> None:
    seconds = np.concatenate([noisy(1000), noisy(1000, 5.0, seed=1), noisy(1000, 4.0, seed=2)])
    answer = estimate(history(seconds), 10_000)
    assert answer.trend
    assert answer.trend.since == pytest.approx(2000, abs=30)
    assert answer.trend.change == pytest.approx(-0.2, abs=0.01)
    assert answer.seconds == pytest.approx(7000 * 4.0, rel=0.02)


def test_drift_differs_from_jump_and_widens_interval() -> None:
    seconds = noisy(4000) * np.linspace(1, 1.2, 4000)
    answer, steady = estimate(history(seconds), 8000), estimate(history(noisy(4000)), 8000)
    assert answer.trend
    assert answer.trend.kind == "drift"
    assert answer.trend.slope == pytest.approx(4.0 * 0.2 / 4000, rel=0.05)
    assert answer.high / answer.seconds > steady.high / steady.seconds + 0.05
    assert any("keeps changing" in scenario.description for scenario in answer.scenarios)


def test_steady_step_times_have_no_trend() -> None:
    """Of 200 steady runs, at a significance of 0.01, and with a noticeable size, next to none changes."""
    seeds = range(200)
    seen = [trend.find_trend(np.arange(400), noisy(400, seed=seed)) is not None for seed in seeds]
    assert sum(seen) <= 1
    assert trend.find_trend(np.arange(400), np.full(400, 3.99511)) is None


def test_pettitt_matches_permutation_test() -> None:
    """The slow oracle: how often a shuffled series has so large a statistic."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(40)
    values[22:] += 0.9

    def statistic(series: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        signs = np.sign(series[:, None] - series[None, :])
        return max(abs(float(signs[:t, t:].sum())) for t in range(1, len(series)))

    shuffled = [statistic(rng.permutation(values)) for _ in range(2000)]
    chance = float(np.mean([one >= statistic(values) for one in shuffled]))
    assert trend._pettitt(values) == pytest.approx(chance, abs=0.02)


# --- edges -----------------------------------------------------------------------------------------------------------


def test_completed_run_is_done() -> None:
    steps = tuple(Step(n, 3.0, 4.0, time=NOW + 4 * n) for n in range(100))
    answer = estimate(History(source="x", format="jaxgpt", steps=steps), 100, now=NOW + 10_000)
    assert answer.done
    assert (answer.seconds, answer.low, answer.high) == (0.0, 0.0, 0.0)
    assert answer.end_time == NOW + 396
    assert answer.breakdown[0].spent == pytest.approx(400.0)


def test_missing_inputs_are_named() -> None:
    timeless = History(source="x", format="csv", evaluations=(Evaluation(100, 4.0), Evaluation(200, 3.9)))
    assert estimate_completion(timeless, context(1000), NOW) is None
    assert "time of a step" in missing_for_completion(timeless, context(1000))
    assert estimate_completion(history([1.0] * 9), context(0), NOW) is None
    assert "--total-steps" in missing_for_completion(history([1.0] * 9), context(0))
    assert estimate(replace(timeless, evaluations=(Evaluation(1000, 3.5),)), 1000).done


def test_implausible_times_are_ignored() -> None:
    log = history([4.0, math.nan, -1.0, 0.0, 1e9, math.inf, 4.0, 4.0])
    assert estimate(log, 108).seconds == pytest.approx(400.0)


def test_million_steps_are_fast() -> None:
    blocks = trend.median_blocks(np.arange(1_000_000), noisy(1_000_000))
    assert 100 <= len(blocks.seconds) <= 200
    assert blocks.steps[0] == 0
    assert blocks.steps[-1] < 1_000_000
