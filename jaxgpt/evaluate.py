"""`python -m jaxgpt.evaluate RUN`: prints the loss of a run's model on its train and validation splits."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxgpt import errors
from jaxgpt.config.options import Parser
from jaxgpt.errors import ConfigError, NoShardsError, printable
from jaxgpt.runs.folder import RunFolder, find_run
from jaxgpt.runs.task_results import task_metrics, write_task_results
from jaxgpt.utils.loading import loading

if TYPE_CHECKING:
    from jaxgpt.data.dataset import TokenDataset
    from jaxgpt.training.loaded_model import LoadedModel

DESCRIPTION = (
    "Prints the loss of a run's model on fixed subsets of its train and validation splits. The subsets are the same "
    "at every evaluation of every run on that data, and the standard error tells how much of a difference is noise."
)
EXAMPLES = """examples:
  python -m jaxgpt.evaluate quickstart
  python -m jaxgpt.evaluate runs/mine --step best
  python -m jaxgpt.evaluate runs/mine --tasks lambada_openai,piqa --limit 200
"""


def main(argv: Sequence[str]) -> None:
    """Prints the losses of a run's checkpoint."""
    parser = Parser("evaluate", DESCRIPTION, "RUN [--step N|latest|best] [--data DIR]", EXAMPLES)
    parser.add_argument("run", help="a run folder, or the name of a run under runs/")
    parser.add_argument("--step", default="latest", help="which checkpoint: a step, latest or best (default: latest)")
    parser.add_argument("--data", help="folder of token shards (default: the run's own)")
    parser.add_argument("--tokens", type=int, help="tokens per split (default: the run's run.eval_tokens)")
    parser.add_argument(
        "--tasks", metavar="NAMES", help="tasks of lm-evaluation-harness instead, such as lambada_openai,piqa"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="documents of each task (default: all)")
    parser.add_argument("--task-dir", metavar="DIR", help="a folder with tasks of your own, as YAML files")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse(argv)
    run = find_run(options.run, options.step)

    # Imported here because these load JAX, which takes seconds: by now the command line is known to be right.
    with loading("JAX and the model"):
        from jaxgpt.training import jax_setup, loaded_model
        from jaxgpt.training.evaluator import Evaluator

    jax_setup.configure_jax()
    model = loaded_model.load_model(run)
    if options.tasks:
        _evaluate_tasks(model, run.run, options)
        return
    config = model.config
    if options.tokens is not None:
        config = config.replace({"run": {"eval_tokens": options.tokens}})
    dataset = _open_dataset(options.data or config.data.path)
    run.run.check_tokenizer(dataset.identity)
    if options.data is None:
        run.run.check_unread_tokens(dataset.identity)
    scores = Evaluator(config, dataset, model.mesh, model.graphdef)(model.params)
    if options.json:
        print(json.dumps({"run": str(run.run.path), "step": model.step, **scores.flat()}, indent=2))
        return
    print(f"step {model.step}: train loss {scores.train}")
    if scores.val:
        print(f"step {model.step}: val loss {scores.val}")


def _evaluate_tasks(model: "LoadedModel", run: RunFolder, options: argparse.Namespace) -> None:
    """Prints the results of tasks, and writes them to `evaluations/` in the run's folder.

    Raises `ConfigError` C084 without lm-evaluation-harness, or if it does not have a task.
    """
    with loading("lm-evaluation-harness"):
        try:
            from jaxgpt.generation import harness
        except ImportError as error:
            help = "pip install 'jaxgpt[eval]'"
            raise ConfigError("C084", "--tasks needs lm-evaluation-harness", help) from error
    results = harness.run_tasks(model, options.tasks.split(","), limit=options.limit, task_dir=options.task_dir)
    values = {"run": str(run.path), "step": model.step, "limit": options.limit, "results": results}
    if options.json:
        print(json.dumps(values, indent=2, default=str))
    else:
        lines = [f"{result.task}: {result.metric} {result}" for result in task_metrics(values)]
        print(printable("\n".join(lines)), flush=True)
    file = write_task_results(run, values)
    if not options.json:
        print(f"written: {printable(str(file))}")


def _open_dataset(path: str) -> "TokenDataset":
    from jaxgpt.data import dataset as datasets  # loads the tokenizers' library

    try:
        return datasets.open_folder(path)
    except NoShardsError as error:
        raise error.replace(help="--data DIR names their folder, if they were moved") from error


if __name__ == "__main__":
    sys.exit(errors.run(main))
