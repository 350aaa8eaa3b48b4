"""Strict JAX for every test, on two CPU devices, with everything that a test makes under its own folder."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from helpers.audit import texts_with_duplicates
from helpers.shards import Tokens, write_shards
from helpers.training import copy_workspace, tiny_config, write_tokens
from jax.experimental.compilation_cache import compilation_cache

from jaxgpt._loader import Dataset
from jaxgpt.prepare.pipeline import prepare
from jaxgpt.train import train

jax.config.update("jax_numpy_rank_promotion", "raise")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the children of tests under nohup would ignore it

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
KILLS = int(os.environ.get("KILLS", "12"))  # of a command that must resume, at random times; .ci/nightly has more


@pytest.fixture(autouse=True, scope="session")
def default_malloc() -> Iterator[None]:
    """Keeps commands from changing malloc's parameters: they would hold for the whole test process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxgpt.utils.malloc.keep_step_memory", lambda: None)
        patch.setattr("jaxgpt.utils.malloc.keep_batch_memory", lambda: None)
        yield


@pytest.fixture
def data() -> Tokens:
    return np.random.default_rng(0).integers(0, 50257, 20_000).astype(np.uint16)


@pytest.fixture
def dataset(tmp_path: Path, data: Tokens) -> Dataset:
    """The data in four shards, one of them empty and one shorter than a window."""
    return Dataset(write_shards(tmp_path, data, [7_001, 7_001, 7_011]))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout; tests that need it are skipped in a plain clone."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference material in ../shared, which a plain clone does not have")
    return SHARED


@pytest.fixture(scope="session")
def xla_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps compiled programs for this session: what is compiled for one test serves the next."""
    folder = tmp_path_factory.getbasetemp() / "xla"
    folder.mkdir(exist_ok=True)
    settings = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # or it stays as it was when the first program was compiled
        yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xla_cache: Path) -> Path:
    """A folder with tokens, which is the current one."""
    write_tokens(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, xla_cache: Path) -> Path:
    workspace = tmp_path_factory.mktemp("finished")
    write_tokens(workspace / "data")
    train(tiny_config(workspace))
    return workspace


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tokens and the finished tiny run, which is the current one."""
    copy_workspace(finished_run, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def fast_compilation() -> Iterator[None]:
    """Halves compile times by skipping most optimizations; the computations stay the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def planner_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder on a machine without a GPU."""
    monkeypatch.setattr("jaxgpt.budget.devices.local_gpu", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def duplicates_prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("duplicates") / "texts"
    source.mkdir()
    for number, text in enumerate(texts_with_duplicates()):
        (source / f"{number:04}.txt").write_text(text)
    prepare([str(source)], source.with_name("data"), val_tokens=4_000)
    return source.with_name("data")


@pytest.fixture
def duplicates_folder(tmp_path: Path, duplicates_prepared: Path) -> Path:
    """A prepared folder with train and validation, whose texts have exact and near-duplicates."""
    return Path(shutil.copytree(duplicates_prepared, tmp_path / "data"))
