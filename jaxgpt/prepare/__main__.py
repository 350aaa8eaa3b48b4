"""`python -m jaxgpt.prepare`."""

import sys

from jaxgpt import errors
from jaxgpt.prepare import main

if __name__ == "__main__":
    sys.exit(errors.run(main))
