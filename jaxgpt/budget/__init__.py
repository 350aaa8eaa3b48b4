"""Plans a run before it starts: time, memory, cost and expected loss. Loads no JAX."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Plans the run on the command line."""
    from jaxgpt.budget import command

    command.main(argv)
