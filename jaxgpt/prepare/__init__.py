"""`jaxgpt prepare`: text or parquet files into token shards. Loads no JAX."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv`."""
    from jaxgpt.prepare.pipeline import main as run

    run(argv)
