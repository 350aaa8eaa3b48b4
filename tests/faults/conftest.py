"""Faults: what is on the disk after each, and what a person is told."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from helpers.training import tiny_config, write_tokens

from jaxgpt.train import train


@pytest.fixture(scope="package", autouse=True)
def fast_compilation() -> Iterator[None]:
    """Compiles without most optimizations, here and in processes: runs that are compared have the same programs."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="package")
def finished_run(fast_compilation: None, tmp_path_factory: pytest.TempPathFactory, xla_cache: Path) -> Path:
    workspace = tmp_path_factory.mktemp("finished")
    write_tokens(workspace / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxgpt.diagnose.live.write_run_report", lambda _: None)
        train(tiny_config(workspace))
    return workspace


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report at the end of a run, whose figures take as long as the run."""
    monkeypatch.setattr("jaxgpt.diagnose.live.write_run_report", lambda _: None)
