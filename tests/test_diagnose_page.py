"""The page: the answers of the terminal, figures of what there is, and nothing of a log that a browser would obey."""

import re
from pathlib import Path

import pytest
from helpers.html import Reader
from test_diagnose_command import LOGS, nanogpt

from jaxgpt import diagnose, errors, logs
from jaxgpt.diagnose import messages
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.diagnosis import diagnose as diagnosed
from jaxgpt.diagnose.options import Options
from jaxgpt.diagnose.page import page

NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def found(text: str, source: str = "out.log", config: str | None = "fineweb40m") -> Diagnosis:
    history = logs.read_text(text, source)
    return diagnosed(history, resolve_context(history, Options(config=config)), now=1.75e9)


def test_it_says_what_the_terminal_says() -> None:
    held = found(nanogpt())
    text = Reader(page(held)).text
    for sentence in messages.opening(held):
        assert sentence in text
    for finding in held.findings:
        assert finding.id in text
    for one in messages.endings(held):
        assert f"{one.forecast.mean:.3f}" in text


def test_its_figures_show_loss_rate_pace_and_gap() -> None:
    text = page(found(nanogpt()))
    labels = re.findall(r'aria-label="([^"]+)"', text)
    assert [label.split(":")[0].split(" ")[0] for label in labels] == [
        "Validation",
        "Learning",
        "Seconds",
        "Validation",
    ]
    assert "the bands hold 80 % and 95 %" in labels[0]


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("config", [None, "fineweb40m"])
def test_every_log_has_a_page(name: str, config: str | None) -> None:
    text = page(found(LOGS[name], config=config))
    assert text.startswith("<!DOCTYPE html>")
    assert "nan" not in re.findall(r">([^<]*)</td>", text)


def test_nothing_of_a_log_or_a_name_is_obeyed() -> None:
    nasty = nanogpt().replace("\n", f" {NASTY}\n")
    text = page(found(nasty, source=NASTY))
    tags = set(Reader(text).tags)
    assert "script" not in tags
    assert "img" not in tags
    assert NASTY not in text
    assert text.count("&lt;script&gt;") > 3  # the name, in title and heading, and lines of the log
    assert not [value for name, value in Reader(text).attributes if name.startswith("on")]


def test_it_loads_nothing() -> None:
    text = page(found(nanogpt()))
    assert "default-src 'none'" in text
    assert "src=" not in text
    places = [value for name, value in Reader(text).attributes if name in ("src", "href", "xlink:href")]
    assert all(value and value.startswith("#") for value in places)


def test_a_page_is_written_and_replaces_only_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out.log").write_text(nanogpt())
    Path("mine.txt").write_text("mine")
    for _ in range(2):
        assert errors.run(diagnose.main, ["out.log", "--config", "fineweb40m", "--html", "page.html"]) == 0
    assert Path("page.html").read_text().startswith("<!DOCTYPE html>")
    assert errors.run(diagnose.main, ["out.log", "--html", "mine.txt"]) == 2
    assert Path("mine.txt").read_text() == "mine"
