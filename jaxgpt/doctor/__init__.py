"""Whether this machine can train, and what to do where it cannot: `python -m jaxgpt.doctor`. Loads no JAX itself."""

from collections.abc import Sequence

from jaxgpt.doctor.command import run

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Looks at the machine as the command line asks."""
    run(argv)
