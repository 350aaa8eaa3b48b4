"""`jaxgpt VERB …`: the same commands as `python -m jaxgpt.VERB …`."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import jaxgpt
from jaxgpt import errors
from jaxgpt.errors import ConfigError

VERBS = {
    "prepare": "text or parquet files into token shards",
    "audit": "what a folder of token shards holds: duplicates, validation in train",
    "budget": "what a run will cost and reach, before it starts",
    "train": "a config's model, resuming where it stopped",
    "diagnose": "where a run is heading, when it ends, and why it stalls",
    "evaluate": "the loss of a run's model on train and validation text",
    "sample": "text from a run's model",
    "doctor": "whether this machine can train, on what, and what to do where it cannot",
}


def usage() -> str:
    """The commands, a line each."""
    lines = [f"  jaxgpt {verb:<10}{what}" for verb, what in VERBS.items()]
    return "\n".join(["usage: jaxgpt VERB [options]      (jaxgpt VERB --help explains)", "", *lines])


def dispatch(argv: Sequence[str]) -> None:
    """Runs the command that `argv` begins with; only that command's modules are loaded."""
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help"):
        print(usage())
    elif verb in ("-V", "--version"):
        print(jaxgpt.__version__)
    elif verb in VERBS:
        importlib.import_module(f"jaxgpt.{verb}").main(argv[1:])
    else:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean 'jaxgpt {close[0]}'?" if close else f"one of: {', '.join(VERBS)}"
        raise ConfigError("C006", f"there is no command {verb!r}", hint)


def main() -> None:
    """The console command `jaxgpt`."""
    sys.exit(errors.run(dispatch))


if __name__ == "__main__":
    main()
