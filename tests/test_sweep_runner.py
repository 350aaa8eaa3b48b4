"""The trials of a sweep: which it stops, those that fail, and a sweep that is interrupted and continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.sweeps import RATES, sweep_folder, write_tiny_config
from helpers.training import tiny_config

from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import read_log
from jaxgpt.sweep import runner
from jaxgpt.sweep.early_stop import find_hopeless
from jaxgpt.sweep.grid import Trial, make_trials
from jaxgpt.sweep.results import Outcome, read_outcome
from jaxgpt.sweep.runner import Runner

PLANTED = Path(__file__).parent / "planted"


def planted_trial(name: str, folder: Path, fraction: float = 1.0) -> Trial:
    """The planted run `name` as a trial, cut after a fraction of its steps."""
    shutil.copytree(PLANTED / name, folder / name)
    config = RunFolder(folder / name).config()
    steps = fraction * config.run.steps
    log = folder / name / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [
        record for record in records if record.get("step", 0) <= steps and (record["kind"] != "stop" or fraction == 1)
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in kept))
    return Trial((), config.replace({"run": {"dir": str(folder), "name": name}}))


def final_loss(trial: Trial) -> float:
    outcome = read_outcome(trial)
    assert outcome is not None
    assert outcome.loss is not None
    return outcome.loss


def test_a_trial_far_above_the_best_is_hopeless(tmp_path: Path) -> None:
    best = planted_trial("clean", tmp_path)
    outcome = find_hopeless(planted_trial("lr-10x", tmp_path, 0.5), best, final_loss(best))
    assert outcome is not None
    assert outcome.note.startswith("stopped at step 176, forecast 5.6")
    assert "95 %" in outcome.note
    assert outcome.loss is None


def test_a_trial_is_not_stopped_in_its_first_steps(tmp_path: Path) -> None:
    best = planted_trial("clean", tmp_path)
    assert find_hopeless(planted_trial("lr-10x", tmp_path, 0.35), best, final_loss(best)) is None


def test_an_error_that_all_forecasts_share_stops_nothing(tmp_path: Path) -> None:
    best = planted_trial("no-decay", tmp_path)
    better = planted_trial("no-decay-baseline", tmp_path, 0.42)  # it ends at 4.66, the other one at 4.71
    assert find_hopeless(better, best, final_loss(best)) is None


def test_a_trial_without_a_forecast_is_not_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = planted_trial("clean", tmp_path)
    trial = planted_trial("lr-10x", tmp_path, 0.5)
    log = RunFolder.from_config(trial.config).log_file
    log.write_text(log.read_text().replace('"val_', '"other_'))
    assert find_hopeless(trial, best, final_loss(best)) is None
    assert capsys.readouterr().err == ""
    log.unlink()
    assert find_hopeless(trial, best, final_loss(best)) is None
    assert "no forecast of lr-10x" in capsys.readouterr().err


def test_two_evaluations_in_a_row_stop_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Outcome(note="a"), None, Outcome(note="b"), Outcome(note="c")]
    monkeypatch.setattr(runner, "find_hopeless", lambda *_: answers.pop(0))
    trial = Trial((), tiny_config(tmp_path))
    running = Runner(sweep_folder(tmp_path), [trial], {}, 1, print)
    running.outcomes[trial.name] = Outcome(4.0)
    sent: list[signal.Signals] = []
    process = SimpleNamespace(send_signal=sent.append)
    job: Any = SimpleNamespace(trial=trial, hopeless=None, hopeless_evaluations=0, process=process)
    for _ in range(4):
        assert sent == []
        running._stop_if_hopeless(job)
    assert sent == [signal.SIGTERM]
    assert job.hopeless.note == "c"


def test_a_stopped_trial_ends_there_unless_all_are_to_finish(tmp_path: Path) -> None:
    trials = make_trials(tiny_config(tmp_path), [RATES], 1, tmp_path / "s")
    folder = sweep_folder(tmp_path)
    stopped = Outcome(note="stopped at step 8", forecast=4.0)
    folder.stopped = {trial.name: stopped for trial in trials}
    (folder.path / trials[0].name).mkdir(parents=True)  # that of the other one was removed
    for early_stop, expected in ((True, {trials[0].name: stopped}), (False, {})):
        running = Runner(folder, trials, {}, 1, print)
        running.read_outcomes(early_stop=early_stop)
        assert running.outcomes == expected


def run_programs(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str, workers: int = 1) -> Runner:
    """Runs two trials whose training is the Python `program`."""
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(runner, "training_command", lambda *_: [sys.executable, "-c", program])
    trials = make_trials(tiny_config(folder), [RATES], 1, folder / "s")
    running = Runner(sweep_folder(folder), trials, {}, workers, print)
    running.run(early_stop=True, options=[])
    return running


def test_a_failed_trial_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; print('error[C022]: too large\\n  help: smaller', file=sys.stderr); sys.exit(2)"
    running = run_programs(tmp_path, monkeypatch, program)
    notes = {outcome.note for outcome in running.outcomes.values()}
    assert notes == {"failed with status 2: error[C022]: too large"}
    assert len(running.outcomes) == 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot assign cores")
def test_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core cannot be shared")
    program = "import os, pathlib, time; print(os.sched_getaffinity(0)); pathlib.Path('log').touch(); time.sleep(0.5)"
    monkeypatch.setattr(runner.Runner, "_may_start", lambda self: len(self._running) < 2)
    run_programs(tmp_path, monkeypatch, program, workers=2)
    given = [eval(file.read_text()) for file in sorted((tmp_path / "s").glob("*/output.txt"))]
    assert set.union(*given) == cores
    assert not set.intersection(*given)
    assert os.sched_getaffinity(0) == cores


@contextmanager
def sweep_process(folder: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A sweep over two lengths of the tiny run in a process of its own, which ends with the block."""
    line = [
        sys.executable,
        "-m",
        "jaxgpt.sweep",
        "--config",
        "tiny.py",
        "--vary",
        "run.steps=20,600",
        "--yes",
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(runner.__file__).parents[2])}
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_for_save(process: "subprocess.Popen[str]", log: Path) -> None:
    while not (log.is_file() and '"save"' in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)


def starts(log: Path) -> int:
    return sum(record["kind"] == "start" for record in read_log(log))


def test_an_interrupted_sweep_continues(tmp_path: Path, xla_cache: Path) -> None:
    write_tiny_config(tmp_path)
    options = ("--run.save-every", "100", "--run.eval-every", "300")
    sweep = tmp_path / "runs/tiny-sweep"
    logs = [sweep / f"steps-{steps}-seed1337/log.jsonl" for steps in (20, 600)]
    with sweep_process(tmp_path, *options) as process:
        wait_for_save(process, logs[1])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert "[1 of 2] loss 4." in out
    assert "stopped: 1 of 2 trials ended, the others are saved; the same command continues" in err

    with sweep_process(tmp_path, *options, "--json", "--transfer-to", "gpt2_124m") as process:
        out, err = process.communicate()
    result = json.loads(out)
    assert "sweep tiny-sweep: 2 trials, 1 of them done" in err
    assert [starts(log) for log in logs] == [1, 2]
    assert {setting["values"]["run.steps"] for setting in result["settings"]} == {20, 600}
    assert all(4 < setting["loss"] < 5 for setting in result["settings"])
    assert result["report"][-1]["title"] == "Transfer to gpt2_124m"
    assert (sweep / "sweep.html").read_text().startswith("<!DOCTYPE html>")
