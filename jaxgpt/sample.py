"""`python -m jaxgpt.sample RUN --prompt TEXT`: prints texts that a run's model generates."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

from jaxgpt import errors
from jaxgpt.config.options import Parser
from jaxgpt.errors import ConfigError, DataError, visible_controls
from jaxgpt.generation.options import SamplingOptions
from jaxgpt.runs.folder import find_run
from jaxgpt.utils.files import read_text
from jaxgpt.utils.loading import loading

DESCRIPTION = "Generates text with a run's model. The same seed gives the same text."
EXAMPLES = """examples:
  python -m jaxgpt.sample quickstart --prompt 'def main' --samples 3
  python -m jaxgpt.sample runs/mine --step best --prompt FILE:prompt.txt --tokens 500
  python -m jaxgpt.sample quickstart --interactive

in Python:
  import jaxgpt
  model = jaxgpt.load('quickstart')
  print(model.generate('def main', 200))
"""
FILE_PREFIX = "FILE:"
RANGES = {"samples": (1, 2**31), "tokens": (1, 2**63), "seed": (0, 2**32)}  # smallest value, and the first too large
SEPARATOR = "-" * 40


def main(argv: Sequence[str]) -> None:
    """Prints samples of a run."""
    options = _parse(argv)
    sampling = SamplingOptions(options.temperature, options.top_k, options.top_p)
    prompt = _read_prompt(options.prompt)
    run = find_run(options.run, options.step)

    # Imported here because these load JAX, which takes seconds: by now the command line is known to be right.
    with loading("JAX and the model"):
        from jaxgpt.generation import sampler
        from jaxgpt.training import jax_setup
        from jaxgpt.training.loaded_model import load_model

    jax_setup.configure_jax()
    model = load_model(run)
    settings = {"count": options.tokens, "sampling": sampling, "seed": options.seed, "stop": options.stop}
    if options.interactive:
        answer_prompts(lambda prompt: sampler.stream_text(model, prompt, **settings))
    elif options.json:
        texts = list(sampler.generate_texts(model, prompt, samples=options.samples, **settings))
        print(json.dumps({"run": str(run.run.path), "step": model.step, "prompt": prompt, "texts": texts}, indent=2))
    elif options.samples == 1:
        print_stream([prompt], sampler.stream_text(model, prompt, **settings))
    else:
        texts = [prompt + text for text in sampler.generate_texts(model, prompt, samples=options.samples, **settings)]
        print_stream([f"\n{SEPARATOR}\n".join(texts)])


def print_stream(*parts: Iterable[str]) -> None:
    """Prints the pieces of a text as they are made, and ends the line; a terminal gets no control characters."""
    is_terminal = sys.stdout.isatty()
    for piece in chain(*parts):
        print(visible_controls(piece) if is_terminal else piece, end="", flush=True)
    print()


def answer_prompts(generate: Callable[[str], Iterable[str]]) -> None:
    """Continues each line of stdin until it ends. Ctrl-C ends a text; at the prompt, it ends the command."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("a line is a prompt; Ctrl-C ends a text, Ctrl-D the command")
    while True:
        try:
            prompt = input("> " if is_terminal else "")
        except EOFError:
            return
        try:
            print_stream([prompt], generate(prompt))
        except KeyboardInterrupt:
            print()
        except ConfigError as error:  # such as a character that the tokenizer does not have
            print(f"\n{error}", file=sys.stderr)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options. Raises `ConfigError` C006 or C009 for what cannot be sampled."""
    parser = Parser("sample", DESCRIPTION, "RUN [--prompt TEXT] [options]", EXAMPLES)
    parser.add_argument("run", help="a run folder, the name of a run under runs/, or one of its checkpoints")
    parser.add_argument("--step", default="latest", help="which checkpoint: a step, latest or best (default: latest)")
    parser.add_argument("--prompt", "--start", default="", help="text to continue; FILE:PATH reads it from a file")
    parser.add_argument(
        "--samples", "--num_samples", type=int, default=1, metavar="N", help="number of samples (default: 1)"
    )
    parser.add_argument(
        "--tokens", "--max_new_tokens", type=int, default=200, metavar="N", help="tokens per sample (default: 200)"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely token (default: 0.8)")
    parser.add_argument(
        "--top-k", "--top_k", type=int, default=0, help="draw from the k most likely tokens (default: 0, all)"
    )
    parser.add_argument(
        "--top-p",
        "--top_p",
        type=float,
        default=1.0,
        help="draw from the most likely tokens of total probability p (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=1337, help="same seed, same text (default: 1337)")
    parser.add_argument("--stop", help="end a sample before this text")
    parser.add_argument("--json", action="store_true", help="print the texts, without their prompt, as JSON")
    parser.add_argument("--interactive", action="store_true", help="continue each line that you type, until Ctrl-D")
    options = parser.parse(argv)
    for name, (low, end) in RANGES.items():
        value = getattr(options, name)
        if not low <= value < end:
            bits = end.bit_length() - 1
            raise ConfigError("C009", f"--{name} = {value}; must be {low} or more, and below 2^{bits}")
    return options


def _read_prompt(text: str) -> str:
    """`text`, or the content of the file that it names."""
    if not text.startswith(FILE_PREFIX):
        return text
    path = Path(text.removeprefix(FILE_PREFIX))
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise DataError("D022", f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


if __name__ == "__main__":
    sys.exit(errors.run(main))
