"""Measures programs for a config's training step on this device, and keeps the fastest one. Loads no JAX."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Tunes the config on the command line."""
    from jaxgpt.tune import command

    command.main(argv)
