"""`python -m jaxgpt.config`."""

import sys

from jaxgpt import errors
from jaxgpt.config import main

if __name__ == "__main__":
    sys.exit(errors.run(main))
