import sys

from jaxgpt import errors
from jaxgpt.prepare import main

sys.exit(errors.run(main))
