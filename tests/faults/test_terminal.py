"""Text of others (documents, models, file names) cannot control the terminal that it is printed on."""

import io
from pathlib import Path

import pytest
from helpers.training import arguments, tiny_config
from rich.console import Console

from jaxgpt import errors, sample, train
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
