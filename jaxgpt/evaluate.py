"""`python -m jaxgpt.evaluate RUN`: the loss of a run's model on fixed subsets of its train and validation splits.

The subsets are the same windows at every evaluation of every run on that data, the model is in evaluation mode (no
dropout), and the standard error says how much of a difference is noise.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt import errors
from jaxgpt.config import Config
from jaxgpt.config.options import Parser
from jaxgpt.data import dataset
from jaxgpt.data.dataset import Split, TokenDataset
from jaxgpt.errors import CheckpointError, DataError
from jaxgpt.runs import folder as runfolder
from jaxgpt.training import batches as data
from jaxgpt.training import checkpoint, jax_setup, step
from jaxgpt.training.metrics import Score, Scores

DESCRIPTION = (
    "Prints the loss of a run's model on fixed subsets of its train and validation splits. Every evaluation of every "
    "run on that data uses the same windows, without dropout; the standard error tells how much of a difference is "
    "noise."
)


class Evaluator:
    """Scores parameters on the fixed subsets; compiles once."""

    def __init__(self, config: Config, tokens: TokenDataset, mesh: Mesh, graphdef: Any) -> None:
        self._config, self._tokens, self._mesh = config, tokens, mesh
        self._step = step.compile_eval_step(config, graphdef, mesh)

    def __call__(self, params: Any) -> Scores:
        val = self._tokens.val
        return Scores(self._score(params, self._tokens.train), self._score(params, val) if val else None)

    def _score(self, params: Any, split: Split) -> Score:
        windows = data.evaluation_windows(self._config, split)
        with data.evaluation_batches(self._config, split, self._mesh, self._tokens.vocab_size) as batches:
            losses = np.concatenate(
                [np.ravel(part) for part in jax.device_get([self._step(params, b) for b in batches])]
            )
        return Score.of(losses[:windows], split.tokens / split.bytes if split.bytes else None)


def main(argv: Sequence[str]) -> None:
    """Prints the losses of a run's checkpoint."""
    parser = Parser("evaluate", DESCRIPTION, "RUN [--step N|latest|best] [--data DIR]")
    parser.add_argument("run", help="a run folder, or the name of a run under runs/")
    parser.add_argument("--step", default="latest", help="which checkpoint: a step, latest or best (default: latest)")
    parser.add_argument("--data", help="folder of token shards (default: the run's own)")
    parser.add_argument("--tokens", type=int, help="tokens per split (default: the run's run.eval_tokens)")
    options = parser.parse_args(argv)
    jax_setup.set_up()
    loaded = checkpoint.load(*runfolder.find(options.run, options.step))
    config = loaded.config
    if options.tokens is not None:
        config = config.replace({"run": {"eval_tokens": options.tokens}})
    tokens = open_tokens(options.data or config.data.path)
    if tokens.tokenizer.fingerprint != loaded.tokenizer.fingerprint:
        raise CheckpointError(
            "K002",
            f"{tokens.folder} was made with another tokenizer than the run: {tokens.tokenizer.name}",
            "prepare the data with the run's tokenizer.json",
        )
    scores = Evaluator(config, tokens, loaded.mesh, loaded.graphdef)(loaded.params)
    print(f"step {loaded.step}: train loss {scores.train}")
    if scores.val:
        print(f"step {loaded.step}: val loss {scores.val}")


def open_tokens(path: str) -> TokenDataset:
    try:
        return dataset.open_folder(path)
    except DataError as error:
        help = "--data DIR names their folder, if they were moved" if error.code == "D002" else error.help
        raise DataError(error.code, error.message, help) from error


if __name__ == "__main__":
    sys.exit(errors.run(main))
