"""The loss of a model on fixed subsets of the train and validation splits.

The subsets are the same windows at every evaluation of every run on that data. The model is in evaluation mode (no
dropout), and the standard error says how much of a difference is noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import Config
from jaxgpt.data.dataset import Split, TokenDataset
from jaxgpt.training import batches, distributed, step
from jaxgpt.training.records import Score, Scores


class Interrupted(Exception):
    """An evaluation that ended early, because the run was asked to stop."""


class Evaluator:
    """Computes the scores of parameters; compiles once. Raises `Interrupted` as soon as `should_stop` says so."""

    def __init__(
        self,
        config: Config,
        dataset: TokenDataset,
        mesh: Mesh,
        graphdef: Any,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._mesh = mesh
        eot = batches.document_token(config, dataset)
        self._eval_step = step.compile_eval_step(config, graphdef, mesh, eot)
        self._should_stop = should_stop

    def __call__(self, params: Any) -> Scores:
        val = self._dataset.val
        train_score = self._score(params, self._dataset.train)
        return Scores(train_score, self._score(params, val) if val else None)

    def _score(self, params: Any, split: Split) -> Score:
        windows = batches.evaluation_windows(self._config, split)
        losses: list[Any] = []
        with batches.evaluation_batches(self._config, split, self._mesh, self._dataset.vocab_size) as blocks:
            for block in distributed.in_step(blocks):
                losses.append(self._eval_step(params, block))
                # Waits for the block before, while the device computes this one: a stop never waits for more than two.
                losses[-2:-1] = jax.device_get(losses[-2:-1])
                if self._should_stop():
                    raise Interrupted
            losses[-1:] = jax.device_get(losses[-1:])
        tokens_per_byte = split.tokens / split.bytes if split.bytes else None
        all_losses = np.concatenate([np.ravel(block) for block in losses])
        return Score.from_losses(all_losses[:windows], tokens_per_byte)
