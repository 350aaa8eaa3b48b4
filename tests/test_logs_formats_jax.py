"""Logs of torchtitan, MaxText and Levanter, and nanochat's current header."""

import pytest
from helpers import logformats_jax
from helpers.logformats_jax import TITAN_HEAD
from helpers.logsamples import loss

from jaxgpt import logs
from jaxgpt.logs.history import History


def read(text: str) -> History:
    history = logs.read_text(text, "log")
    assert not any("could not be read" in note or "unknown form" in note for note in history.notes)
    return history


def test_torchtitan() -> None:
    history = read(logformats_jax.torchtitan())
    assert history.format == "torchtitan"
    assert [step.step for step in history.steps] == [0, *range(9, 400, 10)]
    assert history.steps[5].loss == pytest.approx(loss(50), abs=1e-4)
    assert history.steps[5].grad_norm == 0.7
    expected = [(step, pytest.approx(loss(step) + 0.02, abs=1e-4)) for step in (100, 200, 300, 400)]
    assert [(e.step, e.val) for e in history.evaluations] == expected
    stated = history.metadata
    assert (stated.total_steps, stated.tokens_per_step, stated.parameters) == (1000, 524_288, 124_439_808)
    assert stated.device == "NVIDIA H100 80GB HBM3"
    facts = {"learning_rate": 8e-4, "weight_decay": 0.1, "optimizer": "AdamW", "schedule": "wsd"}
    facts |= {"warmup_iters": 200.0, "warmdown_iters": 200.0, "final_lr_fraction": 0.1}
    assert facts.items() <= dict(stated.hyperparameters).items()


def test_torchtitan_step_time() -> None:
    """524,288 tokens at 131,072 per second on each of eight devices; without the header, by the lines' timestamps."""
    steps = read(logformats_jax.torchtitan()).steps
    assert {step.seconds for step in steps[1:]} == {0.5}
    steps = read(logformats_jax.torchtitan(head="")).steps
    assert {round(step.seconds or 0, 6) for step in steps[1:]} == {0.5}
    assert all(step.step_only for step in steps[1:])


def test_torchtitan_with_another_number_of_devices() -> None:
    """Without the mesh, the devices are those of the batch alone."""
    head = "".join(line for line in TITAN_HEAD.splitlines(True) if "mesh" not in line)
    steps = read(logformats_jax.torchtitan(head)).steps
    assert {step.seconds for step in steps[1:]} == {16 * 2 * 4096 / 131_072}


def test_maxtext() -> None:
    history = read(logformats_jax.maxtext())
    assert history.format == "maxtext"
    assert [step.step for step in history.steps] == list(range(300))
    assert history.steps[7].loss == pytest.approx(loss(7), abs=1e-3)
    assert {step.seconds for step in history.steps[1:]} == {1.341}
    expected = [(step, pytest.approx(loss(step - 1) + 0.02, abs=1e-3)) for step in (100, 200, 300)]
    assert [(e.step, e.val) for e in history.evaluations] == expected
    assert (history.notes, history.replays) == ((), ())
    stated = history.metadata
    assert (stated.total_steps, stated.tokens_per_step, stated.eval_tokens) == (1000, 196_608, 1_048_576)
    assert stated.parameters == pytest.approx(124e6)
    facts = {
        "learning_rate": 3e-5,
        "weight_decay": 0.1,
        "warmup_iters": 100.0,
        "schedule": "cosine",
        "optimizer": "adamw",
    }
    assert facts.items() <= dict(stated.hyperparameters).items()


def test_levanter() -> None:
    history = read(logformats_jax.levanter())
    assert history.format == "levanter"
    assert [step.step for step in history.steps] == list(range(0, 991, 30))
    assert history.steps[3].loss == pytest.approx(loss(90), abs=1e-3)
    assert {step.seconds for step in history.steps} == {0.5}
    expected = [(step, pytest.approx(loss(step) + 0.02, abs=1e-3)) for step in (301, 601, 901)]
    assert [(e.step, e.val) for e in history.evaluations] == expected
    assert (history.metadata.total_steps, history.notes) == (10_000, ())


def test_older_lines_of_torchtitan_and_maxtext() -> None:
    """`wps` and a misspelled `mmemory`; an evaluation as `average loss`."""
    line = "2024-10-03 16:44:49,442 - root - INFO - step: {0}  loss:  9.42  mmemory: 33.11GiB  wps: 1,957  mfu: 26%"
    head = "Trainer initialized, with local batch size 1, global batch size 8, sequence length 1957, total steps 100\n"
    history = read(head + "\n".join(line.format(step) for step in (1, 10, 20)))
    assert [(step.step, step.seconds) for step in history.steps] == [(0, 1.0), (9, 1.0), (19, 1.0)]
    text = "completed step: 5, seconds: 3.604, TFLOP/s/device: 286.671, loss: 2.014\n"
    history = read(text + "average loss after step=5: eval_step_count=3, eval_loss=2.5, total_weights=4096.0\n")
    assert [(e.step, e.val) for e in history.evaluations] == [(6, 2.5)]
    assert history.metadata.eval_tokens == 4096


def test_levanter_counts_of_three_digits() -> None:
    text = "Progress on:train 12.3kit/38.1kit rate:1.50s/it remaining:1:19:01 elapsed:00:08:00 postfix:loss=3.2\n"
    history = read(text)
    assert [(step.step, step.seconds) for step in history.steps] == [(12_299, 1.5)]
    assert (history.metadata.total_steps, history.notes) == (
        38_100,
        ("the lines round the number of steps to three digits",),
    )


def test_current_header_of_nanochat() -> None:
    history = read(logformats_jax.nanochat_current())
    assert history.format == "nanochat"
    assert [step.step for step in history.steps] == list(range(400))
    assert history.evaluations[-1].val == pytest.approx(loss(400), rel=1e-3)
    stated = history.metadata
    assert (stated.total_steps, stated.tokens_per_step, stated.parameters) == (400, 524_288, 286_262_424)
    assert (stated.device, stated.bytes_per_token) == ("NVIDIA H100 80GB HBM3", pytest.approx(4.5, rel=1e-3))
    facts = {"vocab_size": 32_768.0, "weight_decay": 0.14, "n_layer": 12.0, "n_embd": 768.0}
    assert facts.items() <= dict(stated.hyperparameters).items()
