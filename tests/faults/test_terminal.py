"""Text of others (documents, models, file names) cannot control the terminal that it is printed on."""

import io
import shutil
from pathlib import Path

import pytest
from helpers.training import arguments, run_folder, tiny_config
from rich.console import Console

from jaxgpt import cli, errors, sample, train
from jaxgpt.config import Config
from jaxgpt.generation import sampler
from jaxgpt.runs.log import warn
from jaxgpt.training.panel import LivePanel

HOSTILE = "a\x1b]0;title\x07b\x9b2Jc\u202egpj\u2066d\re\x00f\u2028g"
ESCAPED = r"a\x1b]0;title\x07b\x9b2Jc\u202egpj\u2066d\re\x00f\u2028g"


def test_controls_are_escaped_and_text_stays() -> None:
    assert errors.visible_controls(HOSTILE) == errors.printable(HOSTILE) == ESCAPED
    kept = "Größe\t1\u00a0km\n\U0001f469\u200d\U0001f680 نامه\u200cای"
    assert errors.visible_controls(kept) == kept


@pytest.mark.parametrize(("is_terminal", "expected"), [(True, ESCAPED), (False, HOSTILE)])
def test_sample_on_a_terminal_is_escaped(
    finished: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, expected: str
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr(sampler, "stream_text", lambda *_, **__: iter([HOSTILE]))
    sample.main(["a"])
    assert out.getvalue() == f"{expected}\n"


def test_panel_and_warnings_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    LivePanel(Config(), Console(file=out, width=200)).print(HOSTILE)
    warn(HOSTILE)
    assert out.getvalue() == f"{ESCAPED}\n"
    assert capsys.readouterr().err == f"warning: {ESCAPED}\n"


def test_names_of_folders_are_escaped(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "data").rename(workspace / "da\x1b[2Jta")
    changes = {"data.path": str(workspace / "da\x1b[2Jta"), "run.steps": 2, "run.dir": str(workspace / "r\x1b[0m")}
    train.train(tiny_config(workspace, changes))
    assert errors.run(train.main, [*arguments(workspace, changes), "--model.n-layer=3"]) == 4
    captured = capsys.readouterr()
    assert r"da\x1b[2Jta" in captured.out
    assert "\x1b" not in captured.out + captured.err


# --- each command, on names and texts of others -----------------------------------------------------------------------

CONTROLS = "\x1b]0;t\x07"


def log_with_controls(workspace: Path) -> Path:
    """A run's log whose config, names and texts have controls."""
    log = run_folder(workspace).log_file
    text = log.read_text().replace('"cpu"', r'"c\u001b[2Jpu"').replace('"fineweb"', r'"f\u001b[2J"')
    log.write_text(text.replace('"data/', r'"d\u001b[2Jta/').replace('"path": "', r'"path": "\u001b[2J'))
    return log


def commands(workspace: Path) -> dict[str, list[str]]:
    """Command lines with controls in what they read or write."""
    name = workspace / f"n{CONTROLS}"
    name.mkdir()
    shutil.copytree(run_folder(workspace).path, name / "run")
    shutil.copytree(workspace / "data", name / "data")
    shutil.copy(log_with_controls(workspace), name / "log.jsonl")
    (name / "c.py").write_text(f'"""{CONTROLS}"""\nfrom jaxgpt.config import Config\nconfig = Config()\n')
    (name / "t.csv").write_text(f"step,val_loss,a{CONTROLS}\n" + "".join(f"{i},{3 + 1 / i},1\n" for i in range(1, 40)))
    (name / "t.txt").write_text(f"A text {CONTROLS} twice.\n" * 40)
    options = [word for word in arguments(workspace) if word != "--yes"]
    return {
        "diagnose a run": ["diagnose", f"{run_folder(workspace).path}", "--verbose"],
        "diagnose a log": ["diagnose", f"{name}/log.jsonl", "--verbose"],
        "diagnose a table": ["diagnose", f"{name}/t.csv", "--verbose"],
        "diagnose to a page": ["diagnose", f"{name}/t.csv", "--html", f"{name}/d.html"],
        "list checkpoints": ["checkpoint", "list", f"{name}/run"],
        "sample as JSON": ["sample", f"{name}/run", "--tokens", "4", "--json"],
        "evaluate": ["evaluate", f"{name}/run"],
        "export": ["export", f"{name}/run", "--out", f"{name}/hf"],
        "print a config": ["config", f"{name}/c.py"],
        "copy a config": ["init", f"{name}/c.py", "--out", f"{name}/own.py"],
        "plan": ["budget", *options, f"--data.path={name}/data", "--html", f"{name}/p.html"],
        "plan and actual": ["budget", "--actual", f"{name}/run"],
        "prepare": ["prepare", f"{name}/t.txt", "--out", f"{name}/o", "--tokenizer", "char", "--val-tokens", "0"],
        "audit": ["audit", f"{name}/o"],
        "dry run": ["train", *arguments(workspace), f"--data.path={name}/data", "--run.name=d", "--dry-run"],
    }


def test_no_command_prints_controls(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {}
    for name, argv in commands(finished).items():
        capsys.readouterr()
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        status = errors.run(cli.dispatch, argv)
        outputs[name] = "".join(capsys.readouterr())
        assert status == 0, (name, outputs[name])
    assert [name for name, text in outputs.items() if "\x1b]" in text or "\x07" in text or "\x1b[2J" in text] == []
