"""Writes a run's model in the formats of other programs. Loads JAX only to read the checkpoint."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Exports the run on the command line."""
    from jaxgpt.export import command

    command.main(argv)
