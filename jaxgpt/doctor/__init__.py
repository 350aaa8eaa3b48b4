"""Checks whether this machine can train. Loads no JAX itself."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Checks the machine."""
    from jaxgpt.doctor import command

    command.main(argv)
