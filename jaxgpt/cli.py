"""`jaxgpt VERB …`: the same commands as `python -m jaxgpt.VERB …`."""

import importlib
import os
import sys
from collections.abc import Sequence

import jaxgpt
from jaxgpt import errors
from jaxgpt.errors import ConfigError, did_you_mean

VERBS = {
    "prepare": "turn text or parquet files into token shards",
    "audit": "find duplicates in a folder of token shards, and validation text in train",
    "budget": "plan a run: its time, memory, cost and loss, before it starts",
    "train": "train a config, resuming where it stopped",
    "tune": "find the fastest settings of a config's training step on this device",
    "sweep": "try several values of a config's fields, and report which is best",
    "diagnose": "see where a run is heading, when it ends, and why it stalls",
    "evaluate": "compute the loss of a run's model on train and validation text",
    "sample": "generate text with a run's model",
    "export": "write a run's model as a Hugging Face folder or a GGUF file",
    "checkpoint": "verify, list or delete the checkpoints of a run",
    "doctor": "check whether this machine can train, and what to do if it cannot",
    "config": "list the built-in configs, or print one",
    "init": "write a config file to edit, from a built-in config or three answers",
}
FIRST = "new here?   jaxgpt train quickstart      trains a small model on this machine in 4 minutes"


def usage() -> str:
    """The list of commands."""
    lines = [f"  jaxgpt {verb:<12}{summary}" for verb, summary in VERBS.items()]
    return "\n".join(["usage: jaxgpt VERB [options]      (jaxgpt VERB --help explains)", "", *lines, "", FIRST])


def dispatch(argv: Sequence[str]) -> None:
    """Runs the command that `argv` starts with; only that command's modules are loaded."""
    verb = argv[0] if argv else "--help"
    if "_ARGCOMPLETE" in os.environ:
        from jaxgpt.config.completion import complete_verb  # only where a shell completes the line

        verb = complete_verb(list(VERBS)) or "--help"
    if verb in ("-h", "--help"):
        print(usage())
    elif verb in ("-V", "--version"):
        print(jaxgpt.__version__)
    elif verb in VERBS:
        importlib.import_module(f"jaxgpt.{verb}").main(argv[1:])
    else:
        hint = f"{did_you_mean(verb, VERBS)}one of: {', '.join(VERBS)}"
        raise ConfigError("C006", f"there is no command {verb!r}", hint)


def main() -> None:
    """The console command `jaxgpt`."""
    sys.exit(errors.run(dispatch))


if __name__ == "__main__":
    main()
