"""`python -m jaxgpt.budget`."""

import sys

from jaxgpt import errors
from jaxgpt.budget import main

if __name__ == "__main__":
    sys.exit(errors.run(main))
