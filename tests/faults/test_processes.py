"""Runs of several processes on this machine: same losses as one process, and what a fault in one of them does."""

import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.errors import ConfigError
from jaxgpt.runs.checkpoint_files import find_damage, steps_in
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import read_log
from jaxgpt.training import distributed
from tests.helpers.training import (
    leaf_bytes,
    records,
    run_folder,
    saved_state,
    start_training,
    tiny_config,
    write_tokens,
)

Process = subprocess.Popen[str]
CONFIG: dict[str, Any] = {"model.dtype": "float32", "run.steps": 30, "run.save_every": 10}
ENDLESS = CONFIG | {"run.steps": 100_000, "run.eval_every": 50_000, "run.save_every": 20, "optim.warmup_steps": 2}
SECONDS = 150


def start(workspace: Path, count: int, changes: dict[str, Any], devices: int = 1) -> list[Process]:
    """The run as `count` processes, each with so many simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", flags)
        if count == 1:
            return [start_training(workspace, changes)]
        place = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count)]
        return [start_training(workspace, changes, *place, "--process-id", str(number)) for number in range(count)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def finish(processes: list[Process]) -> list[tuple[int, str]]:
    """The exit status and the stderr of each process."""
    try:
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
        return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]
    finally:
        for process in processes:
            process.kill()


def wait_for_checkpoint(processes: list[Process], folder: RunFolder) -> None:
    deadline = time.monotonic() + SECONDS
    while not steps_in(folder.checkpoints):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.2)


def losses(folder: RunFolder) -> list[float]:
    return [record["loss"] for record in records(folder)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_tokens(folder / "data")
    for count in (1, 2):
        statuses = finish(start(folder, count, CONFIG | {"run.name": f"of{count}"}))
        assert [status for status, _ in statuses] == [0] * count, statuses
    return folder


def test_two_processes_have_the_losses_of_one(workspace: Path) -> None:
    one, two = losses(run_folder(workspace, "of1")), losses(run_folder(workspace, "of2"))
    assert len(one) == len(two) == 30
    assert two == pytest.approx(one, abs=1e-5)


def test_process_0_alone_writes_the_folder(workspace: Path) -> None:
    kinds = [record["kind"] for record in read_log(run_folder(workspace, "of2").log_file)]
    assert kinds.count("start") == kinds.count("stop") == 1
    assert (run_folder(workspace, "of2").path / "plan.json").is_file()


def test_a_checkpoint_of_two_processes_restores_on_one_and_on_four(workspace: Path) -> None:
    folder = run_folder(workspace, "of2")
    assert [find_damage(folder.checkpoints / str(step)) for step in steps_in(folder.checkpoints)].count("") >= 1
    config = tiny_config(workspace, CONFIG | {"run.name": "of2"})
    before = leaf_bytes(saved_state(config))  # restored by this process
    longer = CONFIG | {"run.name": "of4", "run.steps": 31, "data.micro_batch": 8, "data.accum": 1, "mesh.fsdp": 2}
    assert config.run.steps in steps_in(folder.checkpoints)
    fork = ["--fork", str(folder.path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
        place = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "4"]
        processes = [start_training(workspace, longer, *place, "--process-id", str(i), *fork) for i in range(4)]
    statuses = finish(processes)
    assert [status for status, _ in statuses] == [0] * 4, statuses
    patch_steps = records(run_folder(workspace, "of4"))
    assert [record["step"] for record in patch_steps] == [30]
    assert leaf_bytes(saved_state(config)) == before


def test_a_signal_to_one_process_saves_all_at_the_same_step(tmp_path: Path) -> None:
    write_tokens(tmp_path / "data")
    processes = start(tmp_path, 2, ENDLESS)
    folder = run_folder(tmp_path)
    wait_for_checkpoint(processes, folder)
    processes[1].send_signal(signal.SIGTERM)
    statuses = finish(processes)
    assert [status for status, _ in statuses] == [75, 75], statuses
    last = steps_in(folder.checkpoints)[-1]
    assert last == len({record["step"] for record in records(folder)})
    assert find_damage(folder.checkpoints / str(last)) == ""


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_stuck_process_ends_the_others(tmp_path: Path, fault: signal.Signals) -> None:
    write_tokens(tmp_path / "data")
    processes = start(tmp_path, 2, ENDLESS)
    folder = run_folder(tmp_path)
    wait_for_checkpoint(processes, folder)
    processes[1].send_signal(fault)
    began = time.monotonic()
    try:
        _, errors = processes[0].communicate(timeout=SECONDS)
    finally:
        processes[0].kill()
        processes[1].kill()
        processes[1].communicate()
    assert processes[0].returncode == 6, errors
    assert "error[H002]: process 1 is dead or does not answer" in errors
    assert time.monotonic() - began < 60
    assert any(find_damage(folder.checkpoints / str(step)) == "" for step in steps_in(folder.checkpoints))


def test_a_refused_config_ends_every_process_with_its_status(workspace: Path) -> None:
    changed = CONFIG | {"run.name": "of2", "optim.learning_rate": 0.5}
    statuses = finish(start(workspace, 2, changed))
    assert [status for status, _ in statuses] == [4, 4], statuses
    assert all("error[K001]" in errors for _, errors in statuses)


SLURM = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1"}
ALL, HALF = (), (4, 5, 6, 7)


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, ALL),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1", "SLURM_GPUS_ON_NODE": "8"}, HALF),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "3"}, ALL),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
    ],
)
def test_slurm_tasks_share_the_gpus_of_their_node(environment: dict[str, str], devices: tuple[int, ...]) -> None:
    launch = distributed.find_launch(None, None, None, environment)
    assert launch is not None
    assert launch.devices == devices


def test_one_process_joins_nobody() -> None:
    assert distributed.find_launch(None, None, None, {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert distributed.find_launch("a:1", 1, 0, {}) is None


def test_options_by_hand_come_together() -> None:
    with pytest.raises(ConfigError, match="C073"):
        distributed.find_launch("a:1", None, 0, {})
    with pytest.raises(ConfigError, match="C073"):
        distributed.find_launch("a:1", 2, 2, {})
