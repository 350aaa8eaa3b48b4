"""`python -m jaxgpt.diagnose`."""

import sys

from jaxgpt import errors
from jaxgpt.diagnose import main

if __name__ == "__main__":
    sys.exit(errors.run(main))
