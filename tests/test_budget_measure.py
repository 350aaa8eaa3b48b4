"""Measurements by short trainings in a process of their own."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from jaxgpt import budget, errors
from jaxgpt.budget import measure
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError

TINY = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 16, "vocab_size": 64, "loss_chunk": 64}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    monkeypatch.chdir(tmp_path)


def test_some_steps_are_timed_and_scaled_to_a_whole_step(tmp_path: Path) -> None:
    config = load_config("quickstart").replace({"model": TINY, "data": {"micro_batch": 2, "accum": 8}})
    before = sorted(tmp_path.iterdir())
    record = measure.measure(config)
    assert len(record.seconds) >= 10
    assert all(0 < seconds < 60 for seconds in record.seconds)
    assert record.config == config
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "xla"] == before


def test_two_of_eight_micro_batches_are_a_quarter_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"kind": "step", "step": n, "seconds": 1.0}) + "\n" for n in range(20)))
    monkeypatch.setattr(measure, "_train", lambda *_, **__: log)
    record = measure.measure(load_config("quickstart").replace({"data": {"accum": 8}}))
    assert set(record.seconds) == {4.0}


def test_failed_training_is_reported_with_its_own_words() -> None:
    config = load_config("quickstart").replace({"model": TINY, "data": {"micro_batch": 3, "accum": 1}})
    with pytest.raises(ConfigError, match="C013") as caught:
        measure.measure(config)
    assert caught.value.code == "C045"


def test_pilot_trains_on_own_data_and_calibrates_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    for seed, name in enumerate(("train.bin", "val.bin")):
        np.random.default_rng(seed).integers(0, 50257, 20_000, dtype=np.uint16).tofile(tokens / name)
    options = ["--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "16", "--model.block-size", "16"]
    options += ["--data.path", "tokens", "--data.micro-batch", "2", "--data.accum", "1", "--model.loss-chunk", "64"]
    options += ["--run.steps", "4000", "--run.eval-tokens", "64", "--mesh.device", "cpu", "--gpu", "cpu"]
    assert errors.run(budget.main, ["fineweb40m", *options, "--pilot", "3s", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert "pilot-fineweb40m-1" in values["calibration"]["source"]
    assert values["calibration"]["loss_shift"] is not None
    assert values["step_time"]["jaxgpt"]["seconds_per_step"] > 0
    assert values["rows"][-1]["seconds"] > 4000 * values["step_time"]["jaxgpt"]["seconds_per_step"]
    assert (tmp_path / "runs" / "pilot-fineweb40m-1" / "plan.json").is_file()
