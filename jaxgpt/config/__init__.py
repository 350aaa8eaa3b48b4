"""What a run is: its config, the files and options that set one, and facts that follow from it. Loads no JAX."""

from collections.abc import Sequence

from jaxgpt.config.schema import Config, Data, Mesh, Model, Optim, Run, sections

__all__ = ["Config", "Data", "Mesh", "Model", "Optim", "Run", "main", "sections"]


def main(argv: Sequence[str]) -> None:
    """Prints a built-in config, or lists them."""
    from jaxgpt.config import command

    command.main(argv)
