import sys

from jaxgpt import errors
from jaxgpt.doctor import main

sys.exit(errors.run(main))
