"""`python -m jaxgpt.sweep`."""

import sys

from jaxgpt import errors
from jaxgpt.sweep import main

if __name__ == "__main__":
    sys.exit(errors.run(main))
