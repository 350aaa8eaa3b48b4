"""Trains a config with several values of its fields, and reports which is best. Loads no JAX."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Runs the sweep on the command line."""
    from jaxgpt.sweep import command

    command.main(argv)
