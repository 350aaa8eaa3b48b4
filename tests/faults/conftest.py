"""Faults: what is on the disk after each, and what a person is told."""

import pytest


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report at the end of a run, whose figures take as long as the run."""
    monkeypatch.setattr("jaxgpt.diagnose.live.write_run_report", lambda _: None)
