"""`python -m jaxgpt.evaluate RUN`: prints the loss of a run's model on its train and validation splits."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxgpt import errors
from jaxgpt.config.options import Parser
from jaxgpt.errors import CheckpointError, NoShardsError
from jaxgpt.runs.folder import find_run
from jaxgpt.utils.loading import loading

if TYPE_CHECKING:
    from jaxgpt.data.dataset import TokenDataset

DESCRIPTION = (
    "Prints the loss of a run's model on fixed subsets of its train and validation splits. The subsets are the same "
    "at every evaluation of every run on that data, and the standard error tells how much of a difference is noise."
)
EXAMPLES = """examples:
  python -m jaxgpt.evaluate quickstart
  python -m jaxgpt.evaluate runs/mine --step best
"""


def main(argv: Sequence[str]) -> None:
    """Prints the losses of a run's checkpoint."""
    parser = Parser("evaluate", DESCRIPTION, "RUN [--step N|latest|best] [--data DIR]", EXAMPLES)
    parser.add_argument("run", help="a run folder, or the name of a run under runs/")
    parser.add_argument("--step", default="latest", help="which checkpoint: a step, latest or best (default: latest)")
    parser.add_argument("--data", help="folder of token shards (default: the run's own)")
    parser.add_argument("--tokens", type=int, help="tokens per split (default: the run's run.eval_tokens)")
    options = parser.parse(argv)
    run = find_run(options.run, options.step)

    # Imported here because these load JAX, which takes seconds: by now the command line is known to be right.
    with loading("JAX and the model"):
        from jaxgpt.training import jax_setup, loaded_model
        from jaxgpt.training.evaluator import Evaluator

    jax_setup.configure_jax()
    model = loaded_model.load_model(run)
    config = model.config
    if options.tokens is not None:
        config = config.replace({"run": {"eval_tokens": options.tokens}})
    dataset = _open_dataset(options.data or config.data.path)
    if dataset.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise CheckpointError(
            "K002",
            f"{dataset.folder} was made with another tokenizer than the run: {dataset.tokenizer.name}",
            "prepare the data with the run's tokenizer.json",
        )
    scores = Evaluator(config, dataset, model.mesh, model.graphdef)(model.params)
    print(f"step {model.step}: train loss {scores.train}")
    if scores.val:
        print(f"step {model.step}: val loss {scores.val}")


def _open_dataset(path: str) -> "TokenDataset":
    from jaxgpt.data import dataset as datasets  # loads the tokenizers' library

    try:
        return datasets.open_folder(path)
    except NoShardsError as error:
        raise error.replace(help="--data DIR names their folder, if they were moved") from error


if __name__ == "__main__":
    sys.exit(errors.run(main))
