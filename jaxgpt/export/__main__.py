"""`python -m jaxgpt.export`."""

import sys

from jaxgpt import errors
from jaxgpt.export import main

if __name__ == "__main__":
    sys.exit(errors.run(main))
