"""Runs of several processes on this machine: same losses as one process, and what a fault in one of them does."""

import json
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jaxgpt.runs.checkpoint_files import find_damage, steps_in
from jaxgpt.runs.log import read_log
from tests.helpers.processes import FAST, Process, finish, free_port, restored, start_code, wait_until
from tests.helpers.training import records, run_folder, start_training, tiny_config, write_tokens

STEPS = 30
# A run that a test ends.
CONFIG: dict[str, Any] = {
    "model.n_layer": 1,
    "model.dtype": "float32",
    "run.steps": 100_000,
    "run.eval_every": 50_000,
    "run.save_every": STEPS,
}
RUNS = {1: "of1", 2: "of2"}  # by the number of processes


def start(workspace: Path, count: int, changes: dict[str, Any]) -> list[Process]:
    """The run as `count` processes of one device each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # halves the time of compilation
        if count == 1:
            return [start_training(workspace, changes)]
        options = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count)]
        return [start_training(workspace, changes, *options, "--process-id", str(number)) for number in range(count)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one and of two processes, which a signal to one of these has ended after at least `STEPS` steps."""
    workspace = tmp_path_factory.mktemp("processes")
    write_tokens(workspace / "data")
    runs = {name: start(workspace, count, CONFIG | {"run.name": name}) for count, name in RUNS.items()}
    for name, processes in runs.items():
        folder = run_folder(workspace, name)
        wait_until(lambda folder=folder: steps_in(folder.checkpoints), processes)
        processes[-1].send_signal(signal.SIGTERM)
    for processes in runs.values():
        statuses = finish(processes)
        assert [status for status, _ in statuses] == [75] * len(processes), statuses
    return workspace


def test_a_signal_to_one_process_saves_all_at_the_same_step(workspace: Path) -> None:
    folder = run_folder(workspace, "of2")
    last = steps_in(folder.checkpoints)[-1]
    assert last == len(records(folder))
    assert find_damage(folder.checkpoints / str(last)) == ""


def test_two_processes_have_the_losses_of_one(workspace: Path) -> None:
    one, two = (records(run_folder(workspace, name))[:STEPS] for name in RUNS.values())
    assert len(one) == len(two) == STEPS
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], abs=1e-5)


def test_process_0_alone_writes_the_folder(workspace: Path) -> None:
    kinds = [record["kind"] for record in read_log(run_folder(workspace, "of2").log_file)]
    assert kinds.count("start") == kinds.count("stop") == 1
    assert (run_folder(workspace, "of2").path / "plan.json").is_file()


def test_a_refused_config_ends_every_process_with_its_status(workspace: Path) -> None:
    statuses = finish(start(workspace, 2, CONFIG | {"run.name": "of2", "optim.learning_rate": 0.5}))
    assert [status for status, _ in statuses] == [4, 4], statuses
    assert all("error[K001]" in text for _, text in statuses)


class Met(NamedTuple):
    """What two processes that met came to, in each of them."""

    outcomes: list[list[str]]
    states: list[dict[str, str]]


@pytest.fixture(scope="module")
def met(workspace: Path) -> Met:
    layouts = {f"{name} {fsdp}": layout(name, fsdp) for name in RUNS.values() for fsdp in (1, 2)}
    statuses = finish(start_code(f"meet(launch, {str(workspace)!r}, {layouts})", workspace))
    assert [status for status, _ in statuses] == [0, 0], statuses
    met = [json.loads((workspace / f"met-{number}.json").read_text()) for number in range(2)]
    return Met([values["outcomes"] for values in met], [values["states"] for values in met])


def layout(name: str, fsdp: int) -> dict[str, Any]:
    return CONFIG | {"run.name": name, "mesh.fsdp": fsdp}


def test_a_mistake_of_one_process_is_raised_in_all(met: Met) -> None:
    assert met.outcomes[0] == met.outcomes[1]
    folder, config, tokens, checkpoint, batch = met.outcomes[0]
    assert folder.startswith("StorageError error[S020]: process 1 does not see the '")
    assert "error[K001]: process 1 has another config than process 0: run.save_every 4 → 7\n" in config
    assert "error[K002]: process 1 has other tokens than process 0" in tokens
    assert checkpoint == "DamagedCheckpointError error[K003]: damaged"
    assert batch == "DataError error[D010]: token 70,000"


@pytest.mark.parametrize("name", RUNS.values())
def test_a_checkpoint_is_the_same_in_one_process_and_in_two(workspace: Path, met: Met, name: str) -> None:
    here = restored(tiny_config(workspace, layout(name, 1)))
    for states in met.states:
        assert states[f"{name} 1"] == states[f"{name} 2"] == here


def test_a_killed_process_ends_a_resumed_run(workspace: Path) -> None:
    folder = run_folder(workspace, "of2")
    steps = len(records(folder))
    processes = start(workspace, 2, CONFIG | {"run.name": "of2"})
    wait_until(lambda: len(records(folder)) > steps, processes)
    processes[1].kill()
    began = time.monotonic()
    (status, text), _ = finish(processes)
    assert status == 6, text
    assert "error[H002]: process 1 is dead or does not answer" in text
    assert time.monotonic() - began < 50
    assert find_damage(folder.checkpoints / str(steps)) == ""


class Fault(NamedTuple):
    """What happens to a process of two, and the end of both: the status, and a part of stderr."""

    process: int
    signal: signal.Signals | None  # None: an error of JAX
    ends: tuple[tuple[int, str], tuple[int, str]]


DEAD = "error[H002]: process {} is dead or does not answer"
ABORTED = "Terminating process because the JAX distributed service detected fatal errors"
MEMORY = "RESOURCE_EXHAUSTED: Out of memory"
FAULTS = {
    "killed": Fault(1, signal.SIGKILL, ((6, DEAD.format(1)), (-9, ""))),
    "killed 0": Fault(0, signal.SIGKILL, ((-9, ""), (-6, ABORTED))),
    "stopped": Fault(1, signal.SIGSTOP, ((6, DEAD.format(1)), (-6, ABORTED))),
    "stopped 0": Fault(0, signal.SIGSTOP, ((6, DEAD.format(1)), (6, DEAD.format(0)))),
    "error": Fault(1, None, ((1, f"process 1: {MEMORY}"), (1, MEMORY))),
    "error 0": Fault(0, None, ((1, MEMORY), (1, f"process 0: {MEMORY}"))),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """The end of each of two processes after each of the faults, which happen at the same time.

    A process that was stopped continues when the other one has ended.
    """
    folders = {name: tmp_path_factory.mktemp("fault") for name in FAULTS}
    started = {}
    for name, fault in FAULTS.items():
        failing = fault.process if fault.signal is None else None
        started[name] = start_code(f"add_forever(launch, {failing})", folders[name])
    for name, processes in started.items():
        alive = processes if FAULTS[name].signal else []
        wait_until(lambda name=name: len(list(folders[name].glob("ready-*"))) == 2, alive)
    for name, fault in FAULTS.items():
        if fault.signal is not None:
            started[name][fault.process].send_signal(fault.signal)
    for name, processes in started.items():
        if FAULTS[name].signal == signal.SIGSTOP:
            processes[1 - FAULTS[name].process].wait(4 * FAST["SILENCE_SECONDS"])
            processes[FAULTS[name].process].send_signal(signal.SIGCONT)
    return {name: finish(processes) for name, processes in started.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_one_process_ends_the_other(ends: dict[str, list[tuple[int, str]]], name: str) -> None:
    for (status, text), (expected, part) in zip(ends[name], FAULTS[name].ends, strict=True):
        assert status == expected, text
        assert part in text
