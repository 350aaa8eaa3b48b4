"""The command that verifies, lists and deletes the checkpoints of a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxgpt import checkpoint, errors
from jaxgpt.config import Config
from jaxgpt.runs.checkpoint_files import MANIFEST, steps_in, write_manifest
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import RunLog

LOSSES = {10: 3.5, 20: 3.0, 30: None, 40: 3.25, 50: 3.75}


class Tokenizer:
    def save(self, path: Path) -> None:
        path.write_text("{}")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with five checkpoints of a file each; that of step 20 is the best."""
    folder = RunFolder(tmp_path / "runs/a")
    folder.path.mkdir(parents=True)
    tokens = {"tokens_sha256": "ab"}
    folder.write_identity(Config(), tokens, Tokenizer())  # type: ignore[arg-type]
    for step, loss in LOSSES.items():
        path = folder.checkpoints / str(step) / "state"
        path.mkdir(parents=True)
        (path / "values").write_text(f"of step {step}")
        write_manifest(path.parent, step, loss, {"config": Config().to_dict(), "tokens": tokens})
    monkeypatch.chdir(tmp_path)
    return folder


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = errors.run(checkpoint.main, arguments)
    return (status, *capsys.readouterr())


def states(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[int, Any]:
    rows = json.loads(answer(capsys, *arguments, "--json")[1])["checkpoints"]
    return {row["step"]: row["state"] for row in rows}


def test_list_names_every_checkpoint_with_its_loss(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = answer(capsys, "list", "a")
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 1 + len(LOSSES))
    assert [line.split()[0] for line in lines[1:]] == ["10", "20", "30", "40", "50"]
    assert "3.2500  not verified" in lines[4]
    assert "-  not verified" in lines[3]


def test_verify_names_the_damaged_file(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "verify", "a")[0] == 0
    (run.checkpoints / "30/state/values").write_text("of step 31")
    (run.checkpoints / "40" / MANIFEST).unlink()
    status, out, err = answer(capsys, "verify", "a")
    assert (status, "error[K003]: runs/a/checkpoints: damaged: 30, 40" in err) == (4, True)
    assert "damaged: state/values has changed" in out
    assert steps_in(run.checkpoints) == list(LOSSES)
    assert states(capsys, "verify", "a") | {30: 0, 40: 0} == dict.fromkeys((10, 20, 50), "valid") | {30: 0, 40: 0}


def test_verify_reads_the_files_of_the_run(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.tokenizer_file.write_text("[]")
    status, _, err = answer(capsys, "verify", "a")
    assert (status, "error[K005]: runs/a/tokenizer.json is damaged" in err) == (4, True)


def test_prune_keeps_the_newest_valid_and_the_best(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (run.checkpoints / "50/state/values").unlink()
    pruned = states(capsys, "prune", "a", "--keep", "1")
    assert [step for step, state in pruned.items() if state == "deleted"] == [10, 30]
    assert steps_in(run.checkpoints) == [20, 40, 50]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["20", "40", "50"]


def test_prune_keeps_the_newest_from_before_a_divergence(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(run.log_file) as log:
        log.write("start", step=0, config=Config().to_dict())
        for step in range(50):
            log.write("step", step=step, loss=3.0 if step < 35 else "nan", grad_norm=1.0)
    states(capsys, "prune", "a", "--keep", "1")
    assert steps_in(run.checkpoints) == [20, 30, 50]


def test_prune_of_a_run_in_use_is_refused(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with run.lock():
        status, _, err = answer(capsys, "prune", "a", "--keep", "1")
    assert (status, "error[S001]" in err, steps_in(run.checkpoints)) == (7, True, list(LOSSES))


@pytest.mark.parametrize(
    "arguments", [["prune", "a"], ["list", "a", "--keep", "1"], ["prune", "a", "--keep", "0"], ["remove", "a"]]
)
def test_command_line_that_is_wrong_changes_nothing(
    run: RunFolder, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert answer(capsys, *arguments)[0] == 2
    assert steps_in(run.checkpoints) == list(LOSSES)
