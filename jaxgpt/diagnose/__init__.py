"""During and after the run: where it is heading, when it ends, and why it stalls. Loads no JAX."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Answers the request on the command line."""
    from jaxgpt.diagnose.command import run  # train question for an ETA alone

    run(argv)
