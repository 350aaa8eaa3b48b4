"""The files of a run and of a data folder, each removed, emptied, halved, zeroed and exchanged with another run's.

Every command that reads them gives the answer that it gives without the damage, a warning that names the file, or one
error. The files of a checkpoint: test_checkpoint_faults.py.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.corpora import some_texts
from helpers.files import files_of
from helpers.training import arguments, copy_workspace, leaf_bytes, run_folder, saved_state, tiny_config

from jaxgpt import cli, errors, train
from jaxgpt.prepare.pipeline import prepare

CHANGES = {"model.n_layer": 1, "model.vocab_size": 256, "run.steps": 6, "run.save_every": 2, "run.eval_every": 3}
OTHER = {"run.seed": 3, "run.name": "b"}  # the same network, so that nothing else is compiled
EVERY = ("sample", "evaluate", "diagnose", "plan and actual", "checkpoints", "train")
READERS = {  # of each file, the commands that may read it
    **{f"runs/a/{name}": EVERY for name in ("config.json", "tokenizer.json", "data.json")},
    **{f"runs/a/{name}": ("diagnose", "plan and actual", "train") for name in ("plan.json", "log.jsonl")},
    **{f"data/{name}": ("evaluate", "budget", "train") for name in ("manifest.json", "tokenizer.json")},
    **{f"data/{split}_000000.bin": ("evaluate", "budget", "train") for split in ("train", "val")},
    **{f"data/{name}": ("budget",) for name in ("audit.json", "audit-clusters.bin")},
}
NOT_READ = {"report.html", "audit.html", ".lock"}
COMMANDS = {
    "sample": ["sample", "a", "--tokens", "8"],
    "evaluate": ["evaluate", "a"],
    "diagnose": ["diagnose", "runs/a"],
    "plan and actual": ["budget", "--actual", "runs/a"],
    "budget": ["budget", *(word for word in arguments(Path(), CHANGES) if word != "--yes")],
    "checkpoints": ["checkpoint", "verify", "a"],
    "train": ["train", *arguments(Path(), CHANGES)],
}


LEGITIMATE = {("data/manifest.json", "budget"), ("data/audit.json", "budget")}  # a folder may have none


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def remove(path: Path, _: Path) -> None:
    path.unlink()


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path, _: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def exchange(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory, xla_cache: Path) -> Path:
    """Two runs, `a` on `data` and `b` on `other`; `a` has lost its last checkpoint."""
    workspace = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        for folder, words in (("data", ""), ("other", "Ärger und Öl. ")):
            Path(f"{folder}.txt").write_text("<|endoftext|>".join(words + text for text in some_texts()))
            prepare([f"{folder}.txt"], folder, tokenizer="char", val_tokens=1000, suggest=False)
            assert errors.run(cli.dispatch, ["audit", folder]) == 0
        train.train(tiny_config(Path(), CHANGES | {"data.path": "data", "run.dir": "runs"}))
        train.train(tiny_config(Path(), CHANGES | OTHER | {"data.path": "other", "run.dir": "runs"}))
    return workspace


@pytest.fixture
def workspace(two_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_workspace(two_runs, tmp_path)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(run_folder(Path()).checkpoints / "6")
    return tmp_path


def ask(name: str, capsys: pytest.CaptureFixture[str]) -> Answer:
    """The answer of a command; that of `train` is its final state."""
    capsys.readouterr()
    status = errors.run(cli.dispatch, COMMANDS[name])
    out, err = capsys.readouterr()
    if name == "train" and status == 0:
        out = str(leaf_bytes(saved_state(tiny_config(Path(), CHANGES))))
    return Answer(status, out, err)


@pytest.fixture(scope="module")
def known() -> dict[str, Answer]:
    return {}


@pytest.fixture
def answers(
    two_runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    known: dict[str, Answer],
) -> dict[str, Answer]:
    """The answers without damage."""
    if not known:
        copy_workspace(two_runs, tmp_path / "undamaged")
        monkeypatch.chdir(tmp_path / "undamaged")
        shutil.rmtree(run_folder(Path()).checkpoints / "6")
        known |= {name: ask(name, capsys) for name in COMMANDS}
        assert {answer.status for answer in known.values()} == {0}, known
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(tmp_path / "undamaged")
    return known


def is_right(answer: Answer, expected: Answer, file: str) -> bool:
    lines = answer.err.splitlines()
    if answer.status:
        errors_ = [line for line in lines if line.startswith("error[")]
        return len(errors_) == 1 and lines[-1].startswith("  help: ")
    return answer.out == expected.out or file in answer.text.replace("\n", "")


def test_every_file_is_in_the_table(workspace: Path) -> None:
    names = {str(path.relative_to(workspace)) for path in files_of(workspace) if path.name not in NOT_READ}
    assert {
        name for name in names if name.startswith(("runs/a/", "data/")) and "checkpoints" not in name
    } == READERS.keys()


@pytest.mark.parametrize("damage", [remove, empty, halve, zero, exchange])
@pytest.mark.parametrize("name", READERS)
def test_damaged_file_never_gives_another_answer(
    capsys: pytest.CaptureFixture[str],
    answers: dict[str, Answer],
    workspace: Path,
    name: str,
    damage: Callable[[Path, Path], Any],
) -> None:
    damage(Path(name), Path(name.replace("runs/a", "runs/b").replace("data/", "other/")))
    commands = [command for command in READERS[name] if damage is not remove or (name, command) not in LEGITIMATE]
    given = {command: ask(command, capsys) for command in commands}
    assert not {command for command in commands if not is_right(given[command], answers[command], Path(name).name)}, (
        given
    )
