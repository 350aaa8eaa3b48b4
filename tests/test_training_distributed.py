"""How processes find each other, and what they tell each other; tests/faults/test_processes.py starts some."""

import re
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.config import Run
from jaxgpt.errors import ConfigError, DataError, JaxgptError, NonFiniteError
from jaxgpt.training import distributed
from jaxgpt.training.checkpoint import DamagedCheckpointError
from jaxgpt.training.profiler import Profiler

PACKAGE = Path(jaxgpt.__file__).parent
PICKLES = r"^\s*(import|from) (pickle|_pickle|dill|cloudpickle|joblib|shelve|marshal)\b|allow_pickle=True"
PRIVATE_JAX = r"^\s*(import|from) jax(lib)?\._"

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


@pytest.mark.parametrize("vote", [0, 75, "step", [1.5, None], {"a": {"b": [True]}}, float("inf")])
def test_a_vote_arrives_as_it_was(vote: object) -> None:
    assert distributed.decode(distributed.encode(vote)) == vote


@pytest.mark.parametrize(
    "error",
    [
        DataError("D010", "token 70,000 → 'ünïcode'\n", "help"),
        DamagedCheckpointError("K003", "damaged"),
        NonFiniteError("N001", "nan", "lower", step=12),
    ],
)
def test_an_error_arrives_with_its_class_and_attributes(error: JaxgptError) -> None:
    arrived = distributed.decode(distributed.encode(error))
    assert type(arrived) is type(error)
    assert vars(arrived) == vars(error)


def test_an_error_of_an_unknown_class_keeps_its_code() -> None:
    class LocalError(DataError):
        pass

    text = distributed.encode(LocalError("D010", "message")).replace("LocalError", "UnknownError")
    arrived = distributed.decode(text)
    assert (arrived.code, arrived.message, arrived.exit_status) == ("D010", "message", 3)


@pytest.mark.parametrize("is_main", [True, False])
def test_process_0_alone_writes_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_main: bool) -> None:
    monkeypatch.setattr(distributed, "is_main", lambda: is_main)
    with Profiler(Run(profile="3:5"), tmp_path, print) as profiler:
        profiler.before_step(3)
        profiler.after_step(5, None)
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == is_main


def modules_with(pattern: str) -> list[str]:
    """The modules of jaxgpt in which a line has `pattern`."""
    files = [file for file in PACKAGE.rglob("*.py") if re.search(pattern, file.read_text("utf-8"), re.MULTILINE)]
    return sorted(str(file.relative_to(PACKAGE)) for file in files)


def test_only_the_restricted_reader_of_nanogpt_unpickles() -> None:
    assert modules_with(PICKLES) == ["convert/nanogpt.py"]


def test_private_jax_is_imported_in_one_place() -> None:
    assert modules_with(PRIVATE_JAX) == ["training/distributed.py"]
