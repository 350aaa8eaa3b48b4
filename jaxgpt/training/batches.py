"""Token blocks from the Rust loader as `jax.Array`s: one block per step, a function of (order, seed, step).

The loader's step is a batch of the data order; the run's steps take the batches that no rewind has left out.

A block has shape [accum, micro_batch, block_size + 1] and the dtype of the shards, uint16 or uint32. The loader lends
out each block's buffer, and JAX holds on to it while it reads it: on a CPU, as long as the array exists.
"""

from collections.abc import Container, Iterator, Sequence
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt import _loader
from jaxgpt.config import Config
from jaxgpt.data.dataset import Split, TokenDataset, translate_loader_errors
from jaxgpt.errors import ConfigError
from jaxgpt.runs.rewinds import Rewinds
from jaxgpt.training.mesh import batch_sharding

EVALUATION_SEED = 0


def document_token(config: Config, dataset: TokenDataset) -> int | None:
    """The token that starts a document, if attention may not cross documents; None if it may.

    Raises `ConfigError` C072 if `data.block_cross_document_attention` is on and the tokens have no end-of-text token.
    """
    if not config.data.block_cross_document_attention:
        return None
    if dataset.eot is None:
        raise ConfigError(
            "C072",
            f"data.block_cross_document_attention = true; {dataset.folder} has no end-of-text token between documents",
            "--data.block-cross-document-attention false",
        )
    return dataset.eot


class Batches:
    """An iterator of token blocks on the devices, without the `skipped` ones; closes its threads on exit."""

    def __init__(
        self, loader: _loader.Loader, mesh: Mesh, shape: tuple[int, int, int], skipped: Container[int] = ()
    ) -> None:
        self._loader = loader
        self._skipped = skipped
        self._shape = shape
        self._sharding = batch_sharding(mesh)
        self._pinned = PinnedBuffers(mesh.local_devices[0], loader.buffers())
        self._newest: jax.Array | None = None

    @property
    def pinned(self) -> bool:
        """Whether blocks are copied to the device directly from the loader's buffers."""
        return bool(self._pinned.buffers)

    def __iter__(self) -> Iterator[jax.Array]:
        with translate_loader_errors():
            for lease in self._loader:
                if lease.step in self._skipped:
                    continue
                local = np.asarray(lease)
                self._newest = jax.make_array_from_process_local_data(self._sharding, local, self._shape)
                yield self._newest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pinned and self._newest is not None:
            self._newest.block_until_ready()  # copies run in order: when the newest is done, all are
        self._pinned.release()
        self._loader.close()


class PinnedBuffers:
    """The loader's buffers, registered with a CUDA client so that copies to the device are direct.

    `dma_map` exists in jaxlib from 0.10.2 and is experimental. Where it is missing or fails, XLA copies through its own
    buffer, with the same result.
    """

    def __init__(self, device: jax.Device, buffers: Sequence[tuple[int, int]]) -> None:
        self._client: Any = device.client
        self.buffers: list[tuple[int, int]] = []
        if device.platform != "gpu" or not hasattr(self._client, "dma_map"):
            return
        try:
            for address, size in buffers:
                self._client.dma_map(address, size)
                self.buffers.append((address, size))
        except Exception:  # of any type, from the driver: XLA's own copy still works
            self.release()

    def release(self) -> None:
        """Unregisters the buffers; no copy from them may be in progress."""
        for address, _ in self.buffers:
            self._client.dma_unmap(address)
        self.buffers = []


def train_batches(
    config: Config, split: Split, mesh: Mesh, start: int, vocab_size: int, rewinds: Rewinds | None = None
) -> Batches:
    """The blocks of the steps from `start` to the run's end, without those that `rewinds` left out."""
    rewinds = rewinds or Rewinds()
    data = config.data
    block = config.model.block_size
    with translate_loader_errors():
        loader = _loader.Loader(
            split.shards,
            block=block,
            micro_batch=data.micro_batch,
            accum=data.accum,
            order=data.order,
            seed=data.seed,
            start_step=rewinds.batch(start),
            stop_step=rewinds.batch(config.run.steps - 1) + 1,
            slots=data.prefetch_buffers,
            threads=data.threads,
            rank=jax.process_index(),
            world=jax.process_count(),
            vocab_size=vocab_size,
        )
    return Batches(loader, mesh, (data.accum, data.micro_batch, block + 1), rewinds.skipped)


def evaluation_windows(config: Config, split: Split) -> int:
    """How many windows an evaluation of `split` reads: `run.eval_tokens`, at most all of the split."""
    windows: int = split.shards.windows(config.model.block_size)
    return max(1, min(config.run.eval_tokens // config.model.block_size, windows))


def evaluation_batches(config: Config, split: Split, mesh: Mesh, vocab_size: int) -> Batches:
    """The same windows every time, spread evenly over the split, in blocks of one micro-batch each.

    The last block may contain more windows than `evaluation_windows`; the caller must not count those.
    """
    data = config.data
    block = config.model.block_size
    with translate_loader_errors():
        loader = _loader.Loader(
            split.shards,
            block=block,
            micro_batch=data.micro_batch,
            order="epoch",
            seed=EVALUATION_SEED,
            stop_step=-(-evaluation_windows(config, split) // data.micro_batch),
            slots=data.prefetch_buffers,
            rank=jax.process_index(),
            world=jax.process_count(),
            vocab_size=vocab_size,
        )
    return Batches(loader, mesh, (1, data.micro_batch, block + 1))
