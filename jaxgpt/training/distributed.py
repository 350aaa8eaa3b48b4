"""Several processes ("hosts") that train one run: they find each other, agree, and end together.

Process 0 holds the run's lock and writes its folder; the others print nothing but errors. All processes call the same
functions in the same order, since each of them waits for the others. In a run of one process nothing here does
anything. What they tell each other goes as JSON through the key-value store of JAX's coordination service, which runs
in process 0.
"""

import atexit
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, NamedTuple, TypeVar

import jax

from jaxgpt.config import Config
from jaxgpt.errors import (
    EXIT_STATUS,
    INTERRUPTED,
    CheckpointError,
    ConfigError,
    HangError,
    JaxgptError,
    Stopped,
    StorageError,
)
from jaxgpt.runs.folder import RunFolder, changed_fields
from jaxgpt.utils.signals import end_process, signal_handler

T = TypeVar("T")

CONNECT_SECONDS = 300  # in which every process has to start
PATIENCE_MS = 7 * 86_400_000  # at a meeting: process 0 may prepare data first; who died is noticed by `Peers`
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 30.0  # without a beat, after which a process counts as dead or stuck
SUSPICION_SECONDS = 10.0  # the same, once a step has failed on the devices: a dead process may be the reason
GRACE_SECONDS = 20.0  # in which a process ends by itself after another has failed: it may be writing its report
PARTING_SECONDS = 10.0
LAST_SECONDS = 3.0  # by which process 0 outlasts the others: JAX aborts them when its coordination service is gone
SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
FIELDS_OF_A_HOST = {"run.dir", "data.path"}  # where a host sees the folder and the tokens, which are compared
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
    return jax.distributed.is_initialized()


def number() -> int:
    """The number of this process, from 0."""
    return jax.process_index() if is_several() else 0


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
            if isinstance(error, Exception) and not isinstance(error, JaxgptError | Stopped):
                peers.suspect()  # a dead process breaks a collective, by errors of many types, before it is missed
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


def _store() -> Any:
    """The client of the key-value store.

    JAX exports `jax.distributed.initialize`, but nothing that reads or writes the store: `multihost_utils` communicates
    by the devices, where an agreement would wait for the steps that they compute. Orbax takes the client from here too.
    """
    from jax._src import distributed

    return distributed.global_state.client


def agree(vote: T | None = None) -> T | None:
    """The vote of the first process that has one; returns when every process has called this.

    A vote is a `JaxgptError` or what JSON can express.
    """
    if not is_several():
        return vote
    store = _store()
    meeting = f"agree/{next(_numbers)}/"
    if vote is not None:
        store.key_value_set(f"{meeting}{number():08}", encode(vote))
    try:
        store.wait_at_barrier("agree", PATIENCE_MS)
        votes = dict(store.key_value_dir_get(meeting))
    except RuntimeError as error:
        raise HangError("H002", f"the other processes cannot be reached: {_first_line(error)}", HELP) from error
    agreed: T | None = decode(votes[min(votes)]) if votes else None
    return agreed


def encode(vote: Any) -> str:
    """`vote` as JSON: an error by its class and attributes, anything else as it is."""
    if isinstance(vote, JaxgptError):
        return json.dumps({"error": type(vote).__name__, "attributes": vars(vote)})
    return json.dumps({"value": vote})


def decode(text: str) -> Any:
    """What `encode` has made into `text`."""
    message = json.loads(text)
    if "error" not in message:
        return message["value"]
    return _error_classes().get(message["error"], JaxgptError)(**message["attributes"])


def _error_classes() -> dict[str, type[JaxgptError]]:
    """Every error class that is loaded, by its name."""
    classes = [JaxgptError]
    for known in classes:
        classes += known.__subclasses__()
    return {known.__name__: known for known in classes}


def share(compute: Callable[[], T]) -> T:
    """What `compute` returns in process 0, which alone calls it, or raises there. JSON has to express the result."""
    if not is_several():
        return compute()
    vote: list[T] | JaxgptError | None = None
    if is_main():
        try:
            vote = [compute()]
        except JaxgptError as error:
            vote = error
    agreed: Any = agree(vote)
    if isinstance(agreed, JaxgptError):
        raise agreed
    result: T = agreed[0]
    return result


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
    if is_main():
        with folder.lock():
            if is_several():
                _store().key_value_set("lock", folder.lock_file.read_text(encoding="utf-8"))
            yield
        return
    holder = _store().blocking_key_value_get("lock", PATIENCE_MS)
    try:
        is_shared = folder.lock_file.read_text(encoding="utf-8") == holder
    except OSError:
        is_shared = False
    if not is_shared:
        message = f"process {number()} does not see the '{folder.path}' of process 0: the folder is not shared"
        raise StorageError("S020", message, "--run.dir on a file system that all hosts share")
    yield


def check_same_config(config: Config) -> None:
    """Raises `CheckpointError` K001, in every process, if one has another config than process 0."""
    expected = Config.from_dict(share(config.to_dict))
    changed = changed_fields(expected, config, FIELDS_OF_A_HOST)
    message = f"process {number()} has another config than process 0: {', '.join(changed)}"
    _raise(agree(CheckpointError("K001", message, "start every process with the same command") if changed else None))


def check_same_tokens(tokens: dict[str, Any]) -> None:
    """Raises `CheckpointError` K002, in every process, if one has other tokens than process 0."""
    is_same = tokens == share(lambda: tokens)
    message = f"process {number()} has other tokens than process 0"
    error = CheckpointError("K002", message, "every host needs the same data in data.path")
    _raise(agree(None if is_same else error))


def local_copy(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """The arrays of `tree` on one device of this process, for what is computed without the others."""
    if not is_several():
        return tree
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    gathered = jax.jit(lambda arrays: arrays, out_shardings=replicated)(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), gathered)


class Ending(NamedTuple):
    """When this process ends because of another one, and with which status and text."""

    time: float
    status: int
    text: str


class Peers:
    """Ends this process when another one has failed, is dead or is stuck.

    One thread sends a beat every second and reads those of the others and the first failure; a second one notices when
    nothing new arrives, also where the first waits for a stopped process 0.
    """

    def __init__(self) -> None:
        self._store = _store()
        self._closed = threading.Event()
        self._beats: dict[str, str] = {}
        now = time.monotonic()
        self._heard = dict.fromkeys(range(jax.process_count()), now)
        self._silence = SILENCE_SECONDS
        self._ending: Ending | None = None
        for target in (self._exchange, self._watch):
            threading.Thread(target=target, name="peers", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def suspect(self) -> None:
        """Ends this process if another one has been silent for `SUSPICION_SECONDS`; waits until it would be."""
        self._silence = SUSPICION_SECONDS
        time.sleep(SUSPICION_SECONDS + 3 * BEAT_SECONDS)

    def part(self, error: BaseException) -> None:
        """Tells the others of `error`, waits until they have ended as well, and makes this process end after that."""
        self.close()
        status = exit_status(error)
        self._tell(status, f"process {number()}: {error}")
        self._meet_last(status)
        atexit.register(_exit_at_once, status)

    def _tell(self, status: int, text: str) -> None:
        with suppress(Exception):  # another one may have told its own failure before
            self._store.key_value_set("failure/first", f"{status} {text}")

    def _meet_last(self, status: int) -> None:
        """Waits for the others, unless one of them is dead; process 0 ends last, since it has the service."""
        if status != EXIT_STATUS["H"]:
            with suppress(Exception):
                self._store.wait_at_barrier("failed", int(1000 * (GRACE_SECONDS + PARTING_SECONDS)))
        if is_main():
            time.sleep(LAST_SECONDS)

    def _exchange(self) -> None:
        own = f"beat/{number()}"
        for beat in itertools.count():
            if self._closed.wait(BEAT_SECONDS):
                return
            with suppress(RuntimeError):
                self._store.key_value_set(own, str(beat), allow_overwrite=True)
                self._read(dict(self._store.key_value_dir_get("beat/")))
                if self._ending is None:
                    self._note_failure()

    def _note_failure(self) -> None:
        """After the failure of another process: this one ends as well, at once if a process is dead."""
        for _, failure in self._store.key_value_dir_get("failure/"):
            status, _, text = failure.partition(" ")
            grace = 0.0 if int(status) == EXIT_STATUS["H"] else GRACE_SECONDS
            self._ending = Ending(time.monotonic() + grace, int(status), text)

    def _read(self, beats: dict[str, str]) -> None:
        now = time.monotonic()
        changed = [name for name, beat in beats.items() if self._beats.get(name) != beat]
        self._heard |= {int(name.removeprefix("beat/")): now for name in changed}
        self._beats |= beats

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - before > 5 * BEAT_SECONDS:  # this process was stopped itself
                self._heard = dict.fromkeys(self._heard, now)
            before = now
            if self._ending and now > self._ending.time:
                self._end(self._ending.status, self._ending.text)
            silent = [process for process, heard in self._heard.items() if now - heard > self._silence]
            if silent:
                self._end_after_silence(min(silent))  # a process 0 that does not answer silences all others

    def _end_after_silence(self, process: int) -> None:
        error = HangError("H002", f"process {process} is dead or does not answer", HELP)
        if process != 0:
            self._tell(error.exit_status, str(error))
        self._end(error.exit_status, str(error))

    def _end(self, status: int, text: str) -> None:
        self._meet_last(status)
        end_process(text, status, lambda: None)


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
