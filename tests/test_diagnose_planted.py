"""Small jaxgpt runs with one planted cause each (`bench/planted.py`), diagnosed with their clean baseline."""

import re
from functools import cache
from pathlib import Path

import pytest

from jaxgpt import logs
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis, diagnose
from jaxgpt.diagnose.options import Options

PLANTED = Path(__file__).parent / "planted"
CAUSES = {
    "lr-10x": {"lr-too-high"},
    "no-decay": {"not-annealed"},
    "tiny-corpus": {"overfitting", "severe-overfitting"},
    "two-layers": {"capacity-limited"},
    "no-warmup": {"recipe-or-bug"},
    "shuffled-labels": {"recipe-or-bug"},
}
# True of these runs whatever their cause: of the machine, which had other work, and of evaluations as long as training.
CIRCUMSTANCES = {"input-or-overhead-bound", "throughput"}
CONSEQUENCES = {"tiny-corpus": {"data-limited", "repetition-risk", "missing-regularization"}}


def baseline_of(name: str) -> str:
    """The run that differs in the planted cause alone: one of its own where the cause needs another recipe."""
    return f"{name}-baseline" if (PLANTED / f"{name}-baseline").is_dir() else "clean"


@cache
def diagnosed(name: str) -> Diagnosis:
    baseline = baseline_of(name)
    history = logs.read(PLANTED / name)
    return diagnose(history, resolve_context(history, Options(baseline=str(PLANTED / baseline))), now=0.0)


def confirmed(diagnosis: Diagnosis) -> list[str]:
    return [finding.id for finding in diagnosis.findings if finding.status == "confirmed"]


@pytest.mark.parametrize("name", CAUSES)
def test_planted_cause_comes_first(name: str) -> None:
    assert confirmed(diagnosed(name))[0] in CAUSES[name]


@pytest.mark.parametrize("name", CAUSES)
def test_no_other_cause_is_confirmed(name: str) -> None:
    ids = set(confirmed(diagnosed(name)))
    assert ids - CAUSES[name] - CONSEQUENCES.get(name, set()) - CIRCUMSTANCES == set()


def test_clean_run_has_no_cause() -> None:
    assert set(confirmed(diagnosed("clean"))) - CIRCUMSTANCES == set()


def test_jump_of_shuffled_labels_is_located() -> None:
    fault = next(v for v in diagnosed("shuffled-labels").findings if v.id == "recipe-or-bug")
    match = re.search(r"the loss jumped from [\d.]+ at step (\d+) and stayed", fault.conditions[0].evidence)
    assert match
    assert abs(int(match[1]) - diagnosed("shuffled-labels").context.total_steps / 2) <= 2
