"""Several processes ("hosts") that train one run: they find each other, agree, and end together.

Process 0 holds the run's lock and writes its folder; the others print nothing but errors. All processes call the same
functions in the same order, since each of them waits for the others. In a run of one process nothing here does
anything. What they tell each other goes through the key-value store of JAX's coordination service, in process 0.
"""

import atexit
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, NamedTuple, TypeVar

import jax
from jax._src import distributed

from jaxgpt.errors import INTERRUPTED, CheckpointError, ConfigError, HangError, JaxgptError, Stopped, StorageError
from jaxgpt.runs.folder import RunFolder
from jaxgpt.utils.signals import end_process, signal_handler

T = TypeVar("T")

CONNECT_SECONDS = 300  # in which every process has to start
PATIENCE_MS = 7 * 86_400_000  # at a meeting: process 0 may prepare data first; who died is noticed by `Peers`
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 30.0  # without a beat, after which a process counts as dead or stuck
GRACE_SECONDS = 20.0  # in which a process ends by itself after another has failed: it may be writing its report
PARTING_SECONDS = 10.0
SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
HELP = "the same command on every host resumes from the last checkpoint; the log of that process says more"
_numbers = itertools.count()  # of meetings: the same in every process


class Launch(NamedTuple):
    """How this process joins the others: None is for JAX's cluster detection to find, `devices` () is all of them."""

    coordinator: str | None = None
    processes: int | None = None
    number: int | None = None
    devices: tuple[int, ...] | None = ()


def find_launch(
    coordinator: str | None, processes: int | None, number: int | None, environment: Mapping[str, str]
) -> Launch | None:
    """How to join the other processes, by the options or by the environment; None for a run of one process.

    Raises `ConfigError` C073 if only some of the options are given, or they contradict each other.
    """
    given = (coordinator, processes, number)
    if given != (None, None, None):
        if coordinator is None or processes is None or number is None or not 0 <= number < processes:
            message = f"--coordinator {coordinator} --num-processes {processes} --process-id {number}"
            raise ConfigError("C073", message, "give all three; --process-id is from 0 to --num-processes - 1")
        return Launch(coordinator, processes, number, None) if processes > 1 else None
    for size, local_number, local_size in (SLURM, OPEN_MPI):
        if int(environment.get(size, 1)) > 1:
            local = _tasks_here(environment.get(local_size, ""), int(environment.get("SLURM_NODEID", 0)))
            return Launch(devices=_own_devices(environment, local, int(environment.get(local_number, 0))))
    is_indexed_job = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    return Launch() if is_indexed_job and _has_kubernetes() else None


def _tasks_here(text: str, node: int) -> int:
    """The number of tasks on node number `node` from Slurm's "4(x2),1"; Open MPI has a plain number."""
    counts: list[int] = []
    for part in filter(None, text.split(",")):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts[min(node, len(counts) - 1)] if counts else 1


def _own_devices(environment: Mapping[str, str], tasks: int, number: int) -> tuple[int, ...] | None:
    """The GPUs of task `number` among the `tasks` of its node: its equal share of those that it sees; () for all.

    JAX itself would give one GPU to every task, also where a single task is to use all GPUs of its node.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = len(visible.split(",")) if visible else int(environment.get("SLURM_GPUS_ON_NODE") or 0)
    if tasks == 1 or gpus == 1:
        return ()
    if gpus % tasks:
        return None
    share = gpus // tasks
    return tuple(range(number * share, (number + 1) * share))


def _has_kubernetes() -> bool:
    from importlib.util import find_spec

    return find_spec("kubernetes") is not None


def is_several() -> bool:
    """Whether this process trains together with others."""
    return distributed.global_state.client is not None


def number() -> int:
    """The number of this process, from 0."""
    return int(distributed.global_state.process_id)


def is_main() -> bool:
    """Whether this process writes the run's folder and shows the run: process 0, or the only one."""
    return number() == 0


@contextmanager
def joined(launch: Launch | None) -> Iterator[None]:
    """Inside the block this process trains with those of `launch`; an error of any process ends all of them."""
    if launch is None:
        yield
        return
    _connect(launch)
    peers = Peers()
    with ExitStack() as stack:
        if not is_main():
            null_device = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(null_device))
            stack.enter_context(redirect_stderr(null_device))
        try:
            yield
            agree()  # process 0 writes its report last, and has the service that the others need
        except BaseException as error:
            if isinstance(error, jax.errors.JaxRuntimeError):
                time.sleep(SILENCE_SECONDS + 5 * BEAT_SECONDS)  # a dead process breaks a collective before it is missed
            peers.part(error)
            raise
        peers.close()
        jax.distributed.shutdown()


def _connect(launch: Launch) -> None:
    """Joins the other processes. Raises `HangError` H002 if they cannot be reached."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from our handlers
    by_hand = launch.coordinator is not None
    try:
        with signal_handler(signal.SIG_DFL, signal.SIGINT):  # type: ignore[arg-type]  # it waits outside Python
            jax.distributed.initialize(
                launch.coordinator,
                launch.processes,
                launch.number,
                None if launch.devices is None else list(launch.devices),
                cluster_detection_method="deactivate" if by_hand else None,
                initialization_timeout=CONNECT_SECONDS,
                heartbeat_timeout_seconds=86_400,  # JAX would abort the process; `Peers` ends it
                shutdown_timeout_seconds=int(PARTING_SECONDS),
            )
            jax.devices()  # all processes have to ask at the same time: here they exchange their devices
    except (RuntimeError, ValueError) as error:
        address = launch.coordinator or "the coordinator of the cluster"
        message = f"this process cannot join the others at {address}: {str(error).splitlines()[0][:200]}"
        raise HangError("H002", message, "start every process of the run within five minutes") from error


def agree(vote: T | None = None) -> T | None:
    """The vote of the first process that has one; returns when every process has called this."""
    if not is_several():
        return vote
    client: Any = distributed.global_state.client
    meeting = f"agree/{next(_numbers)}/"
    if vote is not None:
        client.key_value_set_bytes(f"{meeting}{number():08}", pickle.dumps(vote))
    try:
        client.wait_at_barrier("agree", PATIENCE_MS)
        votes = dict(client.key_value_dir_get_bytes(meeting))
    except RuntimeError as error:
        raise HangError("H002", f"the other processes cannot be reached: {_first_line(error)}", HELP) from error
    return pickle.loads(votes[min(votes)]) if votes else None


def share(compute: Callable[[], T]) -> T:
    """What `compute` returns in process 0, which alone calls it, or raises there."""
    if not is_several():
        return compute()
    outcome: tuple[T | None, JaxgptError | None] | None = None
    if is_main():
        try:
            outcome = compute(), None
        except JaxgptError as error:
            outcome = None, error
    agreed: Any = agree(outcome)
    result, failure = agreed
    if failure is not None:
        raise failure
    value: T = result
    return value


@contextmanager
def main_first() -> Iterator[None]:
    """Runs the block in process 0, then in the others. A `JaxgptError` in one of them is raised in all.

    No process may wait for another inside the block.
    """
    if not is_main():
        _raise(agree())
    failure = None
    try:
        yield
    except JaxgptError as error:
        failure = error
    if is_main() and is_several():
        _raise(agree(failure))
    _raise(agree(failure))


def in_step(items: Iterable[T]) -> Iterator[T]:
    """The items, of which every process has as many. An error at the next one in one process is raised in all."""
    iterator = iter(items)
    while True:
        item = failure = None
        try:
            item = next(iterator, None)
        except JaxgptError as error:
            failure = error
        _raise(agree(failure))
        if item is None:
            return
        yield item


def _raise(error: JaxgptError | None) -> None:
    if error is not None:
        raise error


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Locks the run's folder, in process 0; the others check that it is the same folder. Call it in `main_first`.

    Raises `StorageError` S001 or S002, and S020 if a process does not see what process 0 has written.
    """
    client: Any = distributed.global_state.client
    if is_main():
        with folder.lock():
            if is_several():
                client.key_value_set("lock", folder.lock_file.read_text(encoding="utf-8"))
            yield
        return
    holder = client.blocking_key_value_get("lock", PATIENCE_MS)
    try:
        is_shared = folder.lock_file.read_text(encoding="utf-8") == holder
    except OSError:
        is_shared = False
    if not is_shared:
        message = f"process {number()} does not see the '{folder.path}' of process 0: the folder is not shared"
        raise StorageError("S020", message, "--run.dir on a file system that all hosts share")
    yield


def check_same_tokens(tokens: dict[str, Any]) -> None:
    """Raises `CheckpointError` K002, in every process, if one has other tokens than process 0."""
    expected = share(lambda: tokens)
    message = f"process {number()} has other tokens than process 0"
    error = CheckpointError("K002", message, "every host needs the same data in data.path")
    if failure := agree(error if tokens != expected else None):
        raise failure


def local_copy(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """The arrays of `tree` on one device of this process, for what is computed without the others."""
    if not is_several():
        return tree
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    gathered = jax.jit(lambda arrays: arrays, out_shardings=replicated)(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), gathered)


class Peers:
    """Ends this process when another one has failed, is dead or is stuck.

    One thread sends a beat every second and reads those of the others and the first failure; a second one notices when
    nothing new arrives, also where the first waits for a stopped process 0.
    """

    def __init__(self) -> None:
        self._client: Any = distributed.global_state.client
        self._closed = threading.Event()
        self._beats: dict[str, str] = {}
        now = time.monotonic()
        count = int(distributed.global_state.num_processes)
        self._heard = {f"beat/{process}": now for process in range(count)}
        self._failed_at: float | None = None
        for target in (self._exchange, self._watch):
            threading.Thread(target=target, name="peers", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def part(self, error: BaseException) -> None:
        """Tells the others of `error`, waits until they have ended as well, and makes this process end after that."""
        self.close()
        status = exit_status(error)
        with suppress(Exception):
            text = f"process {number()}: {error}"
            self._client.key_value_set("failure", f"{status} {text}")
        self._meet_last()
        atexit.register(_exit_at_once, status)

    def _meet_last(self) -> None:
        with suppress(Exception):
            self._client.wait_at_barrier("failed", int(1000 * (GRACE_SECONDS + PARTING_SECONDS)))
        if is_main():
            time.sleep(1.0)  # the others lose the service, and are aborted, when this process ends

    def _exchange(self) -> None:
        own = f"beat/{number()}"
        for beat in itertools.count():
            if self._closed.wait(BEAT_SECONDS):
                return
            with suppress(RuntimeError):
                self._client.key_value_set(own, str(beat), allow_overwrite=True)
                self._read(dict(self._client.key_value_dir_get("beat/")))
                if self._client.key_value_dir_get("failure") and self._failed_at is None:
                    self._failed_at = time.monotonic()

    def _read(self, beats: dict[str, str]) -> None:
        now = time.monotonic()
        changed = [name for name, beat in beats.items() if self._beats.get(name) != beat]
        self._heard |= dict.fromkeys(changed, now)
        self._beats |= beats

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - before > 5 * BEAT_SECONDS:  # this process was stopped itself
                self._heard = dict.fromkeys(self._heard, now)
            before = now
            if self._failed_at is not None and now - self._failed_at > GRACE_SECONDS:
                self._end_after_failure()
            silent = [name for name, heard in self._heard.items() if now - heard > SILENCE_SECONDS]
            if silent:
                # A process 0 that does not answer silences all others.
                name = min(silent, key=lambda name: int(name.split("/")[1]))
                self._end(HangError("H002", f"process {name[5:]} is dead or does not answer", HELP))

    def _end_after_failure(self) -> None:
        status, _, text = self._client.blocking_key_value_get("failure", 1000).partition(" ")
        self._meet_last()
        end_process(text, int(status), lambda: None)

    def _end(self, error: HangError) -> None:
        with suppress(Exception):
            self._client.key_value_set("failure", f"{error.exit_status} {error}")
        if is_main():
            time.sleep(2 * BEAT_SECONDS)  # the others notice the same by themselves before they lose the service
        end_process(str(error), error.exit_status, lambda: None)


def exit_status(error: BaseException) -> int:
    """The status with which `errors.run` ends a command after `error`."""
    if isinstance(error, JaxgptError):
        return error.exit_status
    if isinstance(error, Stopped):
        return error.status
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _exit_at_once(status: int) -> None:
    """Ends without JAX's own farewell, in which it would wait for processes that are gone."""
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(status)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200]
