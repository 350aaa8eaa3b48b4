import sys

from jaxgpt import errors
from jaxgpt.diagnose.command import run

if __name__ == "__main__":
    sys.exit(errors.run(run))
