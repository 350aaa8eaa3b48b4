"""Step times: a roofline that stays below the device's peak and that measurements replace."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxgpt.budget import options, step_time
from jaxgpt.budget.calibrate import find_measurement
from jaxgpt.budget.devices import DEVICES, Device
from jaxgpt.budget.plan import make_plan
from jaxgpt.budget.speed import estimate, expected
from jaxgpt.config import Optim, model_size, schedule
from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError
from jaxgpt.training import optimizer as optim

REFERENCE = load_config("fineweb40m")
CARD = DEVICES["RTX 4070"]


@pytest.mark.parametrize("device", sorted(DEVICES))
@pytest.mark.parametrize("software", ["jaxgpt", "nanogpt"])
def test_no_device_is_planned_above_its_peak(device: str, software: str) -> None:
    for name in ("fineweb40m", "fineweb40m_modern", "gpt2_124m"):
        cfg = load_config(name)
        time = estimate(cfg, DEVICES[device], software)
        work = cfg.tokens_per_step * model_size.flops_per_token(cfg.model, causal=True)
        assert time.low < time.seconds < time.high
        assert work / time.low < 1.1 * DEVICES[device].tflops * 1e12
        assert 0.004 < step_time.mfu(cfg, time.seconds, DEVICES[device]) < 0.8


def test_kernels_do_the_operations_of_the_model() -> None:
    """Blocks and head are 6 N; attention counts the causal half, backward as two and a half forwards."""
    done = {kernel.name: kernel.flops for kernel in step_time.kernels(REFERENCE, CARD, "jaxgpt", best=True)}
    tokens = REFERENCE.tokens_per_step
    assert done["blocks"] + done["head"] == pytest.approx(6 * model_size.parameters(REFERENCE.model) * tokens, rel=1e-6)
    assert done["attention"] == pytest.approx(
        model_size.attention_flops_per_token(REFERENCE.model, causal=True) * tokens * 3.5 / 3
    )


@pytest.mark.parametrize("device", [None, CARD])
def test_products_of_muon_cost_time(device: Device | None) -> None:
    config = load_config("fineweb40m_modern")
    adamw, muon = (config.replace({"optim": {"optimizer": name}}) for name in ("adamw", "muon"))
    work = step_time.optimizer_flops(config) / (config.tokens_per_step * model_size.flops_per_token(config.model))
    assert 0.8 * work < expected(muon, device).seconds / expected(adamw, device).seconds - 1 < 0.02


def result(device: str, ms: float) -> dict[str, Any]:
    return {"about": {"device": device}, "warm": {"ms_per_step": ms}}


def own_seconds(*argv: str) -> float:
    """The planned seconds per step of jaxgpt for a command line."""
    return make_plan(options.read(["--gpu", "RTX 4070", *argv]).inputs).step_times["jaxgpt"].seconds


def test_measurement_replaces_the_roofline_of_its_device(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(result("NVIDIA GeForce RTX 4070", 4100.0)))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text(json.dumps(result("NVIDIA H100 80GB HBM3", 300.0)))
    measurement = find_measurement(tmp_path, CARD)
    assert measurement
    time = measurement.step_time(REFERENCE, CARD)
    assert time
    assert time.seconds == pytest.approx(4.1)
    assert time.low > 3.9
    assert "one.json" in time.basis
    larger = load_config("gpt2_124m")
    scaled = measurement.step_time(larger, CARD)
    assert scaled
    assert scaled.low <= 0.9 * scaled.seconds
    assert scaled.seconds / estimate(larger, CARD).seconds == pytest.approx(4.1 / estimate(REFERENCE, CARD).seconds)
    assert find_measurement(tmp_path / "other.json", CARD) is None


def test_measurements_are_read_only_from_the_given_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results in ./bench/results do not influence a plan."""
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    (results / "anything.json").write_text(json.dumps(result("NVIDIA GeForce RTX 4070", 100.0)))
    monkeypatch.chdir(tmp_path)
    assert own_seconds("fineweb40m") == pytest.approx(estimate(REFERENCE, CARD).seconds)
    for path in ("bench/results", "bench/results/anything.json"):
        assert own_seconds("fineweb40m", "--measurements", path) == pytest.approx(0.1)


@pytest.mark.parametrize("text", [None, "{}", "no JSON"])
def test_path_without_a_measurement_is_an_error(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="--measurements") as caught:
        find_measurement(path, CARD)
    assert caught.value.code == "C043"


def test_newest_measurement_counts_and_no_tiny_one(tmp_path: Path) -> None:
    def write(name: str, ms: float, **more: Any) -> None:
        (tmp_path / name).write_text(json.dumps(result("NVIDIA GeForce RTX 4070", ms) | more))

    def source() -> str:
        measurement = find_measurement(tmp_path, CARD)
        return measurement.source if measurement else ""

    write("c.json", 4300.0, date="2026-03-01T09:00:00", command=["bench/gpu.py", "--tiny"])
    assert source() == ""
    write("y.json", 4100.0)
    write("z.json", 4000.0, date=None)
    assert source() == "z.json"
    write("b.json", 4200.0, date="2026-02-01T09:00:00", command=["bench/gpu.py"])
    write("d.json", 4400.0, date="2025-12-31T23:59:59", command=["bench/gpu.py"])
    assert source() == "b.json"


@pytest.mark.parametrize(
    "settings",
    [
        Optim(warmup_steps=10),
        Optim(warmup_steps=0, schedule="linear", decay_steps=60),
        Optim(warmup_steps=5, schedule="wsd", decay_steps=30),
        Optim(warmup_steps=5, schedule="wsd"),
        Optim(schedule="constant", warmup_steps=7),
    ],
)
def test_the_schedule_without_jax_is_optaxs(settings: Optim) -> None:
    steps = 100
    optax_schedule = optim.schedule(settings, steps)
    for update in range(steps):
        planned = schedule.learning_rate(settings, steps, update)
        np.testing.assert_allclose(planned, float(optax_schedule(update)), rtol=2e-5, atol=1e-9)
