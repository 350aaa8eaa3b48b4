"""Turns text or parquet files into token shards. Loads no JAX."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Prepares the sources on the command line."""
    from jaxgpt.prepare import command

    command.main(argv)
