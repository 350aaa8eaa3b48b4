"""Strict JAX for every test, on two CPU devices, with everything that a test makes under its own folder."""

import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout; tests that need it are skipped in a plain clone."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference material in ../shared, which a plain clone does not have")
    return SHARED
