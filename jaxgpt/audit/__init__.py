"""What a folder of token shards is worth: `python -m jaxgpt.audit DIR`. Loads no JAX."""

from collections.abc import Sequence

from jaxgpt.audit.command import audit, run

__all__ = ["audit", "main"]


def main(argv: Sequence[str]) -> None:
    """Audits the folder on the command line."""
    run(argv)
