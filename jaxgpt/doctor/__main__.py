"""`python -m jaxgpt.doctor`."""

import sys

from jaxgpt import errors
from jaxgpt.doctor import main

if __name__ == "__main__":
    sys.exit(errors.run(main))
