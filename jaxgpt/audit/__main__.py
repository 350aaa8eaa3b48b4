import sys

from jaxgpt import errors
from jaxgpt.audit import main

sys.exit(errors.run(main))
