"""A sweep of the tiny run over its learning rate."""

from pathlib import Path
from typing import Any

from helpers.training import tiny_config, write_tokens
from jaxgpt.config.files import write_config
from jaxgpt.sweep.folder import SweepFolder
from jaxgpt.sweep.grid import Varied

RATES = Varied("optim.learning_rate", (0.003, 0.01))


def sweep_folder(path: Path, varied: Varied = RATES, seeds: int = 1, **changes: Any) -> SweepFolder:
    return SweepFolder(path / "s", tiny_config(path, changes), [varied], seeds)


def write_tiny_config(folder: Path) -> Path:
    """A config file of the tiny run, with tokens beside it."""
    write_tokens(folder / "data", train=4000)
    config = tiny_config(folder, {"run.name": "tiny", "data.path": "data", "run.dir": "runs"})
    return write_config(config, folder / "tiny.py")
