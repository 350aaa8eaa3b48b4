"""The report as a page: the answers of the terminal, figures, and nothing from a log that a browser would execute."""

import re
from pathlib import Path

import pytest
from helpers.diagnose_logs import LOGS, nanogpt
from helpers.html import Reader

from jaxgpt import diagnose, errors, logs
from jaxgpt.diagnose import messages
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.diagnosis import diagnose as diagnosed
from jaxgpt.diagnose.options import Options
from jaxgpt.diagnose.report import build_report
from jaxgpt.utils.report import html_page, print_report, to_json

INJECTION = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def diagnose_text(text: str, source: str = "out.log", config: str | None = "fineweb40m") -> Diagnosis:
    history = logs.read_text(text, source)
    return diagnosed(history, resolve_context(history, Options(config=config)), now=1.75e9)


def page_of(diagnosis: Diagnosis) -> str:
    return html_page(build_report(diagnosis))


def test_page_has_the_answers_of_the_terminal() -> None:
    diagnosis = diagnose_text(nanogpt())
    text = Reader(page_of(diagnosis)).text
    for sentence in messages.summary(diagnosis):
        assert sentence in text
    for finding in diagnosis.findings:
        assert finding.id in text
    for scenario in diagnosis.scenarios:
        assert f"{scenario.forecast.mean:.3f}" in text


def test_figures_show_step_time_loss_learning_rate_and_gap() -> None:
    text = page_of(diagnose_text(nanogpt()))
    labels = re.findall(r'aria-label="([^"]+)"', text)
    assert [label.split(":")[0].split(" ")[0] for label in labels] == [
        "Seconds",
        "Validation",
        "Learning",
        "Validation",
    ]
    assert "the bands contain 80 % and 95 %" in labels[1]


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("config", [None, "fineweb40m"])
def test_every_log_has_a_page(name: str, config: str | None) -> None:
    text = page_of(diagnose_text(LOGS[name], config=config))
    assert text.startswith("<!DOCTYPE html>")
    assert "nan" not in re.findall(r">([^<]*)</td>", text)


def test_nothing_from_a_log_is_executed() -> None:
    log = nanogpt().replace("\n", f" {INJECTION}\n")
    text = page_of(diagnose_text(log, source=INJECTION))
    tags = set(Reader(text).tags)
    assert "script" not in tags
    assert "img" not in tags
    assert INJECTION not in text
    assert text.count("&lt;script&gt;") > 3  # the name, in title and heading, and lines of the log
    assert not [value for name, value in Reader(text).attributes if name.startswith("on")]


def test_page_loads_nothing() -> None:
    text = page_of(diagnose_text(nanogpt()))
    assert "default-src 'none'" in text
    assert "src=" not in text
    links = [value for name, value in Reader(text).attributes if name in ("src", "href", "xlink:href")]
    assert all(value and value.startswith("#") for value in links)


def test_page_replaces_only_an_older_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out.log").write_text(nanogpt())
    Path("mine.txt").write_text("mine")
    for _ in range(2):
        assert errors.run(diagnose.main, ["out.log", "--config", "fineweb40m", "--html", "page.html"]) == 0
    assert Path("page.html").read_text().startswith("<!DOCTYPE html>")
    assert errors.run(diagnose.main, ["out.log", "--html", "mine.txt"]) == 2
    assert Path("mine.txt").read_text() == "mine"


def test_terminal_page_and_json_come_from_one_report(capsys: pytest.CaptureFixture[str]) -> None:
    report = build_report(diagnose_text(nanogpt()))
    print_report(report)
    printed = " ".join(capsys.readouterr().out.split())
    page = " ".join(Reader(html_page(report)).text.split())
    dumped = to_json(report)
    assert [section["title"] for section in dumped["report"]] == [section.title for section in report.sections]
    for sentence in (*report.summary, *(item["action"] for item in dumped["recommendations"])):
        assert sentence in printed
        assert sentence in page
