"""jaxgpt: train small GPTs in JAX, with a Rust data loader.

Importing the package loads neither JAX nor the compiled extension. Each command is a module with a `main`, such as
`jaxgpt.train`.
"""

import signal
import sys
from pkgutil import extend_path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from jaxgpt.generation.text_generator import TextGenerator

# In a source checkout `python -m` finds this folder before the installed wheel, and only the wheel has the compiled
# extension: the package spans both.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"


def load(run: "str | Path", step: "str | int" = "latest") -> "TextGenerator":
    """The model of a run, to generate text with: `jaxgpt.load("quickstart").generate("def main")`.

    `run` is a run folder or the name of a run under runs/; `step` is a number, "latest" or "best". Loads JAX. Raises
    `jaxgpt.errors.JaxgptError` if there is no such run or its checkpoint cannot be read.
    """
    from jaxgpt.generation.text_generator import TextGenerator

    return TextGenerator.load(run, step)


def _is_command() -> bool:
    """True while `python -m jaxgpt.…` imports the package for its command.

    Only then does the package change how SIGINT is handled. A command starts too late for it: its module first imports
    others, for a tenth of a second, in which Ctrl-C would print a traceback.
    """
    arguments = iter(sys.orig_argv[1:])
    option = next((argument for argument in arguments if argument.startswith("-m")), "")
    module = option[2:] or next(arguments, "")
    return sys.argv[:1] == ["-m"] and module.partition(".")[0] == __name__


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback until `errors.run` starts
