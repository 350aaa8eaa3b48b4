"""`python -m jaxgpt.export RUN --to hf --out DIR`: the command line."""

from collections.abc import Sequence
from pathlib import Path

from jaxgpt.config.options import Parser
from jaxgpt.data import hub
from jaxgpt.errors import ConfigError, printable
from jaxgpt.runs.folder import find_run
from jaxgpt.utils.loading import loading

DESCRIPTION = """Writes a run's model as a Hugging Face folder or a GGUF file, and checks it.

The logits that a written folder gives are computed in numpy, independently of JAX, and compared with the model's; the
tensors of a GGUF file are read back.
GPT-2's block becomes GPT2LMHeadModel, the modern block Qwen3ForCausalLM. Rows of the vocabulary that no token has are
left out. --out must not exist.
"""
EXAMPLES = """examples:
  python -m jaxgpt.export quickstart --to hf --out quickstart-hf
  python -m jaxgpt.export runs/mine --step best --to hf --dtype bfloat16 --out mine-hf --push OWNER/NAME
  python -m jaxgpt.export runs/mine --to gguf --out mine.gguf

in Python, after pip install transformers torch:
  from transformers import pipeline
  pipeline('text-generation', 'quickstart-hf')('def main')
"""


def main(argv: Sequence[str]) -> None:
    """Exports the checkpoint of a run."""
    parser = Parser("export", DESCRIPTION, "RUN --to hf|gguf --out PATH [options]", EXAMPLES)
    parser.add_argument("run", help="a run folder, the name of a run under runs/, or one of its checkpoints")
    parser.add_argument("--to", choices=["hf", "gguf"], default="hf", help="the format (default: hf)")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="folder or GGUF file to write")
    parser.add_argument("--step", default="latest", help="which checkpoint: a step, latest or best (default: latest)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights (default: float32)"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="then upload the folder to this hub repository (private)")
    options = parser.parse(argv)
    if options.push and options.to != "hf":
        raise ConfigError("C039", "--push uploads a Hugging Face folder", "leave out --to gguf")
    if options.push:
        hub.library()
    run = find_run(options.run, options.step)

    with loading("JAX and the model"):
        from jaxgpt.export.exporter import export_gguf, export_hf
        from jaxgpt.training import jax_setup
        from jaxgpt.training.loaded_model import load_model

    jax_setup.configure_jax()
    export = export_hf if options.to == "hf" else export_gguf
    print(printable(str(export(run.run, load_model(run), options.out, options.dtype))))
    if options.push:
        print(f"uploaded: {hub.push_model(options.out, options.push)}")
