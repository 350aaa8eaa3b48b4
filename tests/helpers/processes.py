"""Several processes of one run on this machine: how a test starts them, and what they do instead of training.

The functions whose first argument is `launch` run in the processes that `start_code` starts.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxgpt
from jaxgpt import errors
from jaxgpt.config import Config
from jaxgpt.errors import DataError, JaxgptError
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training import distributed
from jaxgpt.training.checkpoint import DamagedCheckpointError
from jaxgpt.training.mesh import make_mesh
from tests.helpers.training import leaf_bytes, saved_state, tiny_config

Process = subprocess.Popen[str]
Launch = tuple[str, int, int]  # the address of process 0, the number of processes, the number of this one
SECONDS = 150
FAST = {"SILENCE_SECONDS": 8.0, "SUSPICION_SECONDS": 3.0, "GRACE_SECONDS": 4.0}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_code(code: str, folder: Path, count: int = 2) -> list[Process]:
    """Runs `code`, a call of a function of this module with `launch`, as `count` processes in `folder`."""
    address = f"127.0.0.1:{free_port()}"
    root = str(Path(jaxgpt.__file__).parents[1])
    processes = []
    for number in range(count):
        text = f"from tests.helpers import processes; launch = {address, count, number}; processes.{code}"
        environment = os.environ | {"PYTHONPATH": root, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-c", text], cwd=folder, env=environment, **pipes))
    return processes


def finish(processes: list[Process]) -> list[tuple[int, str]]:
    """The exit status and the stderr of each process."""
    try:
        texts = [process.communicate(timeout=SECONDS)[1] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()


def wait_until(condition: Callable[[], object], processes: list[Process]) -> None:
    """Waits for `condition`, while all the processes run."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


@contextmanager
def together(launch: Launch) -> Iterator[None]:
    with distributed.joined(distributed.find_launch(*launch, {})):
        yield


def add_forever(launch: Launch, failing: int | None = None) -> None:
    """Adds a number of each device again and again; process number `failing` has an error of JAX after a while.

    Writes the file `ready-NUMBER` after the first addition. Notices faults sooner than a run does.
    """
    for name, seconds in FAST.items():
        setattr(distributed, name, seconds)

    def main(_: object) -> None:
        with together(launch):
            mesh = jax.make_mesh((jax.device_count(),), ("data",))
            sharding = jax.NamedSharding(mesh, jax.P("data"))
            ones = jax.make_array_from_callback((mesh.size,), sharding, lambda _: np.ones(1, np.float32))
            add = jax.jit(lambda numbers: numbers.sum(), out_shardings=jax.NamedSharding(mesh, jax.P()))
            while True:
                assert float(add(ones)) == mesh.size
                Path(f"ready-{launch[2]}").touch()
                time.sleep(0.05)
                if launch[2] == failing:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    sys.exit(errors.run(main, []))


def meet(launch: Launch, workspace: str, layouts: dict[str, dict[str, Any]]) -> None:
    """Meets the other processes with a mistake in number 1 each time, and restores the runs in `workspace`.

    Writes what each came to into `met-NUMBER.json`: an error's text, or a checksum of the state that was restored.
    """
    number = launch[2]
    with together(launch):
        outcomes = [outcome(partial(mistake, number, Path(workspace))) for mistake in MISTAKES]
        states = {name: restored(tiny_config(Path(workspace), changes)) for name, changes in layouts.items()}
    Path(f"met-{number}.json").write_text(json.dumps({"outcomes": outcomes, "states": states}))


def outcome(action: Callable[[], object]) -> str:
    try:
        return str(action())
    except JaxgptError as error:
        return f"{type(error).__name__} {error}"


def other_folder(number: int, workspace: Path) -> None:
    folder = RunFolder(workspace / f"host-{number}")
    folder.path.mkdir()
    with distributed.main_first(), distributed.locked(folder):
        pass


def other_config(number: int, workspace: Path) -> None:
    own: list[dict[str, Any]] = [{"run.dir": "here"}, {"run.dir": "there", "run.save_every": 7}]
    distributed.check_same_config(tiny_config(workspace, own[number]))


def other_tokens(number: int, _: Path) -> None:
    distributed.check_same_tokens({"train_tokens": 1000 + number})


def damaged_checkpoint(_: int, __: Path) -> None:
    """Found by process 0, in the name of all."""

    def choose() -> None:
        raise DamagedCheckpointError("K003", "damaged")

    distributed.share(choose)


def bad_batch(number: int, _: Path) -> list[int]:
    def batches() -> Iterator[int]:
        yield 0
        if number == 1:
            raise DataError("D010", "token 70,000")
        yield 1

    return list(distributed.in_step(batches()))


MISTAKES = (other_folder, other_config, other_tokens, damaged_checkpoint, bad_batch)


def restored(config: Config) -> str:
    """A checksum of every byte of the newest state, restored in the layout of `config`."""
    state = saved_state(config)
    gathered = distributed.local_copy(state, make_mesh(config.mesh, config.data.micro_batch))
    return hashlib.sha256(b"".join(leaf_bytes(gathered).values())).hexdigest()
