"""Results of lm-evaluation-harness in a run's folder, its model card and its report."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.diagnose import run_overview
from jaxgpt.export import model_card
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.task_results import read_task_results, task_metrics, write_task_results

HARNESS = {"acc,none": 0.625, "acc_stderr,none": 0.0171, "acc_norm,none": 0.5, "alias": "piqa", "samples": 200}


def values(step: int, accuracy: float = 0.625, limit: int | None = 200) -> dict[str, Any]:
    results = {"piqa": HARNESS | {"acc,none": accuracy}}
    return {"run": "runs/a", "step": step, "limit": limit, "results": results}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_metrics_have_their_errors() -> None:
    accuracy, normalized = task_metrics(values(20))
    assert (accuracy.metric, str(accuracy), accuracy.documents) == ("acc", "0.6250 ± 0.0171", "200 documents")
    assert (normalized.metric, str(normalized)) == ("acc_norm", "0.5000")
    assert next(task_metrics(values(20, limit=None))).documents == "all documents"


def test_the_newest_result_of_a_step_counts_and_damaged_files_do_not(run: RunFolder) -> None:
    folder = write_task_results(run, values(20)).parent
    (folder / "step-20-20990101-000000.json").write_text(json.dumps(values(20, accuracy=0.75)))
    (folder / "step-5-20000101-000000.json").write_text(json.dumps(values(5, accuracy=0.25)))
    (folder / "step-9-20000101-000000.json").write_text('{"step": 9, "results"')
    (folder / "step-8-20000101-000000.json").write_text('{"step": 8, "limit": null, "results": {"piqa": 3}}')
    found = [(result.step, result.value) for result in read_task_results(run) if result.metric == "acc"]
    assert found == [(5, 0.25), (20, 0.75)]


def test_card_has_the_results_of_its_step_and_the_report_has_all(run: RunFolder) -> None:
    for step in (10, 20):
        (run.path / "evaluations").mkdir(exist_ok=True)
        (run.path / "evaluations" / f"step-{step}-20000101-000000.json").write_text(json.dumps(values(step, step / 40)))
    assert model_card._task_rows(run, 20) == {
        "piqa, acc (200 documents)": "0.5000 ± 0.0171",
        "piqa, acc_norm (200 documents)": "0.5000",
    }
    (table,) = run_overview._task_blocks(run)
    assert [row[:4] for row in table.rows if row[2] == "acc"] == [  # type: ignore[union-attr]
        ("10", "piqa", "acc", "0.2500 ± 0.0171"),
        ("20", "piqa", "acc", "0.5000 ± 0.0171"),
    ]


def test_run_without_results_has_no_section(run: RunFolder) -> None:
    assert read_task_results(run) == []
    assert list(run_overview._task_blocks(run)) == []


def test_card_names_duplicates_leaks_and_energy() -> None:
    audit = {
        "tokens": 1000,
        "effective_unique_tokens": 900,
        "documents": 50,
        "duplicates": {"exact": {"documents": 2}, "near": {"documents": 3}},
        "leakage": {"exact": {"documents": 0}, "near": {"documents": 1}},
    }
    rows = model_card._audit_rows(audit)
    assert rows["unique tokens (audit)"] == "900 of 1,000"
    assert rows["duplicates (audit)"] == "5 of 50 documents, exact or near"
    assert rows["validation documents in the training text (audit)"] == "1"


def test_card_estimates_energy_on_known_devices_only() -> None:
    from jaxgpt.config.files import load_config

    config = load_config("quickstart")
    records: list[dict[str, Any]] = [{"kind": "step", "step": 0, "seconds": 3600.0}]
    for kind, is_known in (("NVIDIA GeForce RTX 4070", True), ("cpu", False)):
        start = {"kind": "start", "step": 0, "device": {"kind": kind, "count": 1}}
        rows = model_card._training_rows(config, [start, *records], 1)
        energies = [float(value.split()[0]) for name, value in rows.items() if name.startswith("energy")]
        assert bool(energies) is is_known
        assert all(0.1 < energy < 0.5 for energy in energies)
