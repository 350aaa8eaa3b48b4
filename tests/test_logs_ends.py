"""Logs that state that their run is over, before the planned number of steps or without a loss of the last one."""

import pytest

from jaxgpt import logs

WALLCLOCK = (
    "train_batch_tokens:524288 iterations:20000 warmup_steps:20 max_wallclock_seconds:600.000\n"
    "step:0/20000 val_loss:6.9370 train_time:0ms step_avg:0.01ms\n"
    "step:13600/20000 val_loss:2.0649 train_time:592172ms step_avg:43.54ms\n"
    "step:13780/20000 val_loss:2.0606 train_time:{}ms step_avg:43.54ms\n"
)
TRAINER = (
    "{'loss': 3.5, 'learning_rate': 2e-04, 'epoch': 0.5}\n{'loss': 3.4, 'learning_rate': 1e-04, 'epoch': 1.0}\n"
    "{'train_runtime': 1000.0, 'train_steps_per_second': 1.2, 'train_loss': 3.5, 'epoch': 1.2}\n"
)


@pytest.mark.parametrize(("milliseconds", "total"), [(600038, 13_780), (599000, 20_000)])
def test_time_limit_ends_a_run(milliseconds: int, total: int) -> None:
    history = logs.read_text(WALLCLOCK.format(milliseconds), "log")
    assert history.metadata.total_steps == total
    assert any("at its limit of 600 seconds" in note for note in history.notes) == (total == 13_780)


def test_last_entry_of_the_trainer_ends_a_run() -> None:
    history = logs.read_text(TRAINER, "log")
    assert history.steps_done == history.metadata.total_steps == 1200
    assert [step.loss for step in history.steps] == [3.5, 3.4, None]


def test_training_after_the_last_entry_is_another_phase() -> None:
    history = logs.read_text(TRAINER + "{'loss': 3.3, 'learning_rate': 1e-05, 'epoch': 1.1}\n", "log")
    assert all(step.loss is not None for step in history.steps)


def test_trainer_that_stopped_early_is_over() -> None:
    entries = '{"loss": 3.5, "step": 100, "epoch": 0.1}, {"train_runtime": 9.0, "step": 150, "epoch": 0.15}'
    history = logs.read_text(f'{{"log_history": [{entries}], "max_steps": 1000}}\n', "log")
    assert history.steps_done == history.metadata.total_steps == 150
