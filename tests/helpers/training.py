"""A tiny training run for tests: two layers on 64 tokens, an epoch of less than eight steps."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import pytest

import jaxgpt
from jaxgpt import _loader
from jaxgpt.config import Config
from jaxgpt.config.options import format_value
from jaxgpt.runs import log as runlog
from jaxgpt.runs.folder import FILES, RunFolder
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.loaded_model import resolve_auto
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.recorder import Recorder
from jaxgpt.training.step import Metrics, TrainState
from jaxgpt.utils.sealed import CHECKSUM, seal

VOCABULARY = 64
STEPS = 20
TINY: dict[str, Any] = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 32,
    "model.block_size": 16,
    "model.vocab_size": VOCABULARY,
    "model.dropout": 0.1,
    "model.loss_chunk": 64,
    "data.micro_batch": 4,
    "data.accum": 2,
    "optim.warmup_steps": 2,
    "optim.learning_rate": 1e-2,
    "optim.min_lr": 1e-3,
    "run.name": "a",
    "run.steps": STEPS,
    "run.log_every": 1,
    "run.eval_every": 10,
    "run.eval_tokens": 256,
    "run.save_every": 4,
    "run.trackers": (),
}


Changes = Mapping[str, Any]
NO_CHANGES: Changes = MappingProxyType({})


def write_tokens(folder: Path, train: int = 1000, val: int = 300, seed: int = 0) -> Path:
    """Random tokens as shards without a manifest, and the tokenizer that could have made them."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {chr(ord("!") + number): number for number in range(VOCABULARY)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "!"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    for number, (name, tokens) in enumerate({"train": train, "val": val}.items()):
        if tokens:
            write_shard(folder / f"{name}_000000.bin", random_tokens(tokens, seed + number))
    return folder


def random_tokens(count: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype("<u2")


def write_shard(path: Path, tokens: np.ndarray[Any, Any]) -> None:
    with _loader.ShardWriter(path, overwrite=True) as writer:
        writer.append(tokens)
        writer.finish()


def run_options(workspace: Path, changes: Changes) -> dict[str, Any]:
    return TINY | {"data.path": str(workspace / "data"), "run.dir": str(workspace / "runs"), **changes}


def tiny_config(workspace: Path, changes: Changes = NO_CHANGES) -> Config:
    """The tiny run on `workspace`/data, its folder under `workspace`/runs; `changes` by "section.field"."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in run_options(workspace, changes).items():
        section, field = name.split(".")
        nested.setdefault(section, {})[field] = value
    return Config().replace(nested)


def arguments(workspace: Path, changes: Changes = NO_CHANGES) -> list[str]:
    """The same run as a command line."""
    values = {name: ",".join(format_value(value)) for name, value in run_options(workspace, changes).items()}
    options = [f"--{name}={value}" for name, value in values.items()]
    return ["--config", "gpt2_124m", "--yes", *options]  # a few tokens are read many times


def start_training(workspace: Path, changes: Changes = NO_CHANGES, *more: str) -> subprocess.Popen[str]:
    """The same run as a process of its own, with its output piped."""
    line = [sys.executable, "-m", "jaxgpt.train", *arguments(workspace, changes), *more]
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=workspace)


def copy_workspace(source: Path, target: Path) -> None:
    """Copies data and runs as if they had been made in `target`."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    for file in (target / "runs").glob("*/*.json*"):
        file.write_text(file.read_text().replace(str(source), str(target)))
    for folder in (target / "runs").iterdir():
        accept_files(RunFolder(folder))


def accept_files(folder: RunFolder) -> None:
    """Makes the run's data.json agree with its config.json and tokenizer.json as they are now."""
    values = json.loads(folder.data_file.read_text())
    del values[CHECKSUM]
    values[FILES] = {name: [_loader.hash_file(folder.path / name)] for name in values[FILES]}
    folder.data_file.write_text(seal(values))


def run_folder(workspace: Path, name: str = "a") -> RunFolder:
    return RunFolder(workspace / "runs" / name)


def records(folder: RunFolder, kind: str = "step") -> list[dict[str, Any]]:
    return [record for record in runlog.read_log(folder.log_file) if record["kind"] == kind]


def logged_losses(folder: RunFolder) -> dict[int, str]:
    """The exact loss and gradient norm of each step; a step that was run twice had the same both times."""
    losses: dict[int, str] = {}
    for record in records(folder):
        exact = f"{record['loss'].hex()} {record['grad_norm'].hex()}"
        assert losses.setdefault(record["step"], exact) == exact, f"step {record['step']} differs when it is repeated"
    return losses


def saved_state(config: Config, which: str = "latest") -> TrainState:
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    config = resolve_auto(config, mesh)
    template = step.abstract_state(config, optim.make_optimizer(config), mesh)
    with Checkpoints(RunFolder.from_config(config).checkpoints) as checkpoints:
        return checkpoints.restore(template, checkpoints.resolve_step(which))


def leaf_bytes(state: Any) -> dict[str, bytes]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def saved_steps(folder: RunFolder) -> list[int]:
    """The committed checkpoints, as a process that starts now sees them."""
    with Checkpoints(folder.checkpoints) as checkpoints:
        return checkpoints.steps()


def after_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> None:
    """Calls `action` when `number` steps are done, before what is due then."""
    original = Recorder.step

    def record_step(self: Recorder, step: int, metrics: Metrics) -> None:
        original(self, step, metrics)
        if step + 1 == number:
            action()

    monkeypatch.setattr(Recorder, "step", record_step)


class Crash(Exception):
    """An error that nobody expects."""


def crash() -> None:
    raise Crash
