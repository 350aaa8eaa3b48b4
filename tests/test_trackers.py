"""What a run's trackers receive, each through its own library and without a server."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training import STEPS, arguments, logged_losses, records, run_folder, tiny_config, write_tokens

from jaxgpt import errors, train
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.options import Parser
from jaxgpt.errors import ConfigError
from jaxgpt.logs import event_files
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training.recorder import TRACKED_STEP_VALUES
from jaxgpt.training.tracker import open_trackers
from jaxgpt.training.tracker_backends import BACKENDS, Entry, TrackedRun, check_installed

ENTRY = Entry(5, 1.7e9, {"train/loss": 2.5, "sample": "def main():"})
TRAIN = """
import os, signal, sys
from jaxgpt import errors, train
from jaxgpt.training.recorder import Recorder

record = Recorder.step

def step(recorder, number, metrics):
    record(recorder, number, metrics)
    if number == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGTERM)

Recorder.step = step
sys.exit(errors.run(train.main, sys.argv[2:]))
"""
STEP_NAMES = {f"train/{name}" for name in TRACKED_STEP_VALUES}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a run with every tracker, which was stopped in the middle and resumed."""
    for name in ("tensorboardX", "wandb", "trackio", "mlflow"):
        pytest.importorskip(name)
    workspace = tmp_path_factory.mktemp("tracked")
    write_tokens(workspace / "data")
    stopped = train_with_all(workspace, stop_after=STEPS // 2)
    assert stopped.returncode == 75, stopped.stderr
    resumed = train_with_all(workspace, stop_after=STEPS)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    return workspace


def train_with_all(workspace: Path, stop_after: int) -> subprocess.CompletedProcess[str]:
    """Trains the tiny run in a process of its own, with every tracker, until a SIGTERM in step `stop_after`."""
    offline = {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(workspace / "trackio"),
        "MLFLOW_TRACKING_URI": str(workspace / "mlruns"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    sample = {"run.sample_prompt": "!!", "run.sample_tokens": 3}
    names = {"run.trackers": ("tensorboard", "wandb", "trackio", "mlflow")}
    command = [sys.executable, "-c", TRAIN, str(stop_after), *arguments(workspace, names | sample)]
    variables = os.environ | {"PYTHONWARNINGS": "ignore"} | offline
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=250, cwd=workspace)


def losses_of_log(workspace: Path) -> list[float]:
    """The loss of each step, exactly."""
    losses = {record["step"]: record["loss"] for record in records(run_folder(workspace))}
    return [losses[step] for step in sorted(losses)]


def scalars(file: Path) -> dict[tuple[str, int], float]:
    return {(scalar.tag, scalar.step): scalar.value for scalar in event_files.read_scalars(file) if scalar}


def test_tensorboard_gets_steps_evaluations_and_samples(tracked: Path) -> None:
    files = sorted(run_folder(tracked).tensorboard.iterdir())
    values = scalars(files[0]) | scalars(files[1])
    losses = [values["train/loss", step] for step in range(STEPS)]
    assert losses == pytest.approx(losses_of_log(tracked))
    assert {name for name, step in values if step == 3} == STEP_NAMES
    assert values["eval/val_loss", STEPS] > 0
    assert b"sample" in files[0].read_bytes()


def test_run_without_tensorboard_installed(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert errors.run(train.main, arguments(workspace, {"run.trackers": ("auto",)})) == 0
    assert capsys.readouterr().err == ""
    assert not run_folder(workspace).tensorboard.exists()
    assert errors.run(train.main, arguments(workspace, {"run.name": "b", "run.trackers": ("tensorboard",)})) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error[C085]: run.trackers has tensorboard, and tensorboardX is not installed",
        "  help: pip install tensorboardX, or leave tensorboard out",
    ]
    assert not (workspace / "runs" / "b").exists()


def test_run_continues_if_tensorboard_cannot_write(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboardX")
    run_folder(workspace).path.mkdir(parents=True)
    run_folder(workspace).tensorboard.write_text("a file")
    assert errors.run(train.main, arguments(workspace, {"run.trackers": ("tensorboard",)})) == 0
    assert capsys.readouterr().err.startswith("warning: nothing more goes to TensorBoard: File exists")
    assert len(logged_losses(run_folder(workspace))) == STEPS


@pytest.mark.parametrize("words", ["tensorboard,wandb", "tensorboard, wandb"])
def test_trackers_are_separated_by_commas_or_spaces(words: str) -> None:
    for given in (words.split(" "), [words]):
        config, _ = parse_config(Parser("train", "test"), ["quickstart", "--run.trackers", *given])
        assert config.run.trackers == ("tensorboard", "wandb")
    config, _ = parse_config(Parser("train", "test"), ["quickstart", "--run.trackers", "none"])
    assert config.run.trackers == ()


def test_unknown_tracker_is_refused() -> None:
    with pytest.raises(ConfigError, match="'comet' is not known") as caught:
        parse_config(Parser("train", "test"), ["quickstart", "--run.trackers", "comet"])
    assert "wandb" in caught.value.help


def test_missing_package_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match="trackio is not installed"):
        check_installed(tiny_config(workspace, {"run.trackers": ("trackio",)}))


def test_wandb_continues_its_run(tracked: Path) -> None:
    files = list((run_folder(tracked).path / "wandb").glob("offline-run-*/*.wandb"))
    written = b"".join(file.read_bytes() for file in files)
    assert all(name.encode() in written for name in (*STEP_NAMES, "eval/val_loss", "n_layer"))
    assert len({file.stem for file in files}) == 1


@pytest.mark.filterwarnings("ignore")
def test_wandb_without_a_key_says_how_to_get_one(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It must not ask on the terminal, below the live panel."""
    pytest.importorskip("wandb")
    for name, value in {"HOME": str(tmp_path), "WANDB_MODE": "online", "WANDB_API_KEY": ""}.items():
        monkeypatch.setenv(name, value)
    run_folder(workspace).path.mkdir(parents=True)
    run_folder(workspace).log_file.write_text("{}\n")
    run = TrackedRun(run_folder(workspace), tiny_config(workspace))
    (wandb,) = open_trackers(["wandb"], run)
    wandb._thread.join(60)
    wandb.close()
    expected = "warning: nothing more goes to W&B: no API key: run wandb login, or set WANDB_MODE=offline"
    assert capsys.readouterr().err.splitlines() == [expected]


def test_trackio_gets_every_step_of_one_run(tracked: Path) -> None:
    with sqlite3.connect(tracked / "trackio" / "jaxgpt.db") as database:
        query = "SELECT step, run_name FROM metrics WHERE CAST(metrics AS TEXT) LIKE '%train/loss%' ORDER BY step"
        rows = database.execute(query).fetchall()
    assert [step for step, _ in rows] == list(range(STEPS))
    assert len({name for _, name in rows}) == 1


def test_mlflow_continues_its_run(tracked: Path) -> None:
    (metric,) = (tracked / "mlruns").glob("*/*/metrics/train/loss")
    rows = [line.split() for line in metric.read_text().splitlines()]
    assert [int(step) for _, _, step in rows] == list(range(STEPS))
    assert [float(loss) for _, loss, _ in rows] == pytest.approx(losses_of_log(tracked))
    assert (metric.parents[2] / "params" / "model.n_layer").read_text() == "2"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_name_in_the_config_is_a_backend(name: str) -> None:
    assert name in BACKENDS


def test_numbers_and_texts_of_an_entry() -> None:
    assert ENTRY.numbers == {"train/loss": 2.5}
    assert ENTRY.texts == {"sample": "def main():"}


def test_two_runs_of_one_name_have_different_ids(workspace: Path) -> None:
    config = tiny_config(workspace)
    ids = []
    for name in ("one", "two"):
        folder = RunFolder(workspace / name)
        folder.path.mkdir()
        folder.log_file.write_text(f'{{"kind": "start", "time": {len(ids)}}}\n{{"kind": "step"}}\n')
        ids.append(TrackedRun(folder, config).id)
        folder.log_file.write_text(folder.log_file.read_text() + '{"kind": "stop"}\n')
        assert TrackedRun(folder, config).id == ids[-1]
    assert ids[0] != ids[1]
