"""The run: what its loop costs, how each way out of it leaves the disk, and what is answered before it starts.

The other tests of runs take their tiny run from here: two layers on 64 tokens, an epoch of less than eight steps.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from jax.experimental.compilation_cache import compilation_cache

import jaxgpt
from jaxgpt import _loader, errors, train
from jaxgpt.config import Config, Run
from jaxgpt.runs import log as runlog
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training import metrics, step
from jaxgpt.training import optimizer as optim
from jaxgpt.training.checkpoint import Checkpoints, resolved
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.step import TrainState

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
    "run.tensorboard": False,
}


Changes = Mapping[str, Any]
NONE: Changes = MappingProxyType({})


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


def options(place: Path, changes: Changes) -> dict[str, Any]:
    return TINY | {"data.path": str(place / "data"), "run.dir": str(place / "runs"), **changes}


def tiny(place: Path, changes: Changes = NONE) -> Config:
    """The tiny run on `place`/data, its folder under `place`/runs; `changes` by "section.field"."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in options(place, changes).items():
        section, field = name.split(".")
        nested.setdefault(section, {})[field] = value
    return Config().replace(nested)


def arguments(place: Path, changes: Changes = NONE) -> list[str]:
    """The same run as a command line."""
    return [f"--{name}={value}" for name, value in options(place, changes).items()]


def command(place: Path, changes: Changes = NONE, *more: str) -> subprocess.Popen[str]:
    """The same run as a process of its own, with its output piped."""
    line = [sys.executable, "-m", "jaxgpt.train", *arguments(place, changes), *more]
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=place)


def folder_of(place: Path, name: str = "a") -> RunFolder:
    return RunFolder(place / "runs" / name)


def records(folder: RunFolder, kind: str = "step") -> list[dict[str, Any]]:
    return [record for record in runlog.read(folder.log_file) if record["kind"] == kind]


def losses(folder: RunFolder) -> dict[int, str]:
    """The exact loss and gradient norm of each step; a step that was run twice had the same both times."""
    found: dict[int, str] = {}
    for record in records(folder):
        exact = f"{record['loss'].hex()} {record['grad_norm'].hex()}"
        assert found.setdefault(record["step"], exact) == exact, f"step {record['step']} differs when it is run again"
    return found


def saved_state(config: Config, which: str = "latest") -> TrainState:
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    config = resolved(config, mesh)
    template = step.abstract_state(config, optim.make(config.optim, config.run.steps), mesh)
    with Checkpoints(RunFolder.of(config).checkpoints) as checkpoints:
        return checkpoints.restore(template, checkpoints.find(which))


def bits(state: Any) -> dict[str, bytes]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def saved_steps(folder: RunFolder) -> list[int]:
    """The committed checkpoints, as a process that starts now sees them."""
    with Checkpoints(folder.checkpoints) as checkpoints:
        return checkpoints.steps()


def after_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> None:
    """Calls `action` when `number` updates are done, before what is due then."""
    original = train.Between.steps

    def steps(self: train.Between, done: int, state: TrainState) -> None:
        if done == number:
            action()
        original(self, done, state)

    monkeypatch.setattr(train.Between, "steps", steps)


class Crash(Exception):
    """An error that nobody expects."""


def crash() -> None:
    raise Crash


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
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xla_cache: Path) -> Path:
    """A folder with tokens, which is the current one."""
    write_tokens(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what the loop costs ---------------------------------------------------------------------------------------------


class Watch:
    """Counts what reads device arrays: `reads` holds (updates dispatched, update whose metrics were read or None)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dispatched = 0
        self._functions: list[Any] = []
        self.reads: list[tuple[int, int | None]] = []
        self._owner: dict[int, int] = {}
        self._alive: list[Any] = []
        monkeypatch.setattr(step, "compile_train_step", self._watching(step.compile_train_step))
        value = ArrayImpl._value
        monkeypatch.setattr(ArrayImpl, "_value", property(lambda array: self._read(array, value.fget(array))))
        for name in ("__array__", "block_until_ready", "copy_to_host_async", "__float__", "item", "tolist"):
            self._patch(monkeypatch, name)

    def _patch(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        original = getattr(ArrayImpl, name)

        def method(array: Any, *args: Any, **kwargs: Any) -> Any:
            self._read(array, None)
            return original(array, *args, **kwargs)

        monkeypatch.setattr(ArrayImpl, name, method)

    def _read(self, array: Any, result: Any) -> Any:
        self.reads.append((self.dispatched, self._owner.get(id(array))))
        return result

    def _watching(self, compile_train_step: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(*args: Any) -> Any:
            function = compile_train_step(*args)
            self._functions.append(function)

            def run(state: TrainState, block: jax.Array) -> tuple[TrainState, step.Metrics]:
                state, found = function(state, block)
                self._owner |= {id(leaf): self.dispatched for leaf in found}
                self._alive.append(found)  # so that no other array gets its id
                self.dispatched += 1
                return state, found

            return run

        return compiled

    @property
    def compiled(self) -> int:
        return sum(function._cache_size() for function in self._functions)

    def per_step(self) -> dict[int, set[int | None]]:
        """By the number of updates dispatched: whose metrics were read then."""
        found: dict[int, set[int | None]] = {number: set() for number in range(1, self.dispatched + 1)}
        for dispatched, owner in self.reads:
            if dispatched:
                found[dispatched].add(owner)
        return found


QUIET = {"run.eval_every": STEPS, "run.save_every": STEPS}


def test_the_loop_reads_one_steps_metrics_when_the_next_is_dispatched_and_nothing_else(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    train.train(tiny(place, QUIET))
    found = watch.per_step()
    assert found.pop(1) == set()
    assert found.pop(STEPS) > {STEPS - 2, STEPS - 1}  # then it evaluates and saves
    assert found == {dispatched: {dispatched - 2} for dispatched in range(2, STEPS)}


def test_the_metrics_of_a_step_are_fetched_in_one_call(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fetch = metrics.fetch
    monkeypatch.setattr(metrics, "fetch", lambda values: calls.append(1) or fetch(values))
    train.train(tiny(place, QUIET))
    assert len(calls) == STEPS


def test_that_watch_sees_a_loop_that_waits_for_its_own_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = metrics.Recorder.step

    def impatient(self: metrics.Recorder, number: int, values: step.Metrics) -> None:
        float(values.loss)
        original(self, number, values)

    monkeypatch.setattr(metrics.Recorder, "step", impatient)
    watch = Watch(monkeypatch)
    train.train(tiny(place, QUIET))
    assert watch.per_step()[5] == {3, 4}


def test_a_run_compiles_its_step_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    after_step(monkeypatch, 10, crash)
    with pytest.raises(Crash):
        train.train(tiny(place))
    assert watch.compiled == 1
    monkeypatch.undo()
    again = Watch(monkeypatch)
    train.train(tiny(place))
    assert (again.dispatched, again.compiled) == (STEPS - 8, 1)


# --- the ways out ----------------------------------------------------------------------------------------------------


def test_a_run_ends_with_its_last_step_saved_and_evaluated(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train.train(tiny(place))
    assert saved_steps(folder)[-1] == STEPS
    assert [record["step"] for record in records(folder, "eval")] == [0, 10, 20]
    assert records(folder, "stop")[0]["reason"] == "done"
    assert f"done: {STEPS} steps" in capsys.readouterr().out


def test_an_exception_in_the_loop_leaves_every_save_on_the_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(place, {"run.save_every": 1, "run.keep_latest": 3})
    after_step(monkeypatch, 9, crash)
    with pytest.raises(Crash):
        train.train(config)
    assert saved_steps(folder_of(place))[-3:] == [6, 7, 8]
    assert not list(folder_of(place).checkpoints.glob("*tmp*"))
    assert records(folder_of(place), "stop")[0]["reason"] == "Crash"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_the_run_after_its_step_with_everything_saved(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    after_step(monkeypatch, 7, lambda: os.kill(os.getpid(), number))
    assert errors.run(train.main, arguments(place)) == status
    assert saved_steps(folder_of(place))[-1] == 7
    assert len(losses(folder_of(place))) == 7
    assert "stopped after step 7, saved; the same command goes on from there" in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert errors.run(train.main, arguments(place)) == 0
    assert len(losses(folder_of(place))) == len(records(folder_of(place))) == STEPS


def test_a_second_signal_ends_the_run_at_once_and_keeps_what_was_being_saved(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    after_step(monkeypatch, 9, twice)
    assert errors.run(train.main, arguments(place)) == 130
    assert saved_steps(folder_of(place))[-1] == 8
    assert not list(folder_of(place).checkpoints.glob("*tmp*"))


def test_a_signal_while_the_run_closes_does_not_cost_its_last_checkpoint(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train.finish

    def finish(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(*args)

    monkeypatch.setattr(train, "finish", finish)
    assert errors.run(train.main, arguments(place)) == 0
    assert saved_steps(folder_of(place))[-1] == STEPS


BUSY = """
import hashlib, threading
from jaxgpt.utils.signals import StopRequest
with StopRequest(lambda: print("terminal in order", flush=True)):
    threading.Timer(0.3, lambda: print("busy", flush=True)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # like a compiler: runs no Python before it is done
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_before_the_first_step_is_answered_while_a_compiler_is_busy(
    number: signal.Signals, status: int
) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(jaxgpt.__file__).parents[1])}
    line = [sys.executable, "-c", BUSY]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as run:
        assert run.stdout
        assert run.stdout.readline() == "busy\n"
        begun = time.monotonic()
        run.send_signal(number)
        try:
            out, err = run.communicate(timeout=20)
        finally:
            run.kill()
    assert time.monotonic() - begun < 3
    assert (run.returncode, out) == (status, "terminal in order\n")
    assert err == "stopped before the first step; nothing is lost\n"


def test_a_signal_before_the_first_step_ends_the_run_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train.Evaluator, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert errors.run(train.main, arguments(place)) == 130
    assert capsys.readouterr().err == "stopped before the first step; nothing is lost\n"
    assert (losses(folder_of(place)), saved_steps(folder_of(place))) == ({}, [])


# --- a normal run as its reader sees it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory, xla_cache: Path) -> tuple[Path, str, str]:
    """A whole run as a process: its place, its output and its errors."""
    place = tmp_path_factory.mktemp("piped")
    write_tokens(place / "data")
    run = command(place)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0
    return place, out, err


def test_a_normal_run_says_nothing_on_stderr(piped: tuple[Path, str, str]) -> None:
    assert piped[2] == ""


def test_a_finished_run_says_so_and_changes_nothing(
    piped: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = piped[0]
    before = {path: path.read_bytes() for path in (place / "runs").rglob("*") if path.is_file()}
    assert errors.run(train.main, arguments(place)) == 0
    assert f"is done: it has all its {STEPS} steps" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in (place / "runs").rglob("*") if path.is_file()}
    lock = folder_of(place).path / ".lock"
    assert before.keys() == after.keys()
    assert {path for path in before if before[path] != after[path]} <= {lock}


def test_the_policy_keeps_the_latest_the_best_and_the_multiples(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val = iter([9.0, 5.0, 3.0, 4.0, 3.5, 6.0])

    class Judge:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, params: Any) -> metrics.Scores:
            score = metrics.Score(next(val), 0.1, 16, None)
            return metrics.Scores(score, score)

    monkeypatch.setattr(train, "Evaluator", Judge)
    kept = {"run.eval_every": 4, "run.save_every": 2, "run.keep_latest": 2, "run.keep_best": 1, "run.keep_every": 6}
    folder = train.train(tiny(place, kept))
    assert saved_steps(folder) == [6, 8, 12, 18, 20]
    with Checkpoints(folder.checkpoints) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best(), checkpoints.best_loss()) == (20, 8, 3.0)
    assert Run().keep_best == 1
