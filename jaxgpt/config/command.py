"""The command `jaxgpt config`."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

from jaxgpt.config.files import built_in_configs, find_config, read_source, summarize_config
from jaxgpt.config.options import Parser
from jaxgpt.errors import visible_controls

DESCRIPTION = """Prints a config file, or lists the built-in ones with what each is for.

To edit a copy of one: python -m jaxgpt.init NAME.
"""


def main(argv: Sequence[str]) -> None:
    """Prints the file of a config, or a line for each built-in config."""
    parser = Parser("config", DESCRIPTION, "[NAME]")
    parser.add_argument("config", nargs="?", metavar="NAME", help="a built-in config, or the path of a config file")
    options = parser.parse(argv)
    if options.config:
        source = read_source(find_config(options.config))
        print(visible_controls(source) if sys.stdout.isatty() else source, end="")
        return
    print_configs()
    print("\nshow one: python -m jaxgpt.config NAME     copy one for editing: python -m jaxgpt.init NAME")


def print_configs() -> None:
    """Prints a line for each built-in config, as wide as the terminal."""
    width = max(map(len, built_in_configs())) + 2
    columns = shutil.get_terminal_size().columns - width
    for name in built_in_configs():
        print(f"{name:<{width}}{textwrap.shorten(summarize_config(name), columns, placeholder=' …')}")
