"""The services that a run can send its metrics to. A new one is a class here and its line in `BACKENDS`.

A backend is opened, used and closed in the thread of its `Tracker`, which turns its errors into one warning. Each has
an offline mode: TensorBoard and Trackio write to this machine, W&B does with `WANDB_MODE=offline`, MLflow with the
`MLFLOW_TRACKING_URI` of a local database.
"""

import hashlib
import os
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

from jaxgpt.config import Config
from jaxgpt.errors import ConfigError
from jaxgpt.runs.folder import RunFolder

PROJECT = "jaxgpt"  # the project or experiment that all runs share
MAX_MLFLOW_PARAM = 500  # characters of a parameter's value


class Entry(NamedTuple):
    """Numbers and texts of one step, by name; `time` in seconds since 1970."""

    step: int
    time: float
    values: dict[str, float | str]

    @property
    def numbers(self) -> dict[str, float]:
        return {name: value for name, value in self.values.items() if not isinstance(value, str)}

    @property
    def texts(self) -> dict[str, str]:
        return {name: value for name, value in self.values.items() if isinstance(value, str)}


class TrackedRun(NamedTuple):
    """What a backend is told of the run."""

    folder: RunFolder
    config: Config

    @property
    def id(self) -> str:
        """A name that stays the same when the run is resumed, and that no other run has: from the start of its log."""
        with self.folder.log_file.open("rb") as file:
            start = file.readline()
        return f"{self.config.run.name}-{hashlib.sha256(start).hexdigest()[:8]}"


class Backend(Protocol):
    """Where the entries of one run go. Every method may raise any error."""

    def write(self, entry: Entry) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """A new event file in the run's folder `tensorboard`."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboardX.record_writer import RecordWriter

        folder = run.folder.tensorboard
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(str(folder / name))
        self._write_event(wall_time=time.time(), file_version="brain.Event:2")

    def write(self, entry: Entry) -> None:
        from tensorboardX.summary import scalar, text

        for name, value in entry.values.items():
            summary = text(name, value) if isinstance(value, str) else scalar(name, value)
            self._write_event(wall_time=entry.time, step=entry.step, summary=summary)

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write_event(self, **values: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._records.write(Event(**values).SerializeToString())


class Wandb:
    """A run of Weights & Biases. The metric `step` is its x axis: W&B's own steps cannot go back, as a rewind does."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        settings = wandb.setup().settings
        if settings.mode in ("online", "shared") and not settings.api_key:  # it would ask on the terminal
            raise RuntimeError("no API key: run wandb login, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.config.run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder.path),
            config=run.config.to_dict(),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, entry: Entry) -> None:
        self._run.log({"step": entry.step, **entry.values})

    def flush(self) -> None:
        """W&B writes at once."""

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio: a local database, or a Space on the hub if `TRACKIO_SPACE_ID` is set."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._run = trackio.init(project=PROJECT, name=run.id, resume="allow", config=run.config.to_dict())

    def write(self, entry: Entry) -> None:
        self._run.log(dict(entry.values), step=entry.step)

    def flush(self) -> None:
        """Trackio writes by itself, every second."""

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment `jaxgpt`, where `MLFLOW_TRACKING_URI` says; without it, at MLflow's default."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        earlier = self._client.search_runs([experiment_id], f"tags.jaxgpt_id = '{run.id}'")
        if earlier:
            self._run_id = earlier[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {"jaxgpt_id": run.id}
            created = self._client.create_run(experiment_id, run_name=run.config.run.name, tags=tags)
            self._run_id = created.info.run_id
            self._log_config(run.config)

    def _log_config(self, config: Config) -> None:
        from mlflow.entities import Param

        sections = config.to_dict().items()
        values = {f"{section}.{name}": value for section, fields in sections for name, value in fields.items()}
        params = [Param(name, str(value)[:MAX_MLFLOW_PARAM]) for name, value in values.items()]
        self._client.log_batch(self._run_id, params=params)

    def write(self, entry: Entry) -> None:
        from mlflow.entities import Metric

        milliseconds = int(1000 * entry.time)
        metrics = [Metric(name, value, milliseconds, entry.step) for name, value in entry.numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        for name, text in entry.texts.items():
            self._client.log_text(self._run_id, text, f"{name}/{entry.step}.txt")

    def flush(self) -> None:
        """MLflow writes at once."""

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


class BackendType(NamedTuple):
    """A tracker that `run.trackers` can name: its `title` in messages, and the package that it needs."""

    title: str
    module: str
    package: str
    open: Callable[[TrackedRun], Backend]

    def is_installed(self) -> bool:
        return find_spec(self.module) is not None


BACKENDS = {
    "tensorboard": BackendType("TensorBoard", "tensorboardX", "tensorboardX", TensorBoard),
    "wandb": BackendType("W&B", "wandb", "wandb", Wandb),
    "trackio": BackendType("Trackio", "trackio", "trackio", Trackio),
    "mlflow": BackendType("MLflow", "mlflow", "mlflow", MLflow),
}


def check_installed(config: Config) -> None:
    """Raises `ConfigError` C085 for a tracker of `run.trackers` whose package is not installed."""
    for name in config.run.trackers:
        backend = BACKENDS.get(name)  # None: "auto"
        if backend and not backend.is_installed():
            message = f"run.trackers has {name}, and {backend.package} is not installed"
            raise ConfigError("C085", message, f"pip install {backend.package}, or leave {name} out")
