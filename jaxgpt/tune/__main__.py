"""`python -m jaxgpt.tune`."""

import sys

from jaxgpt import errors
from jaxgpt.tune import main

if __name__ == "__main__":
    sys.exit(errors.run(main))
