"""What holds over many steps: every position resumes, memory stays flat, and a loss of power costs no checkpoint."""

import os
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.files import files_of
from helpers.training import (
    Crash,
    after_step,
    arguments,
    crash,
    leaf_bytes,
    run_folder,
    saved_state,
    saved_steps,
    tiny_config,
)

from jaxgpt import errors, train
from jaxgpt._loader import Dataset, Loader
from jaxgpt.config import Run
from jaxgpt.runs.checkpoint_files import find_damage
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import TrainState

POSITIONS = 500
SAVES = 50
BATCHES = 100_000
MB = 1_000_000


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def growth(action: Callable[[int], object], count: int) -> int:
    """By how many bytes the process has grown from a fifth of the `count` calls of `action` to the last one."""
    start = 0
    for number in range(1, count + 1):
        action(number)
        if number == count // 5:
            start = memory_bytes()
    return memory_bytes() - start


def test_every_position_of_two_epochs_resumes(dataset: Dataset) -> None:
    """Four shards, one of them empty and one shorter than a window; several micro-batches; beginnings of epochs."""
    shape = {"block": 16, "micro_batch": 3, "accum": 2, "seed": 11, "stop_step": POSITIONS}
    assert 2 * dataset.windows(16) < POSITIONS * 6
    blocks = np.stack([np.array(lease) for lease in Loader(dataset, **shape)])
    for position in range(POSITIONS):
        with Loader(dataset, start_step=position, **shape) as loader:
            tail = np.stack([np.array(lease) for lease in loader])
        assert np.array_equal(tail, blocks[position:]), position


def test_memory_stays_flat_over_batches(dataset: Dataset) -> None:
    with Loader(dataset, block=64, micro_batch=4) as loader:  # 520 bytes each: 42 MB if they were kept
        assert growth(lambda _: np.asarray(next(loader)).sum(), BATCHES) < 10 * MB


def test_memory_stays_flat_over_saves(tmp_path: Path) -> None:
    state = TrainState(jnp.int32(1), {"w": jnp.ones((1024, 256))}, {})  # 1 MB: 40 MB if they were kept
    with Checkpoints(tmp_path / "checkpoints", Run(keep_latest=1)) as checkpoints:

        def save(step: int) -> None:
            checkpoints.save(step, state, None)
            checkpoints.wait()

        assert growth(save, SAVES) < 20 * MB


@pytest.mark.parametrize("step", [14, 20])
def test_loss_of_power_costs_no_checkpoint(finished: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Every file loses what was not synced; what is left resumes and ends as the uninterrupted run."""
    synced: dict[int, int] = {}
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    changes = {"run.name": "b"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", record)
        after_step(patch, step, crash)
        with pytest.raises(Crash):
            train.train(tiny_config(finished, changes))
    folder = run_folder(finished, "b")
    for path in files_of(folder.path):
        os.truncate(path, min(path.stat().st_size, synced.get(path.stat().st_ino, 0)))
    assert folder.log_file.stat().st_size == 0  # so files did lose something
    assert saved_steps(folder)[-1] >= step - 4
    assert [find_damage(folder.checkpoints / str(number)) for number in saved_steps(folder)] == [""] * len(
        saved_steps(folder)
    )
    assert errors.run(train.main, arguments(finished, changes)) == 0
    assert leaf_bytes(saved_state(tiny_config(finished, changes))) == leaf_bytes(saved_state(tiny_config(finished)))
