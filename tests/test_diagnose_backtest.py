"""Backtests: the forecast, the training, the record, and the files that do not change."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from helpers.training import records, run_folder, tiny_config

from jaxgpt import errors, logs, train
from jaxgpt.config import Config
from jaxgpt.config.schedule import learning_rates
from jaxgpt.diagnose import backtest, command
from jaxgpt.diagnose.backtest import Backtest, BacktestOptions
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.errors import CheckpointError, ConfigError, JaxgptError
from jaxgpt.runs.folder import RunFolder

RUN = {"run.steps": 60, "run.eval_every": 4, "run.save_every": 20, "run.keep_latest": 9, "optim.schedule": "constant"}
FORECAST = Forecast(3.0, 0.1, 2.9, 3.1, 2.8, 3.2)


@pytest.fixture
def run(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A finished run of 60 steps with checkpoints at 20, 40 and 60, and the best."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return train.train(tiny_config(workspace, RUN))


def make_run_folder(folder: Path, config: Config, *checkpoints: int) -> RunFolder:
    """A run's folder with a config and checkpoint folders, nothing else."""
    run = RunFolder.from_config(config.replace({"run": {"dir": str(folder), "name": "a"}}))
    for step in checkpoints:
        (run.checkpoints / str(step)).mkdir(parents=True)
    (run.checkpoints / "70.orbax-checkpoint-tmp").mkdir(parents=True)
    run.config_file.write_text(json.dumps(config.to_dict()))
    return run


def refused(code: str, action: Any, *arguments: Any) -> str:
    with pytest.raises(JaxgptError) as caught:
        action(*arguments)
    assert caught.value.code == code
    return str(caught.value)


def make_backtest(observed: float) -> Backtest:
    return Backtest(run="a-backtest-20", step=20, steps=6, forecast=FORECAST, observed=observed, time=1.5)


# --- from end to end -------------------------------------------------------------------------------------------------


def test_backtest_forecasts_trains_and_compares(run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    argv = [str(run.path), "--backtest", "--backtest-at", "40", "--backtest-steps", "6"]
    assert errors.run(command.main, argv) == 0
    out = capfd.readouterr().out
    assert out.index("forecast: ") < out.index("cooled down from step 40 in 6 steps: forecast ")

    kept = backtest.load_backtests(run)
    cooldown = RunFolder(run.path.with_name("a-backtest-40"))
    assert [(one.run, one.step, one.steps) for one in kept] == [("a-backtest-40", 40, 6)]
    assert kept[0].observed == records(cooldown, "eval")[-1]["val_loss"]
    assert [record["step"] for record in records(cooldown)] == list(range(40, 46))
    rates = [record["learning_rate"] for record in records(cooldown)]
    assert rates == pytest.approx(np.linspace(1e-2, 1e-3, 7)[:6])
    assert records(cooldown)[0]["loss"] == records(run)[40]["loss"]  # the same state on the same batch
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert {path.name for path in after.keys() - before.keys()} == {"backtests.jsonl"}
    assert all(after[path] == before[path] for path in before)

    assert errors.run(command.main, argv) == 0  # nothing is trained or kept twice
    assert len(records(cooldown, "start")) == len(backtest.load_backtests(run)) == 1
    capfd.readouterr()
    assert errors.run(command.main, [str(run.path), "--json"]) == 0
    assert [one["observed"] for one in json.loads(capfd.readouterr().out)["backtests"]] == [kept[0].observed]
    assert errors.run(command.main, [str(run.path)]) == 0
    assert "backtests of this run's forecasts: 1;" in " ".join(capfd.readouterr().out.split())


def test_failed_training_is_reported(run: RunFolder, workspace: Path) -> None:
    (workspace / "data").rename(workspace / "elsewhere")
    message = refused(
        "C058", backtest.run_backtest, str(run.path), BacktestOptions(backtest=True, backtest_at=40, backtest_steps=6)
    )
    assert "D002" in message
    assert not run.backtests_file.exists()


# --- what is forecast ------------------------------------------------------------------------------------------------


def test_forecast_ignores_data_after_the_checkpoint(tmp_path: Path) -> None:
    log = (ROOT / "tests" / "planted" / "clean" / "log.jsonl").read_text()
    changed = []
    for line in log.splitlines():
        record = json.loads(line)
        if record["kind"] == "eval" and record["step"] > 140:
            record["val_loss"] += 1.0
        changed.append(json.dumps(record) + "\n")
    config = Config.from_dict(json.loads((ROOT / "tests" / "planted" / "clean" / "config.json").read_text()))
    run = make_run_folder(tmp_path, config, 140)
    forecasts = []
    for text in (log, "".join(changed)):
        run.log_file.write_text(text)
        forecasts.append(backtest.forecast_cooldown(backtest.plan_cooldown(run)))
    assert forecasts[0] == forecasts[1]
    assert logs.read(run.log_file).evaluations[-1].val != json.loads(log.splitlines()[-3]).get("val_loss")


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
def test_forecast_uses_the_trained_learning_rates(tmp_path: Path, schedule: str) -> None:
    config = tiny_config(tmp_path, {"run.steps": 100, "optim.schedule": schedule})
    planned = backtest.plan_cooldown(make_run_folder(tmp_path, config, 30), steps=12)
    peak = config.optim.learning_rate
    fractions = backtest.lr_fractions(planned, learning_rates(config.optim, config.run.steps) / peak, peak) * peak
    assert len(fractions) == planned.config.run.steps == 42
    assert fractions[:30] == pytest.approx(learning_rates(config.optim, config.run.steps)[:30])
    assert fractions[30:] == pytest.approx(
        learning_rates(planned.config.optim, planned.config.run.steps)[30:], rel=1e-5
    )
    assert fractions[30] == pytest.approx(learning_rates(config.optim, config.run.steps)[30])


def test_log_with_too_few_losses_is_refused(tmp_path: Path) -> None:
    run = make_run_folder(tmp_path, tiny_config(tmp_path, RUN), 20)
    run.log_file.write_text('{"kind": "eval", "step": 0, "val_loss": 4.1}\n')
    assert "no forecast can be made at step 20" in refused(
        "C057", backtest.forecast_cooldown, backtest.plan_cooldown(run)
    )


# --- from where ------------------------------------------------------------------------------------------------------


def test_newest_checkpoint_and_a_tenth_of_its_steps(tmp_path: Path) -> None:
    planned = backtest.plan_cooldown(make_run_folder(tmp_path, tiny_config(tmp_path, RUN), 20, 55))
    assert (planned.step, planned.steps, planned.folder.path) == (55, 6, tmp_path / "a-backtest-55")


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    run = make_run_folder(tmp_path, tiny_config(tmp_path, RUN), 20, 40)
    assert "no checkpoint '30'" in refused("K003", backtest.plan_cooldown, run, 30)
    assert "there are: 20, 40" in refused("K003", backtest.plan_cooldown, run, 70)


def test_decayed_learning_rate_is_refused(tmp_path: Path) -> None:
    run = make_run_folder(tmp_path, tiny_config(tmp_path, RUN | {"optim.schedule": "cosine"}), 58)
    assert "decayed too far for a backtest" in refused("C057", backtest.plan_cooldown, run)


def test_same_backtest_continues_another_is_new(tmp_path: Path) -> None:
    run = make_run_folder(tmp_path, tiny_config(tmp_path, RUN), 40)
    first = backtest.plan_cooldown(run, steps=4)
    first.folder.path.mkdir()
    first.folder.config_file.write_text(json.dumps(first.config.to_dict()))
    assert backtest.plan_cooldown(run, steps=4) == first
    assert backtest.plan_cooldown(run, steps=5).folder.path.name == "a-backtest-40-2"


def test_backtest_of_a_training_run_is_refused(tmp_path: Path) -> None:
    run = make_run_folder(tmp_path, tiny_config(tmp_path, RUN), 40)
    with run.lock():
        message = refused("S001", backtest.run_backtest, str(run.path), BacktestOptions(backtest=True))
    assert "when the run has stopped" in message


@pytest.mark.parametrize(
    "more",
    [
        ["--backtest-at", "20"],
        ["--backtest", "--json"],
        ["--backtest", "--backtest-at", "best"],
        ["--backtest", "--backtest-steps", "0"],
        ["--backtest", "--backtest-steps", "many"],
    ],
)
def test_invalid_backtest_options_are_refused(more: list[str]) -> None:
    refused("C056", command.read, ["runs/a", *more])


def test_log_alone_cannot_be_backtested(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("iter 0: loss 3.0, time 1.0ms\n")
    refused("C056", backtest.run_backtest, str(tmp_path / "log.txt"), BacktestOptions(backtest=True))


def test_interrupted_backtest_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = backtest.plan_cooldown(make_run_folder(tmp_path, tiny_config(tmp_path, RUN), 40))

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backtest.training_process, "train_in_subprocess", interrupted)
    with pytest.raises(errors.Stopped, match="the same command continues it") as caught:
        backtest.train_cooldown(planned)
    assert caught.value.status == errors.INTERRUPTED


# --- the record ------------------------------------------------------------------------------------------------------


def test_backtests_are_stored_and_torn_lines_skipped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert backtest.load_backtests(run) == ()
    backtest.append_backtest(run, make_backtest(3.05))
    with run.backtests_file.open("a") as file:
        file.write('{"run": "x", "step": 4, "forecast": {"mean": NaN}}\n{"ru\n')
    backtest.append_backtest(run, make_backtest(3.15))
    assert backtest.load_backtests(run) == (make_backtest(3.05), make_backtest(3.15))


def test_summary_counts_losses_inside_intervals() -> None:
    backtests = [make_backtest(3.05), make_backtest(3.15), make_backtest(3.3)]
    assert [(one.inside80, one.inside95) for one in backtests] == [(True, True), (False, True), (False, False)]
    assert [(one.inside80, one.inside95) for one in (make_backtest(2.85), make_backtest(2.7))] == [
        (False, True),
        (False, False),
    ]
    assert math.isclose(backtests[2].error, -0.3)
    message = backtest.summarize(backtests)
    assert "forecasts: 3; inside the 80 % interval 1, inside the 95 % interval 2, mean error 0.1667 nats" in message
    assert backtest.summarize(()) == ""
    assert "outside its 95 % interval" in str(backtests[2])
    assert "inside its 80 % interval" in str(backtests[0])


def test_backtests_belong_to_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "runs" / "a")
    run.path.mkdir(parents=True)
    run.log_file.write_text("")
    backtest.append_backtest(run, make_backtest(3.05))
    (run.path / "other.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "runs/a", str(run.path), str(run.log_file)):
        folder = logs.find_run_folder(name)
        assert folder is not None
        assert backtest.load_backtests(folder) == (make_backtest(3.05),)
    assert all(logs.find_run_folder(name) is None for name in (str(run.path / "other.txt"), "b", "-"))


def test_error_types(tmp_path: Path) -> None:
    run = make_run_folder(tmp_path, tiny_config(tmp_path, RUN), 20)
    with pytest.raises(CheckpointError):
        backtest.plan_cooldown(run, 30)
    with pytest.raises(ConfigError, match="C024"):
        backtest.run_backtest(str(run_folder(tmp_path, "nobody").path), BacktestOptions(backtest=True))
