"""A run's folder on disk: whose it is, which config it was started with, and where its parts stand.

    config.json   the resolved config; what resume, sample and evaluate read
    tokenizer.json, data.json   the tokenizer, and what identifies the tokens that were read
    plan.json     what `budget` promised when the run was started
    log.jsonl  checkpoints/  tensorboard/
    report.html   the diagnosis at the end; backtests.jsonl   forecasts that were put to the test

One process at a time holds a folder, by an advisory lock that the system drops with the process.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgpt.config import Config
from jaxgpt.errors import CheckpointError, ConfigError, StorageError
from jaxgpt.utils.lock import LockedError, lock_file

if TYPE_CHECKING:
    from jaxgpt.data.tokenizer import Tokenizer  # the library behind it takes a third of a second to load

# Fields that may differ when a run is resumed: they change what is seen of the run, or where it runs, not its result.
FREE = {
    "data.path": "the tokens themselves are compared",
    "data.corpus": "only read by plans and forecasts",
    "data.unique_tokens": "only read by plans and forecasts",
    "data.sources": "only read when the data is prepared",
    "data.tokenizer": "only read when the data is prepared",
    "data.train_tokenizer": "only read when the data is prepared",
    "data.val_tokens": "only read when the data is prepared",
    "data.prefetch_buffers": "",
    "data.threads": "",
    "model.loss_chunk": "",
    "mesh.device": "",
    "mesh.data_parallel": "",
    "run.name": "",
    "run.dir": "",
    "run.log_every": "",
    "run.eval_every": "",
    "run.save_every": "",
    "run.keep_latest": "",
    "run.keep_best": "",
    "run.keep_every": "",
    "run.tensorboard": "",
    "run.early_stop": "what was trained until then is the same",
    "run.sample_prompt": "",
    "run.sample_tokens": "",
}


class RunFolder:
    """The folder `path` of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.data_file = path / "data.json"
        self.tokenizer_file = path / "tokenizer.json"
        self.log_file = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.report_file = path / "report.html"
        self.backtests_file = path / "backtests.jsonl"

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        return cls(Path(config.run.dir) / config.run.name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder and locks it for this process.

        Raises `StorageError` S001 if another process holds the lock, S002 if the folder cannot be written.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_file(self.path / ".lock"))
            except LockedError as error:
                what = f"'{self.path}' is in use by {error.holder}"
                raise StorageError("S001", what, "wait for it, or --run.name NEW") from error
            except OSError as error:
                raise self._unwritable(error.strerror or str(error)) from error
            yield

    def config(self) -> Config:
        """The config that the run was started with."""
        values = self._read(self.config_file)
        try:
            return Config.from_dict(values)
        except ConfigError as error:
            raise CheckpointError("K005", f"{self.config_file}: {error.message}", error.help) from error
        except (AttributeError, TypeError) as error:
            raise CheckpointError("K005", f"{self.config_file} holds no config: {error}") from error

    def check_place(self) -> None:
        """Raises `StorageError` S002 if the folder cannot be made or written; makes nothing."""
        above = next(place for place in (self.path.absolute(), *self.path.absolute().parents) if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            why = f"'{above}' is read-only" if above.is_dir() else f"'{above}' is a file"
            raise self._unwritable(why)

    def _unwritable(self, why: str) -> StorageError:
        return StorageError("S002", f"'{self.path}' cannot be written: {why}", "choose another --run.dir or --run.name")

    def check_config(self, config: Config) -> None:
        """Raises `CheckpointError` K001 if the run was started with another config."""
        if not self.config_file.exists():
            return
        changed = differences(self.config(), config)
        if changed:
            raise CheckpointError(
                "K001",
                f"'{self.path}' was started with another config: {', '.join(changed)}",
                f"a new name (--run.name NEW), or go on from its newest checkpoint: --run.name NEW --fork {self.path}",
            )

    def check_tokens(self, tokens: dict[str, Any]) -> None:
        """Raises `CheckpointError` K002 if the run was started on other tokens."""
        if not self.config_file.exists():
            return
        for name, old in self._read(self.data_file).items():
            if old != tokens.get(name) and name != "tokenizer":  # its sha256 counts: a name can be that of a folder
                raise CheckpointError(
                    "K002",
                    f"'{self.path}' was started on other data: {name} {old} → {tokens.get(name)}",
                    "give it its own data again (--data.path), or start a new run (--run.name NEW)",
                )

    def check_tokenizer(self, tokens: dict[str, Any]) -> None:
        """Raises `CheckpointError` K002 if the run's model has learned the ids of another tokenizer."""
        old = self._read(self.data_file)
        if old.get("tokenizer_sha256") != tokens["tokenizer_sha256"]:
            raise CheckpointError(
                "K002",
                f"'{self.path}' was started with another tokenizer: {_tokenizer(old)} → {_tokenizer(tokens)}",
                "prepare the data with the run's tokenizer.json",
            )

    def record(self, config: Config, tokens: dict[str, Any], tokenizer: "Tokenizer") -> None:
        """Writes the config, what identifies the tokens, and the tokenizer, each in one piece; the config last."""
        if not self.tokenizer_file.exists():
            temporary = self.tokenizer_file.with_name(".tokenizer.json.tmp")
            tokenizer.save(temporary)
            temporary.replace(self.tokenizer_file)
        write_whole(self.data_file, json.dumps(tokens, indent=2) + "\n")
        write_whole(self.config_file, json.dumps(config.to_dict(), indent=2) + "\n")

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError("K005", f"'{self.path}' is not a run folder: it has no {path.name}") from error
        except (OSError, ValueError) as error:
            raise CheckpointError("K005", f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError("K005", f"{path} holds no JSON object")
        return values


def differences(old: Config, new: Config) -> list[str]:
    """`section.field old → new` for each field whose change would make this another run."""
    before, after = old.to_dict(), new.to_dict()
    return [
        f"{section}.{name} {value} → {after[section][name]}"
        for section, values in before.items()
        for name, value in values.items()
        if value != after[section][name] and f"{section}.{name}" not in FREE
    ]


def _tokenizer(tokens: dict[str, Any]) -> str:
    return f"{tokens.get('tokenizer')} ({str(tokens.get('tokenizer_sha256'))[:12]})"


def write_whole(path: Path, text: str) -> None:
    """Replaces the file `path` by `text` at once: a reader or a crash sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def find(path: str, step: str = "latest") -> tuple[RunFolder, str]:
    """The run at `path` (its folder, its name under `runs/`, or one of its checkpoints) and the step to take.

    Raises `ConfigError` C024 if there is no such run.
    """
    place = Path(path)
    if place.parent.name == "checkpoints" and place.name.isdigit():
        place, step = place.parent.parent, place.name
    for candidate in (place, Path("runs") / place):
        if (candidate / "config.json").is_file():
            return RunFolder(candidate), step
    there = sorted(folder.parent.as_posix() for folder in Path("runs").glob("*/config.json"))
    raise ConfigError("C024", f"no run in {path!r}", f"there are: {', '.join(there)}" if there else "train one first")
