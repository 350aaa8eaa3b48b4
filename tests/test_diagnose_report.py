"""The report as a page: the answers of the terminal, figures, and nothing from a log that a browser would execute."""

import json
import re
from pathlib import Path

import pytest
from helpers import logsamples
from helpers.diagnose_logs import LOGS, nanogpt
from helpers.html import Reader

from jaxgpt import diagnose, errors, logs
from jaxgpt.diagnose import figures, live, messages, run_overview
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.diagnosis import diagnose as diagnosed
from jaxgpt.diagnose.options import Options
from jaxgpt.diagnose.report import build_report
from jaxgpt.runs.folder import RunFolder
from jaxgpt.utils.report import Paragraph, html_page, print_report, to_json

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
    assert text.count("&lt;script&gt;") >= 3  # the name, in title and heading, and lines of the log
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


# --- the page of a run -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The folder of a fork: steps 40 to 79 of 100, resumed at step 60, stopped early, with two samples."""
    records = [*logsamples.jaxgpt_records(20, 40), *logsamples.jaxgpt_records(20, 60)]
    for record in records:
        if record["kind"] == "start":
            record |= {"fork": "runs/parent", "versions": {"jax": "0.10"}}
    records.insert(-1, {"kind": "sample", "step": 60, "prompt": "def ", "text": INJECTION})
    records.append({"kind": "sample", "step": 80, "prompt": "def ", "text": "main():"})
    records.append({"kind": "stop", "reason": "early-stop", "detail": "little to gain"})
    folder = RunFolder(tmp_path / "small")
    folder.path.mkdir()
    folder.log_file.write_text(logsamples.jsonl(records))
    folder.config_file.write_text(json.dumps(logsamples.CONFIG.to_dict()))
    folder.data_file.write_text('{"train_tokens": 20000, "val_tokens": 1000, "tokenizer": "bpe-64"}')
    return folder


def test_run_page_starts_with_the_result_and_the_run(run: RunFolder) -> None:
    live.write_run_report(run)
    page = run.report_file.read_text()
    text = " ".join(Reader(page).text.split())
    assert text.index("The validation loss is 3.7826 ± 0.010 nats per token after 80 of 100 steps") < text.index("Loss")
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles[:5] == ["Loss", "The run", "Throughput", "Gradient norm", "Samples"]
    assert titles.index("Samples") < titles.index("When it ends")
    labels = re.findall(r'aria-label="([^"]+)"', page)
    assert len(labels) == len(set(labels))  # no figure is drawn twice


def test_run_page_has_the_facts_of_the_run(run: RunFolder) -> None:
    live.write_run_report(run)
    text = Reader(run.report_file.read_text()).text
    for fact in (
        "gpt2, 2 layers, 2 heads, width 16, context of 16 tokens",
        "20,000 tokens to train on, 1,000 for validation; tokenizer bpe-64",
        "64 tokens per step (2 sequences × 16 × 2 accumulated)",
        "100 steps, 6,400 tokens, 0.32 epochs",
        "adamw, learning rate 0.001 to 0.0001 (cosine, 10 warmup steps), weight decay 0.1",
        "1 × RTX 4070",
        "jax 0.10",
        "runs/parent, from step 40 on",
        "at step 60",
        "stopped early: little to gain",
        "python -m jaxgpt.train --config",
        "--fork runs/parent",
    ):
        assert fact in text


def test_run_page_shows_the_samples_as_text(run: RunFolder) -> None:
    live.write_run_report(run)
    reader = Reader(run.report_file.read_text())
    assert f"def {INJECTION}" in reader.text
    assert "script" not in reader.tags
    assert (
        reader.text.index("After 60 steps:") < reader.text.index("After 80 steps:") < reader.text.index("def main():")
    )


def test_plan_is_compared_with_the_run(run: RunFolder) -> None:
    row = {"total_steps": 100, "loss": 3.6, "loss_low": 3.5, "loss_high": 3.7}
    plan = {"rows": [row], "step_time": {"jaxgpt": {"seconds_per_step": 2.1, "seconds_low": 1.9, "seconds_high": 2.5}}}
    (run.path / "plan.json").write_text(json.dumps(plan))
    live.write_run_report(run)
    text = " ".join(Reader(run.report_file.read_text()).text.split())
    assert "2; 2 min of training so far (inside the interval)" in text


def test_figures_of_a_fork_start_at_its_first_step(run: RunFolder) -> None:
    diagnosis = live.diagnose_run(run)
    assert figures.first_step(diagnosis) == 40
    assert figures.first_step(diagnose_text(nanogpt())) == 0


def test_samples_are_spread_over_the_run() -> None:
    records = [{"kind": "sample", "step": step, "text": "a"} for step in range(0, 101, 10)]
    titles = [block.text for block in run_overview.sample_blocks(records) if isinstance(block, Paragraph)]
    assert titles == [f"After {step} steps:" for step in (0, 20, 40, 60, 80, 100)]


def test_html_option_on_a_run_writes_the_page_of_the_run(run: RunFolder, tmp_path: Path) -> None:
    assert errors.run(diagnose.main, [str(run.path), "--html", str(tmp_path / "page.html")]) == 0
    assert "<h2>The run</h2>" in (tmp_path / "page.html").read_text()
