"""What a run measures: epochs, speed and MFU, scores, and where they are written."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.training import STEPS, records, run_folder, tiny_config

from jaxgpt import train
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.training import optimizer as optim
from jaxgpt.training import recorder
from jaxgpt.training.recorder import Recorder
from jaxgpt.training.records import Score, Scores, StepRecord
from jaxgpt.training.step import Metrics
from jaxgpt.training.watchdog import Watchdog


class FakeDisplay:
    """A display and a log in one, which remembers its steps."""

    failure = ""

    def __init__(self) -> None:
        self.steps: list[tuple[StepRecord, Any]] = []

    def step(self, record: StepRecord, left: Any) -> None:
        self.steps.append((record, left))

    def scores(self, step: int, scores: Scores) -> None: ...
    def saved(self, step: int) -> None: ...
    def write(self, kind: str, **values: Any) -> None: ...


class Clock:
    """A clock that only the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(recorder.time, "perf_counter", lambda: self.now)


def new_recorder(workspace: Path, display: Any, config: Config | None = None) -> Recorder:
    config = config or tiny_config(workspace)
    watchdog = Watchdog(0, print)
    return Recorder(config, display, display, epoch_windows=62, peak_flops=None, watchdog=watchdog)


def metrics(loss: float) -> Metrics:
    return Metrics(np.float32(loss), np.float32(1))  # type: ignore[arg-type]


def test_step_is_recorded_when_the_next_is_dispatched(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    display = FakeDisplay()
    with new_recorder(workspace, display) as record:
        for step in range(3):
            record.step(step, metrics(step))
            assert [shown[0].step for shown in display.steps] == list(range(step))
    assert [shown[0].loss for shown in display.steps] == [0.0, 1.0, 2.0]


def test_pauses_count_for_the_eta_but_not_for_step_times(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    display, clock = FakeDisplay(), Clock(monkeypatch)
    record = new_recorder(workspace, display)

    def wait(values: Any) -> Any:
        clock.now += 2 if display.steps else 32  # it compiles first
        return values

    monkeypatch.setattr(recorder, "fetch", wait)
    for step in range(16):
        record.step(step, metrics(3))
        if step in (5, 11):
            with record.pause():
                clock.now += 15
    assert [shown[0].seconds for shown in display.steps] == [32] + [2] * 14
    last, left = display.steps[-1]
    assert (last.step, last.tokens_per_second) == (14, 4 * 2 * 16 / 2)
    assert left.seconds == pytest.approx((STEPS - 15) * (2 + 30 / 14))
    assert left.low < left.seconds < left.high


@pytest.mark.parametrize("peak", [1e9, None])
def test_mfu_counts_all_devices_and_needs_a_known_peak(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, peak: float | None
) -> None:
    monkeypatch.setattr("jaxgpt.budget.devices.peak_flops", lambda _: peak)
    train.train(tiny_config(workspace, {"run.steps": 3, "run.eval_every": 3}))
    flops = flops_per_token(tiny_config(workspace).model)
    for record in records(run_folder(workspace)):
        expected = peak and pytest.approx(record["tokens_per_second"] * flops / (2 * peak))
        assert record["mfu"] == expected


def test_epoch_is_counted_in_windows(finished: Path) -> None:
    epochs = [record["epoch"] for record in records(run_folder(finished))]
    assert epochs == [(step + 1) * 8 / 62 for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_logged_learning_rates_are_those_of_the_optimizer(workspace: Path, schedule: str) -> None:
    config = tiny_config(workspace, {"optim.schedule": schedule, "run.steps": 6})
    record = new_recorder(workspace, FakeDisplay(), config)
    logged = [record._step_record(step, 1.0, 1.0, 1.0).learning_rate for step in range(6)]
    np.testing.assert_allclose(logged, [optim.schedule(config.optim, 6)(step) for step in range(6)], rtol=1e-6)


def test_score_has_standard_error_and_bits_per_byte() -> None:
    score = Score.from_losses(np.array([2.0, 4.0, 6.0, 8.0], np.float32), tokens_per_byte=0.25)
    assert score.loss == 5.0
    assert score.standard_error == pytest.approx(math.sqrt(20 / 3) / 2)
    assert score.bits_per_byte == pytest.approx(5 / math.log(2) * 0.25)
    assert math.isnan(Score.from_losses(np.array([2.0], np.float32)).standard_error)
    assert Score.from_losses(np.array([2.0, 3.0])).bits_per_byte is None
    assert str(score) == "5.0000 ± 1.2910, 1.803 bits per byte"


def test_mean_of_many_windows_is_precise() -> None:
    losses = np.full(3_000_000, 3.1, np.float32)
    assert Score.from_losses(losses).loss == float(np.float32(3.1))
