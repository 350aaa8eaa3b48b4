"""The loss of a model on fixed subsets of the train and validation splits.

The subsets are the same windows at every evaluation of every run on that data. The model is in evaluation mode (no
dropout), and the standard error says how much of a difference is noise.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import Config
from jaxgpt.data.dataset import Split, TokenDataset
from jaxgpt.training import batches, step
from jaxgpt.training.records import Score, Scores


class Evaluator:
    """Computes the scores of parameters; compiles once."""

    def __init__(self, config: Config, dataset: TokenDataset, mesh: Mesh, graphdef: Any) -> None:
        self._config = config
        self._dataset = dataset
        self._mesh = mesh
        self._eval_step = step.compile_eval_step(config, graphdef, mesh)

    def __call__(self, params: Any) -> Scores:
        val = self._dataset.val
        train_score = self._score(params, self._dataset.train)
        return Scores(train_score, self._score(params, val) if val else None)

    def _score(self, params: Any, split: Split) -> Score:
        windows = batches.evaluation_windows(self._config, split)
        with batches.evaluation_batches(self._config, split, self._mesh, self._dataset.vocab_size) as blocks:
            losses_per_block = jax.device_get([self._eval_step(params, block) for block in blocks])
        losses = np.concatenate([np.ravel(block) for block in losses_per_block])
        tokens_per_byte = split.tokens / split.bytes if split.bytes else None
        return Score.from_losses(losses[:windows], tokens_per_byte)
