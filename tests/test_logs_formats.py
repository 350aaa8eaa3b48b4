"""Logs of other trainers, as each writes them: steps, losses, learning rates, times, and the last evaluation."""

import json
import math
import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from helpers import logformats, logformats_jax, logsamples
from helpers.logformats import PEAK, rate
from helpers.logsamples import loss

from jaxgpt import logs
from jaxgpt.diagnose import messages
from jaxgpt.diagnose.completion import estimate_completion
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import diagnose
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import History


def read(text: str) -> History:
    return logs.read_text(text, "log")


def unread(history: History) -> list[str]:
    """The notes on lines and columns that were not read."""
    marks = ("not used", "could not be read", "unknown form")
    return [note for note in history.notes if any(mark in note for mark in marks)]


@pytest.mark.parametrize("name", logformats.SAMPLES)
def test_every_line_of_a_format_is_read(name: str) -> None:
    for text in (logformats.SAMPLES[name], *logformats.OTHERS.get(name, ())):
        history = read(text)
        assert history.format == name
        assert history.steps
        assert not any("could not be read" in note for note in history.notes)
        for record in (*history.steps, *history.evaluations):
            assert any(digit.isdigit() for digit in history.lines[record.line - 1])


def assert_trainer_history(history: History) -> None:
    """Asserts the 4,000 steps of `logformats.huggingface_entries`."""
    assert [step.step for step in history.steps] == list(range(99, 4000, 100))
    assert history.steps[9].loss == pytest.approx(loss(1000), abs=1e-3)
    assert history.steps[9].learning_rate == pytest.approx(rate(999, 4000), rel=1e-4)
    assert [(e.step, e.val) for e in history.evaluations] == [
        (step, pytest.approx(loss(step) + 0.02, abs=1e-3)) for step in range(500, 4001, 500)
    ]
    assert history.steps_done == 4000


def test_trainer_state() -> None:
    history = read(logformats.huggingface_state())
    assert_trainer_history(history)
    assert history.metadata.total_steps == 4000
    assert history.steps[-1].seconds == pytest.approx((2240 - 8 * 30) / 4000)
    minified = json.dumps(json.loads(logformats.huggingface_state()))
    assert [step._replace(line=0) for step in read(minified).steps] == [step._replace(line=0) for step in history.steps]


def test_folder_of_a_trainer_checkpoint_names_its_state(tmp_path: Path) -> None:
    for name in ("config.json", "trainer_state.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(logs.DataError) as caught:
        logs.read(tmp_path)
    assert caught.value.help.startswith(f"name a file in it: {tmp_path / 'trainer_state.json'}")


def test_trainer_output_with_a_header() -> None:
    history = read(logformats.SAMPLES["huggingface"])
    assert_trainer_history(history)
    assert (history.metadata.total_steps, history.metadata.parameters) == (4000, 124_439_808)
    assert history.notes == ()


def test_trainer_output_with_progress_bars() -> None:
    history = read(logformats.huggingface_bars())
    assert_trainer_history(history)
    assert history.metadata.total_steps == 8000
    assert {step.seconds for step in history.steps[1:]} == {0.5}


@pytest.mark.parametrize("quoted", [False, True])
def test_trainer_output_counts_steps_by_its_last_line(quoted: bool) -> None:
    history = read(logformats.huggingface_output(quoted))
    assert_trainer_history(history)
    assert history.metadata.total_steps == 4000


def test_trainer_output_without_steps_assumes_its_default() -> None:
    lines = logformats.huggingface_output().splitlines()[:-1]
    history = read("\n".join(lines))
    assert [step.step for step in history.steps[:2]] == [499, 999]
    assert history.evaluations[-1].step == 20_000
    assert "500 steps is assumed" in history.notes[0]


def test_trainer_epochs_of_two_digits() -> None:
    """Earlier versions round the epoch, so that several lines have the same one."""
    lines = [{"loss": 5.0, "learning_rate": 1e-4, "epoch": round(step / 40_000, 2)} for step in range(100, 4001, 100)]
    history = read("  Num Epochs = 1\n  Total optimization steps = 40,000\n" + "\n".join(map(str, lines)))
    assert len(history.steps) == 40
    assert all(abs(step.step + 1 - 100 * (index + 1)) <= 400 for index, step in enumerate(history.steps))


def test_litgpt() -> None:
    history = read(logformats.litgpt())
    assert [step.step for step in history.steps] == list(range(300))
    assert history.steps[7].loss == pytest.approx(loss(7), abs=1e-3)
    assert history.steps[7].seconds == pytest.approx(12.8)  # 128 micro-batches
    expected = [(step, pytest.approx(loss(step), abs=1e-4)) for step in (100, 200, 300)]
    assert [(e.step, e.val) for e in history.evaluations] == expected
    stated = history.metadata
    assert (stated.tokens_per_step, stated.total_steps, stated.parameters) == (524_288, 300, 162_322_944)
    facts = {"learning_rate": 4e-4, "weight_decay": 0.1, "warmup_iters": 200.0, "min_lr": 4e-5, "optimizer": "adamw"}
    assert facts.items() <= dict(stated.hyperparameters).items()


def litgpt_without_head(steps: int, length: int, compile_seconds: float, noise: float = 0.0) -> str:
    """The lines of a run of `length` steps of 4 iterations, every tenth of which is printed."""
    random = np.random.default_rng(0)
    elapsed, lines = compile_seconds, []
    for step in range(1, steps + 1):
        seconds = 0.25 * (1 + noise * random.standard_normal())
        elapsed += 4 * seconds
        left = timedelta(seconds=int(elapsed / (4 * step) * 4 * (length - step)))
        times = f"iter time: {1e3 * seconds:.2f} ms (step) remaining time: {left}"
        line = f"iter {4 * step} | step {step}: loss 3.1000, {times}"
        lines += [line] if step % 10 == 0 else []
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("steps", [200, 2000, 19_000])
@pytest.mark.parametrize("compile_seconds", [0.0, 90.0])
def test_litgpt_remaining_time_shows_the_length(steps: int, compile_seconds: float) -> None:
    history = read(litgpt_without_head(steps, 20_000, compile_seconds, noise=0.02))
    assert history.metadata.total_steps is None
    assert history.metadata.estimated_total_steps == pytest.approx(20_000, rel=0.03)
    context = resolve_context(history, Options())
    assert context.total_steps == history.metadata.estimated_total_steps
    assert any("by the remaining time in its log (--total-steps)" in assumed for assumed in context.assumed)
    assert resolve_context(history, Options(total_steps=30_000)).total_steps == 30_000
    eta = estimate_completion(history, context, now=0.0)
    assert eta is not None
    assert eta.seconds == pytest.approx(20_000 - steps, rel=0.05, abs=150)


def test_litgpt_remaining_times_without_one_length_are_not_used() -> None:
    text = litgpt_without_head(2000, 20_000, 0.0)
    other = re.sub(r"remaining time: \S+\n$", "remaining time: 2:21:10", text)
    for changed in (other, re.sub(" remaining time: .*", "", text)):
        assert read(changed).metadata.estimated_total_steps is None


def test_litgpt_validation_that_only_the_steps_repeat() -> None:
    lines = [line for line in logformats.litgpt().splitlines() if ": val loss" not in line]
    history = read("\n".join(lines))
    expected = [(step, pytest.approx(loss(step), abs=1e-3)) for step in (100, 200)]
    assert [(e.step, e.val) for e in history.evaluations] == expected


def test_litgpt_lines_of_micro_batches() -> None:
    history = read(logformats.litgpt_iterations())
    assert [step.step for step in history.steps] == list(range(60))
    assert history.steps[30].loss == pytest.approx(loss(30), abs=1e-3)  # the mean of two
    assert history.steps[30].seconds == pytest.approx(0.413)


@pytest.mark.parametrize("accumulation", [1, 8])
def test_litgpt_lines_of_some_micro_batches(accumulation: int) -> None:
    """An early form with the learning rate, one line per 100 iterations; none of them may end a step."""
    text = ""
    for number in range(0, 1001, 100):
        step, rest = divmod(number + 1, accumulation)
        end = "" if rest else " (optimizer.step)"
        text += f"iter {number} step {step}: loss {loss(number):.4f}, LR: 0.000300, iter time: 100.00ms{end}\n"
    history = read(text)
    assert [step.step for step in history.steps] == [number // accumulation for number in range(0, 1001, 100)]
    assert history.steps[1].loss == pytest.approx(loss(100), abs=1e-4)
    assert (history.steps[1].learning_rate, history.notes) == (3e-4, ())
    assert history.steps[-1].seconds == pytest.approx(0.1 * accumulation, rel=0.05)


def test_llama2c() -> None:
    history = read(logformats.llama2c())
    assert [step.step for step in history.steps] == list(range(0, 301, 10))
    assert history.steps[1].loss == pytest.approx(loss(10), abs=1e-4)
    assert history.steps[1].learning_rate == pytest.approx(PEAK)
    assert {step.seconds for step in history.steps if step.step_only} == {1.2345}
    assert [(e.step, e.val) for e in history.evaluations][-1] == (300, pytest.approx(loss(300), abs=1e-4))
    assert history.metadata.tokens_per_step == 131_072
    assert history.metadata.defaults["eval_tokens"] == 100 * 128 * 256
    history = read("max_seq_len = 512\ndim = 288\n" + logformats.llama2c())
    assert history.metadata.defaults["eval_tokens"] == 100 * 128 * 512
    assert history.metadata.hyperparameters["n_embd"] == 288


def test_lightning_metrics() -> None:
    history = read(logformats.lightning())
    assert [step.step for step in history.steps] == list(range(49, 1000, 50))
    assert history.steps[3].loss == pytest.approx(loss(199))
    assert history.steps[3].learning_rate == pytest.approx(rate(199, 2000))
    expected = [(step, pytest.approx(loss(step))) for step in (250, 500, 750, 1000)]
    assert [(e.step, e.val) for e in history.evaluations] == expected
    assert (history.steps_done, history.metadata.hyperparameters["optimizer"]) == (1000, "adamw")
    assert unread(history) == ["not used: train_loss_epoch (1 value)"]


def test_wandb_history() -> None:
    history = read(logformats.wandb())
    assert [step.step for step in history.steps] == list(range(0, 2001, 100))
    assert history.steps[3].loss == pytest.approx(loss(300))
    assert history.steps[3].learning_rate == PEAK
    assert {round(step.seconds or 0, 6) for step in history.steps[1:]} == {0.4}  # without the evaluations
    assert history.steps[3].time == 1.7e9 + 12 + 30 + 3 * 40
    expected = [(step, pytest.approx(loss(step) + 0.02)) for step in range(0, 2001, 500)]
    assert [(e.step, e.val) for e in history.evaluations] == expected
    assert "'_step' as the step" in history.notes[0]
    assert unread(history) == ["not used: system/gpu.0.memory (21 values)"]


def test_wandb_history_of_a_trainer_prefers_its_own_step() -> None:
    rows = [{"_step": number, "train/global_step": 500 * (number + 1), "train/loss": 5.0} for number in range(4)]
    history = read("".join(json.dumps(row) + "\n" for row in rows))
    assert [step.step for step in history.steps] == [499, 999, 1499, 1999]
    rows.append({"_step": 4, "train/loss": 5.0})  # in other units
    history = read("".join(json.dumps(row) + "\n" for row in rows))
    assert [step.step for step in history.steps] == [499, 999, 1499, 1999]
    assert unread(history) == ["1 line could not be read (first: line 5)"]


def test_levanter_json_lines() -> None:
    history = read(logformats.levanter_json())
    assert [step.step for step in history.steps] == list(range(0, 400, 10))
    assert history.evaluations[-1].val == pytest.approx(loss(390))
    stated = history.metadata
    assert (stated.tokens_per_step, stated.total_steps) == (524_288, 4000)
    assert stated.bytes_per_token == pytest.approx(4.5)
    assert stated.hyperparameters["weight_decay"] == 0.2
    assert {step.seconds for step in history.steps} == {0.5}


def test_json_lines_in_bits_per_byte() -> None:
    """Converted with the bytes per token at which they agree with the training loss."""
    rows = [{"step": step, "train_loss": loss(step)} for step in range(0, 200, 10)]
    rows += [{"step": step, "val/bpb": loss(step) / math.log(2) / 4.5} for step in (100, 190)]
    history = read("".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"])))
    assert [e.val for e in history.evaluations] == [pytest.approx(loss(100)), pytest.approx(loss(190))]
    assert history.metadata.bytes_per_token == pytest.approx(4.5)


def test_json_lines_in_nats_and_then_in_bits_per_byte() -> None:
    bits = loss(20) / math.log(2) / 4.5
    history = read(
        json.dumps({"step": 10, "val_loss": loss(10), "val_bpb": loss(10) / math.log(2) / 4.5})
        + "\n"
        + json.dumps({"step": 20, "val_bpb": bits})
    )
    assert [e.val for e in history.evaluations] == [pytest.approx(loss(10)), pytest.approx(loss(20))]


FINISHED = dict(logformats.SAMPLES)
for name, texts in logformats.OTHERS.items():
    FINISHED |= {f"{name} {number}": text for number, text in enumerate(texts)}


@pytest.mark.parametrize("name", [name for name in FINISHED if name != "litgpt 0"])  # which has no evaluation
def test_a_finished_run_states_its_last_evaluation(name: str) -> None:
    history = read(FINISHED[name])
    total = max(history.steps[-1].step, history.evaluations[-1].step)
    diagnosis = diagnose(history, resolve_context(history, Options(total_steps=total)), now=0.0)
    last = f"{round(history.evaluations[-1].val or 0, 4):g}"
    assert f"It ended at a validation loss of {last}, " in messages.forecast_sentence(diagnosis)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("tokens per iteration will be: 491,520\nbreaks down as: 5 grad accum steps * 8 processes * 12 batch size * "
         "1024 max seq len\niter 0: loss 4.0, time 9.00ms\n", 8),
        (logsamples.jsonl(logsamples.jaxgpt_records(4)).replace('"kind": "RTX 4070"', '"kind": "H100", "count": 4'), 4),
        (logformats_jax.torchtitan(), 8),
    ],
)  # fmt: skip
def test_device_counts_are_read(text: str, count: int) -> None:
    assert read(text).metadata.device_count == count
