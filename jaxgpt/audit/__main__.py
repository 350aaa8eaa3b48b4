"""`python -m jaxgpt.audit`."""

import sys

from jaxgpt import errors
from jaxgpt.audit import main

if __name__ == "__main__":
    sys.exit(errors.run(main))
