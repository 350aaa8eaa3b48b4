"""From loader to device: the blocks that arrive, and the buffers that are registered for direct copies."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxgpt._loader import Dataset, sample_starts
from jaxgpt.config import Config, Data, Mesh, Model, Optim, Run
from jaxgpt.data.dataset import Split
from jaxgpt.errors import DataError
from jaxgpt.training import batches as data
from jaxgpt.training.batches import PinnedBuffers
from jaxgpt.training.mesh import make_mesh

VOCAB = 50257


@pytest.fixture
def split(tmp_path: Path, dataset: Dataset) -> Split:
    return Split((tmp_path,), dataset)


def run_of(**changes: int) -> Config:
    return Config(
        model=Model(n_layer=1, n_head=1, n_embd=8, block_size=64),
        data=Data(micro_batch=4, accum=2),
        optim=Optim(warmup_steps=0),
        run=Run(**({"steps": 12} | changes)),
    )


def windows(split: Split, config: Config, first: int, count: int, seed: int) -> "np.ndarray[Any, Any]":
    ids, width = split.ids(0, split.tokens), config.model.block_size
    starts = sample_starts(split.tokens, width, "epoch", seed, first, count)
    return np.stack([ids[start : start + width + 1] for start in starts])


@pytest.mark.parametrize("devices", [1, 2])
def test_each_step_gets_its_windows_on_any_number_of_devices(split: Split, devices: int) -> None:
    config = run_of()
    mesh = make_mesh(Mesh(data_parallel=devices), 4)
    with data.train_batches(config, split, mesh, 5, VOCAB) as batches:
        blocks = [np.array(block) for block in batches]
    assert len(blocks) == 7
    for number, block in enumerate(blocks):
        wanted = windows(split, config, (5 + number) * 8, 8, config.data.seed)
        assert np.array_equal(block.reshape(wanted.shape), wanted)


def test_evaluation_windows_do_not_depend_on_the_micro_batch(split: Split) -> None:
    config = run_of(eval_tokens=64 * 10)
    selected = []
    for micro_batch in (1, 4, 7):
        sized = config.replace({"data": {"micro_batch": micro_batch}})
        mesh = make_mesh(Mesh(data_parallel=1), micro_batch)
        with data.evaluation_batches(sized, split, mesh, VOCAB) as batches:
            rows = np.concatenate([np.array(block)[0] for block in batches])
        selected.append(rows[: data.evaluation_windows(sized, split)])
    wanted = windows(split, config, 0, 10, data.EVALUATION_SEED)
    assert all(np.array_equal(rows, wanted) for rows in selected)


def test_token_outside_the_vocabulary_is_a_data_error(split: Split) -> None:
    with (
        pytest.raises(DataError, match="D010"),
        data.train_batches(run_of(), split, make_mesh(Mesh(data_parallel=1), 4), 0, 1000) as batches,
    ):
        list(batches)


class Client:
    """A fake CUDA client that remembers what is registered."""

    def __init__(self, room: int = 100) -> None:
        self.mapped: dict[int, int] = {}
        self.room = room

    def dma_map(self, address: int, size: int) -> None:
        if len(self.mapped) == self.room:
            raise RuntimeError("out of pinnable memory")
        assert address not in self.mapped
        self.mapped[address] = size

    def dma_unmap(self, address: int) -> None:
        del self.mapped[address]


def test_buffers_are_registered_once_and_released() -> None:
    client, buffers = Client(), [(4096, 100), (8192, 100)]
    pinned = PinnedBuffers(SimpleNamespace(platform="gpu", client=client), buffers)  # type: ignore[arg-type]
    assert client.mapped == dict(buffers)
    pinned.release()
    pinned.release()
    assert client.mapped == {}


def test_driver_that_refuses_pinning_is_no_error() -> None:
    client = Client(room=1)
    pinned = PinnedBuffers(SimpleNamespace(platform="gpu", client=client), [(4096, 1), (8192, 1)])  # type: ignore[arg-type]
    assert (pinned.buffers, client.mapped) == ([], {})


def test_cpu_registers_no_buffers() -> None:
    assert PinnedBuffers(jax.devices()[0], [(4096, 1)]).buffers == []
