"""Each format of log, as its program writes it, read into the same history."""

import json
import math
from pathlib import Path

import pytest
from helpers import logsamples
from helpers.logsamples import CONFIG, loss

from jaxgpt import logs
from jaxgpt.logs.history import Evaluation, Replay, Step
from jaxgpt.runs.log import StopReason


@pytest.mark.parametrize(("name", "text"), [*logsamples.ALL.items(), *logsamples.SCREENS.items()])
def test_format_is_detected_from_content(name: str, text: str) -> None:
    history = logs.read_text(text, "log")
    assert history.format == name
    assert history.evaluations
    assert history.steps


def test_nanogpt_lines() -> None:
    history = logs.read_text(logsamples.NANOGPT_HEAD + logsamples.nanogpt(), "log")
    assert [step.step for step in history.steps] == list(range(0, 1001, 10))
    assert all(step.loss == pytest.approx(loss(step.step), abs=1e-4) for step in history.steps)
    assert {step.step for step in history.steps if not step.step_only} == {
        0,
        500,
        1000,
    }  # compiling, evaluating and saving
    assert {step.seconds for step in history.steps if step.step_only} == {3.99511}
    assert [e.step for e in history.evaluations] == [0, 500, 1000]
    assert history.evaluations[1].val == pytest.approx(loss(500), abs=1e-4)
    assert history.evaluations[1].train == pytest.approx(loss(500) - 0.01, abs=1e-4)
    assert (history.saves, history.starts, history.replays, history.notes) == ((500, 1000), (0,), (), ())
    assert history.steps_done == 1001
    for record in (*history.steps, *history.evaluations):
        assert str(record.step) in history.lines[record.line - 1]


def test_nanogpt_header() -> None:
    history = logs.read_text(logsamples.NANOGPT_HEAD + logsamples.nanogpt(), "log")
    stated = history.metadata
    assert (stated.parameters, stated.tokens_per_step, stated.total_steps) == (40.56e6, 524_288, 20_000)
    assert history.traits.total_is_last_step
    expected = {"learning_rate": 1e-3, "min_lr": 1e-4, "n_embd": 384.0, "dropout": 0.1, "dataset": "openwebtext"}
    assert expected.items() <= dict(stated.hyperparameters).items()
    assert stated.hyperparameters["gradient_accumulation_steps"] == 32
    without = logsamples.NANOGPT_HEAD.replace("tokens per iteration will be: 524,288\n", "")
    assert logs.read_text(without + logsamples.nanogpt(), "log").metadata.tokens_per_step == 32 * 16 * 1024


def test_resumed_nanogpt_run_keeps_later_lines() -> None:
    text = logsamples.NANOGPT_HEAD + logsamples.nanogpt(0, 540, 100) + "Overriding: init_from = resume\n"
    text += "tokens per iteration will be: 524,288\nResuming training from out\n"
    text += logsamples.nanogpt(500, 700, 100).replace("loss 3.", "loss 4.")
    history = logs.read_text(text, "log")
    assert [step.step for step in history.steps] == list(range(0, 701, 10))
    assert history.starts == (0, 500)
    replay = history.replays[0]
    assert (replay.first, replay.last) == (500, 540)
    assert history.lines[replay.line - 1].startswith("Overriding: init_from")
    assert all((step.loss or 0) > 4 for step in history.steps if step.step >= 500)
    assert not next(step for step in history.steps if step.step == 500).step_only  # it compiles again
    assert [e.step for e in history.evaluations] == [0, 100, 200, 300, 400, 500, 600, 700]
    assert (history.evaluations[5].val or 0) > 4
    assert history.metadata.parameters == 40.56e6
    assert "steps 500 to 540" in history.notes[0]


def test_nan_and_infinite_losses_are_kept() -> None:
    text = (
        "iter 1: loss 3.1, time 5.00ms, mfu 1%\niter 2: loss nan, time 5.00ms\nstep 3: train loss inf, val loss nan\n"
    )
    history = logs.read_text(text + "iter 3: loss -inf, time nanms, mfu nan%\n", "log")
    assert [math.isnan(step.loss or 0) for step in history.steps] == [False, True, False]
    assert history.steps[2] == Step(3, -math.inf, line=4, step_only=False)
    assert math.isnan(history.evaluations[0].val or 0)


def test_old_nanogpt_without_mfu_or_validation() -> None:
    history = logs.read_text("step 5: train loss 4.2\niter 5: loss 4.1, time 12.50ms\n", "log")
    assert history.evaluations == (Evaluation(5, None, 4.2, line=1),)
    assert history.steps == (Step(5, 4.1, 0.0125, line=2, step_only=False),)


def test_jaxgpt_log() -> None:
    history = logs.read_text(logsamples.ALL["jaxgpt"], "log")
    assert (history.format, history.config, history.steps_done) == ("jaxgpt", CONFIG, 80)
    assert (history.starts, history.saves, history.replays) == ((0, 60), (20, 40, 60, 80), ())
    assert {step.step for step in history.steps if not step.step_only} == {0, 60}
    assert {step.seconds for step in history.steps if step.step_only} == {2.0}
    assert [(e.step, e.seconds, e.standard_error) for e in history.evaluations] == [
        (step, 5.0, 0.01) for step in (20, 40, 60, 80)
    ]
    assert history.metadata.pause_seconds == 4 * 6.0
    assert (history.metadata.device, history.metadata.stop_reason) == ("RTX 4070", None)
    assert (history.metadata.total_steps, history.metadata.tokens_per_step, history.metadata.eval_tokens) == (
        100,
        64,
        640,
    )
    assert history.steps[7].learning_rate == pytest.approx(1e-3 * 8 / 11)
    assert history.steps[7].time == 1044.0


def test_time_of_samples_counts_as_pause() -> None:
    records = logsamples.jaxgpt_records(20)
    end = records[-1]["time"]
    sample = {"kind": "sample", "time": end + 3.0, "step": 20, "prompt": "a", "text": "b"}
    history = logs.read_text(logsamples.jsonl([*records, sample]), "log")
    assert history.metadata.pause_seconds == 6.0 + 3.0


def test_killed_jaxgpt_run_resumes_from_checkpoint() -> None:
    records = [
        *logsamples.jaxgpt_records(50),
        *logsamples.jaxgpt_records(30, 40),
        {"kind": "stop", "time": 9.0, "reason": "N001"},
    ]
    history = logs.read_text(logsamples.jsonl(records), "log")
    assert [step.step for step in history.steps] == list(range(70))
    assert history.replays == (Replay(40, 49, 56),)
    assert history.starts == (0, 40)
    assert history.metadata.stop_reason == StopReason("N001")
    assert history.saves == (20, 40, 60)


def test_run_folder_and_name_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text(logsamples.jsonl(logsamples.jaxgpt_records(config=None)))
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    monkeypatch.chdir(tmp_path)
    for path in (folder, str(folder / "log.jsonl"), "small"):
        history = logs.read(path)
        assert history.config == CONFIG
        assert history.metadata.total_steps == 100
    (folder / "config.json").unlink()
    assert logs.read("small").config is None
    (tmp_path / "small").mkdir()  # the data of the run, for example
    assert logs.read("small").steps_done > 0


def test_piped_output_of_jaxgpt_train() -> None:
    """See `jaxgpt/training/messages.py`: `time` contains neither evaluation nor saving."""
    text = """tokens per iteration will be: 1,024
number of parameters: 0.10M
  of them outside embeddings and head: 0.02M
data: 20,000 tokens in data/small, 1,000 for validation; 5.12 epochs
device: 1 x NVIDIA GeForce RTX 4070 (bfloat16, attention by cudnn)
run: runs/small, new, 2,000 steps
step 0: train loss 10.8, val loss 10.81
iter 0: loss 10.8123, time 21000.00ms, mfu 0.10%
step 500: train loss 5.1, val loss 5.12
saving checkpoint of step 500
iter 500: loss 5.1, time 30.00ms, mfu 12.10%
"""
    history = logs.read_text(text, "log")
    assert [(step.step, step.step_only) for step in history.steps] == [(0, False), (500, True)]
    assert (history.saves, history.metadata.total_steps, history.metadata.unique_tokens) == ((500,), 2000, 20_000)
    assert (history.metadata.device, history.traits.total_is_last_step) == ("NVIDIA GeForce RTX 4070", False)


@pytest.mark.parametrize("start", ["new", "resumed at step 1,000", "forked from runs/a, b at step 1,000"])
def test_start_of_a_piped_jaxgpt_run(start: str) -> None:
    text = f"run: runs/small, {start}, 2,000 steps\niter 1000: loss 10.8123, time 21000.00ms\n"
    history = logs.read_text(text, "log")
    assert (history.metadata.total_steps, history.traits.total_is_last_step) == (2000, False)


def test_llmc_main_log() -> None:
    history = logs.read_text(logsamples.llmc(), "log")
    assert [step.step for step in history.steps] == list(range(1000))
    assert [e.step for e in history.evaluations] == [0, 250, 500, 750, 1000]
    assert history.steps[0] == Step(0, 10.0, None, 0.000009, 0.9, 3, step_only=False)
    assert history.evaluations[1].val == pytest.approx(loss(250), abs=1e-4)
    assert history.notes == ()


def test_llmc_output() -> None:
    history = logs.read_text(logsamples.LLMC_SCREEN, "log")
    assert [(step.step, step.seconds) for step in history.steps] == [(0, 2.73472), (1, 2.39152), (2, 2.39711)]
    assert [(e.step, e.val) for e in history.evaluations] == [(0, 11.006021), (3, 10.4021)]
    stated = history.metadata
    assert (stated.total_steps, stated.tokens_per_step, stated.device) == (21_479, 458_752, "NVIDIA GeForce RTX 4090")
    assert stated.parameters == 124_475_904 - 1024 * 768  # without positions
    assert stated.eval_tokens == 20 * 56 * 1024
    assert {"schedule": "cosine", "final_lr_fraction": 0.0, "warmup_iters": 700.0}.items() <= dict(
        stated.hyperparameters
    ).items()


@pytest.mark.parametrize("train_loss", [True, False])
def test_modded_log(train_loss: bool) -> None:
    history = logs.read_text(logsamples.modded(train_loss), "log")
    assert [step.step for step in history.steps] == list(range(200))
    assert [step.loss is None for step in history.steps] == [not train_loss] * 200
    assert [e.step for e in history.evaluations] == [0, 50, 100, 150, 200]
    assert history.evaluations[1].val == pytest.approx(loss(50), abs=1e-4)
    assert history.steps[0].seconds == pytest.approx(74.416)
    assert not history.steps[0].step_only
    assert history.steps[10].seconds is None  # the clock was set back
    assert {round(step.seconds or 0, 6) for step in history.steps[11:]} == {0.214}
    stated = history.metadata
    assert (stated.total_steps, stated.tokens_per_step, stated.eval_tokens) == (200, 524_288, 10_485_760)
    assert {"schedule": "wsd", "warmdown_iters": 60.0, "learning_rate": 0.0036}.items() <= dict(
        stated.hyperparameters
    ).items()


def test_modded_log_of_evaluations_alone() -> None:
    text = "step:0/3200 val_loss:10.82585 train_time:0.000s step_avg:nanms\n"
    text += "step:125/3200 val_loss:4.82555 train_time:100.000s step_avg:795.22ms\n"
    text += "step:250/3200 val_loss:4.24469 train_time:190.000s step_avg:780.23ms\n"
    history = logs.read_text(text, "log")
    assert [(step.step, step.seconds) for step in history.steps] == [(124, 0.8), (249, 0.72)]
    assert [e.step for e in history.evaluations] == [0, 125, 250]
    assert history.steps_done == 250


def test_nanochat_log_in_nats_per_token() -> None:
    history = logs.read_text(logsamples.nanochat(), "log")
    assert [step.step for step in history.steps] == list(range(400))
    assert (history.steps[5].seconds, history.steps[300].learning_rate) == (pytest.approx(1.23456), 0.5)
    assert [e.step for e in history.evaluations] == list(range(0, 401, 50))
    for evaluation in history.evaluations:
        assert evaluation.val == pytest.approx(loss(evaluation.step), rel=1e-3)
    assert "4.500 bytes per token" in history.notes[0]
    stated = history.metadata
    assert history.traits.lr_is_relative
    assert (stated.total_steps, stated.tokens_per_step, stated.parameters) == (400, 524_288, 561_971_200)


def test_bits_per_byte_need_a_training_loss() -> None:
    text = "step 00000/00100 (0.00%) | loss: 9.0 | dt: 5.00ms\nStep 00050 | Validation bpb: 1.01\n"
    history = logs.read_text(text, "log")
    assert history.evaluations == ()
    assert "bits per byte" in history.notes[0]


def test_buildnanogpt_log() -> None:
    history = logs.read_text(logsamples.buildnanogpt(), "log")
    assert [step.step for step in history.steps] == list(range(501))
    assert [(e.step, e.val) for e in history.evaluations] == [(n, round(loss(n), 4)) for n in (0, 250, 500)]


def test_buildnanogpt_output() -> None:
    history = logs.read_text(logsamples.BUILD_SCREEN, "log")
    expected = [(0, 30.24011, False), (1, 2.81252, True)]
    assert [(step.step, step.seconds, step.step_only) for step in history.steps[:2]] == expected
    assert [(e.step, e.val) for e in history.evaluations] == [(0, 10.9541), (3, 10.6122)]
    assert (history.metadata.tokens_per_step, history.steps[1].learning_rate) == (524_288, 1.6783e-06)


def test_real_logs_of_the_shared_curves(shared: Path) -> None:
    for path in sorted((shared / "forecast" / "curves").glob("*.csv")):
        if path.stem == "index":
            continue
        rows = dict(row(line) for line in path.read_text().splitlines()[1:])  # of two in one step, the later
        history = logs.read(path)
        assert {e.step: (e.train, e.val) for e in history.evaluations} == {n: one[1:] for n, one in rows.items()}
        assert {step.step: step.learning_rate for step in history.steps} == {n: one[0] for n, one in rows.items()}


def row(line: str) -> tuple[int, tuple[float, float | None, float]]:
    step, tokens, rate, train, val = line.split(",")
    return int(step) if step else round(float(tokens) / 524_288), (
        float(rate),
        float(train) if train else None,
        float(val),
    )
