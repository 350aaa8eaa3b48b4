"""jaxgpt: train small GPTs in JAX, with a Rust data loader.

Importing the package loads neither JAX nor the extension; each command is a module (`python -m jaxgpt.train`).
"""

import signal
import sys
from pkgutil import extend_path

# In a source checkout `python -m` finds this folder before the installed wheel, and the compiled extension
# stands only in the wheel: let the package span both.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"


def _is_command() -> bool:
    """Whether this process is `python -m jaxgpt.…` and has only begun to import it."""
    words = iter(sys.orig_argv[1:])
    option = next((word for word in words if word.startswith("-m")), "")
    module = option[2:] or next(words, "")
    return sys.argv[:1] == ["-m"] and module.partition(".")[0] == __name__


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback until `errors.run` takes over
