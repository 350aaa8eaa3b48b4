"""What a folder of token shards contains: duplicates, and validation documents that are also in train. Loads no JAX."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Audits the folder on the command line."""
    from jaxgpt.audit import command

    command.main(argv)
