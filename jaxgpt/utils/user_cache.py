"""The folders in which jaxgpt caches files for this user."""

import os
from pathlib import Path


def user_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/jaxgpt`, by default `~/.cache/jaxgpt`."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxgpt"


def compilation_cache_dir() -> Path:
    """The folder of XLA's compiled programs: `$JAX_COMPILATION_CACHE_DIR`, by default `xla` in the user's cache."""
    configured = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(configured) if configured else user_cache_dir() / "xla"
