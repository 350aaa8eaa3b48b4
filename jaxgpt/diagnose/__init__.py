"""Reads a run or a log: where it is heading, when it ends and why it stalls. Loads no JAX."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Diagnoses the run or log on the command line."""
    from jaxgpt.diagnose import command

    command.main(argv)
