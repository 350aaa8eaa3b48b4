"""A run's folder: its files, the config and data that it belongs to, and its lock.

config.json      the config that the run was started with; resume, sample and evaluate read it
tokenizer.json   the tokenizer
data.json        identifies the tokens, and the bytes of the two files above
plan.json        the plan from before the first step
log.jsonl, checkpoints/, tensorboard/
quarantine/      checkpoints that are damaged
report.html      the diagnosis from the end of the run; backtests.jsonl its backtests
"""

import json
import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxgpt import _loader
from jaxgpt.config import Config
from jaxgpt.errors import CheckpointError, ConfigError, JaxgptError, StorageError, did_you_mean
from jaxgpt.runs.checkpoint_files import Manifest, has_manifest, steps_in
from jaxgpt.runs.log import STEP_KINDS, completed_saves, read_log
from jaxgpt.utils.files import read_json, read_text, sync, write_text
from jaxgpt.utils.lock import LockedError, lock_file
from jaxgpt.utils.sealed import CHECKSUM, seal, unseal

if TYPE_CHECKING:
    from jaxgpt.data.tokenizer import Tokenizer  # its library takes a third of a second to load

# Fields that may change when a run is resumed: they change what is shown or where it runs, not what is computed.
# `model.loss_chunk` and `mesh` can change rounding: only with the same values is the resumed run bitwise identical.
RESUMABLE_FIELDS = {
    "data.path",  # the tokens themselves are compared
    "data.corpus",  # only plans and forecasts read it
    "data.unique_tokens",
    "data.sources",  # only preparation reads it
    "data.tokenizer",
    "data.train_tokenizer",
    "data.val_tokens",
    "data.prefetch_buffers",
    "data.threads",
    "model.loss_chunk",
    "mesh.device",
    "mesh.data_parallel",
    "mesh.fsdp",
    "mesh.compiler_options",
    "run.name",
    "run.export",
    "run.profile",
    "run.dir",
    "run.log_every",
    "run.eval_every",
    "run.save_every",
    "run.keep_latest",
    "run.keep_best",
    "run.keep_every",
    "run.trackers",
    "run.watchdog",
    "run.on_nonfinite",
    "run.early_stop",
    "run.sample_prompt",
    "run.sample_tokens",
    "run.sample_temperature",
}

# These and `RESUMABLE_FIELDS` may differ between programs for the same training step, which `train --tune` chooses.
PROGRAM = RESUMABLE_FIELDS | {"data.micro_batch", "data.accum", "model.remat", "model.attention"}

# Values of data.json that do not identify tokens.
FILES = "files"  # by name, the xxh3-128 that the file may have: before and after it was written last
MANIFESTS_FROM = "manifests_from"  # the step from which on every checkpoint has a manifest
# What a network computes from its parameters depends on these properties of its config.
NETWORK = ["architecture", "n_layer", "n_head", "kv_heads", "n_embd", "head_size", "inner", "bias", "activation"]
NETWORK += ["tie_embeddings", "epsilon"]
NEW_RUN = "start a new run (--run.name NEW)"
PUT_BACK = f"put back a copy of the file, or {NEW_RUN}"


class RunFolder:
    """The folder `path` of one run. Of its methods, only `lock` and `write_identity` write to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.data_file = path / "data.json"
        self.tokenizer_file = path / "tokenizer.json"
        self.lock_file = path / ".lock"
        self.log_file = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self.quarantine = path / "quarantine"
        self.tensorboard = path / "tensorboard"
        self.profile = path / "profile"
        self.report_file = path / "report.html"
        self.backtests_file = path / "backtests.jsonl"

    @classmethod
    def from_config(cls, config: Config) -> "RunFolder":
        """The folder of the run that `config` describes."""
        return cls(Path(config.run.dir) / config.run.name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder and locks it for this process.

        Raises `StorageError` S001 if another process holds the lock, S002 if the folder cannot be written.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_file(self.lock_file))
            except LockedError as error:
                message = f"'{self.path}' is in use by {error.holder}"
                raise StorageError("S001", message, "wait for it, or --run.name NEW") from error
            except OSError as error:
                raise self._not_writable(error.strerror or str(error)) from error
            yield

    def config(self) -> Config:
        """The config that the run was started with. Raises `CheckpointError` K005 if it cannot be read."""
        values = self._read_json(self.config_file)
        try:
            return Config.from_dict(values)
        except ConfigError as error:
            raise CheckpointError("K005", f"{self.config_file}: {error.message}", error.help) from error
        except (AttributeError, TypeError) as error:
            raise CheckpointError("K005", f"{self.config_file} does not hold a config: {error}", PUT_BACK) from error

    def check_writable(self) -> None:
        """Raises `StorageError` S002 if the folder cannot be made or written; writes nothing."""
        folder = self.path.absolute()
        try:
            existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        except OSError as error:  # a name that is too long
            raise self._not_writable(error.strerror or str(error)) from error
        if self.log_file.is_dir():
            raise self._not_writable(f"'{self.log_file}' is a folder")
        if not existing.is_dir():
            raise self._not_writable(f"'{existing}' is a file")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise self._not_writable(f"'{existing}' is read-only")

    def _not_writable(self, reason: str) -> StorageError:
        message = f"'{self.path}' cannot be written: {reason}"
        return StorageError("S002", message, "choose another --run.dir or --run.name")

    def check_config(self, config: Config) -> None:
        """Raises `CheckpointError` K001 if the run was started with a config that trains something else."""
        if not self.config_file.exists():
            self.check_new()
            return
        self.check_files()
        own = self.config()
        changed = changed_fields(own, config)
        if changed:
            message = f"'{self.path}' was started with another config: {', '.join(changed)}"
            raise CheckpointError("K001", message, self._help_for_config(own, config))

    def _help_for_config(self, own: Config, config: Config) -> str:
        if own.tokens_per_step == config.tokens_per_step and not changed_fields(own, config, PROGRAM):
            return f"add --tune to resume it with its own program for the same step, or {NEW_RUN}"
        return f"{NEW_RUN}, or fork this one (--run.name NEW --fork {self.path})"

    def check_new(self) -> None:
        """Raises `CheckpointError` K005 if a run without `config.json` has a log or checkpoints nevertheless."""
        traces = [file.name for file in (self.log_file, self.checkpoints) if file.is_file() or steps_in(file)]
        if traces:
            message = f"'{self.path}' has {' and '.join(traces)}, but no {self.config_file.name}"
            raise CheckpointError("K005", message, f"put the file back, or {NEW_RUN}")

    def check_files(self) -> None:
        """Raises `CheckpointError` K005 if `config.json` or `tokenizer.json` is not as the run has written it.

        Runs from before their checksums were kept in `data.json` pass.
        """
        for name, checksums in self._identity().get(FILES, {}).items():
            path = self.path / name
            if not path.is_file():
                raise CheckpointError("K005", f"'{self.path}' has no {name}", f"put the file back, or {NEW_RUN}")
            if _loader.hash_file(path) not in checksums:
                message = f"{path} is damaged: it is not what the run has written, according to {self.data_file.name}"
                raise CheckpointError("K005", message, PUT_BACK)

    def check_manifest(self, manifest: Manifest) -> None:
        """Raises `CheckpointError` K005 if the run's config or tokens are not those of a checkpoint with `manifest`."""
        tokens = self._identity()
        changed = changed_fields(Config.from_dict(manifest.config), self.config())
        changed += [f"{name} {old} → {tokens.get(name)}" for name, old in _compared(manifest.tokens, tokens)]
        if changed:
            message = f"'{self.path}' is not the run of its checkpoint {manifest.step}: {', '.join(changed)}"
            raise CheckpointError("K005", message, f"put back the run's own files, or {NEW_RUN}")

    def check_checkpoints_exist(self) -> None:
        """Raises `CheckpointError` K003 if the run has no checkpoint, though its log shows that one was saved."""
        records = read_log(self.log_file) if self.log_file.is_file() else []
        saved = completed_saves(records)
        if saved and not steps_in(self.checkpoints):
            message = f"{self.checkpoints} has no valid checkpoint, but the log has one of step {saved[-1]}"
            raise CheckpointError("K003", message, f"put the checkpoints back, or {NEW_RUN}")

    def log_problem(self) -> str:
        """Why the log cannot be all that the run has written, in a few words; empty if it can."""
        newest = max(steps_in(self.checkpoints), default=0)
        records = read_log(self.log_file) if self.log_file.is_file() else []
        for record in records:
            if record.get("kind") == "start" and (foreign := self.foreign_fields(record.get("config"))):
                return f"it is the log of another run: {', '.join(foreign)}"
        known = [record for record in records if record.get("kind") in STEP_KINDS]
        done = [record["step"] + (record["kind"] == "step") for record in known]
        return f"it has no record of step {newest - 1:,}" if max(done, default=0) < newest else ""

    def foreign_fields(self, values: Any) -> list[str]:
        """The fields in which `values`, the config of a file in this folder, differ from the run's own config.

        Empty also if they are no config of this version.
        """
        try:
            found = Config.from_dict(values)
            own = self.config()
        except (JaxgptError, AttributeError, TypeError):
            return []
        changes = changed_fields(own, found)
        return [change for change in changes if " auto → " not in change]  # a plan has these resolved

    def is_old_checkpoint(self, step: int) -> bool:
        """Whether the checkpoint is from before manifests: a run knows from which step on it has written them."""
        manifests_from = self._identity().get(MANIFESTS_FROM) if self.config_file.exists() else None
        is_before = manifests_from is None or step < manifests_from
        return is_before and not has_manifest(self.checkpoints / str(step))

    def check_tokens(self, tokens: dict[str, Any]) -> None:
        """Raises `CheckpointError` K002 if the run was started on other tokens than those that `tokens` identifies."""
        if not self.config_file.exists():
            return
        if "tokenizer_sha256" in self._identity():
            self.check_tokenizer(tokens)  # its message names both
        for name, old in _compared(self._identity(), tokens):
            message = f"'{self.path}' was started on other data: {name} {old} → {tokens.get(name)}"
            raise CheckpointError("K002", message, f"point --data.path at the run's data, or {NEW_RUN}")

    def check_unread_tokens(self, tokens: dict[str, Any]) -> None:
        """`check_tokens` of what is known without reading every token. Raises `CheckpointError` K002."""
        read = {name: value for name, value in self._identity().items() if name not in tokens}
        try:
            self.check_tokens({**read, **tokens})
        except CheckpointError as error:
            raise error.replace(help="put the run's data back, or --data DIR evaluates on other tokens") from error

    def has_same_batches(self, config: Config, tokens: dict[str, Any]) -> bool:
        """Whether the batches of a run of `config` on `tokens` are those of this run."""
        configs = (self.config(), config)
        orders = [(one.model.block_size, one.tokens_per_step, one.data.order, one.data.seed) for one in configs]
        return orders[0] == orders[1] and not _compared(self._identity(), tokens)

    def check_tokenizer(self, tokens: dict[str, Any]) -> None:
        """Raises `CheckpointError` K002 if the run's model was trained with another tokenizer."""
        old = self._identity()
        if old.get("tokenizer_sha256") != tokens["tokenizer_sha256"]:
            raise CheckpointError(
                "K002",
                f"'{self.path}' was started with another tokenizer: "
                f"{_describe_tokenizer(old)} → {_describe_tokenizer(tokens)}",
                "prepare the data with the run's tokenizer.json",
            )

    def check_init_from(self, config: Config) -> None:
        """Raises `ConfigError` C083 if a fork of this run names weights that this run was not started from."""
        own = self.config().run.init_from
        if config.run.init_from not in ("", own):
            message = f"run.init_from = {config.run.init_from!r} and --fork {self.path} name different weights"
            help = f"leave out --run.init-from to continue from '{self.path}', or leave out --fork"
            raise ConfigError("C083", message, help)

    def check_model(self, config: Config) -> None:
        """Raises `CheckpointError` K004 if the run's network is another function of its parameters than `config`'s.

        A longer context may come with another base of RoPE.
        """
        own = self.config().model
        names = [*NETWORK, "rope_theta"] if own.block_size == config.model.block_size else NETWORK
        for name in names:
            old, new = getattr(own, name), getattr(config.model, name)
            if old != new:
                message = f"the model of '{self.path}' has {name} {old}; the config has {new}"
                raise CheckpointError("K004", message, "fork with the model of that run")

    def write_identity(self, config: Config, tokens: dict[str, Any], tokenizer: "Tokenizer") -> None:
        """Writes the tokenizer, what identifies the tokens, and the config, each file atomically, the config last.

        What `data.json` says of the config is true before and after the config is written.
        """
        if not self.tokenizer_file.exists():
            temporary = self.tokenizer_file.with_name(".tokenizer.json.tmp")
            tokenizer.save(temporary)
            sync(temporary)
            temporary.replace(self.tokenizer_file)
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        checksums = [_loader.hash_bytes(text.encode())]
        manifests_from = max(steps_in(self.checkpoints), default=-1) + 1
        if self.config_file.exists():
            checksums.append(_loader.hash_file(self.config_file))
            manifests_from = self._identity().get(MANIFESTS_FROM, manifests_from)
        files = {self.config_file.name: checksums, self.tokenizer_file.name: [_loader.hash_file(self.tokenizer_file)]}
        write_text(self.data_file, seal({**tokens, FILES: files, MANIFESTS_FROM: manifests_from}))
        write_text(self.config_file, text)
        sync(self.path)

    def _identity(self) -> dict[str, Any]:
        """The values of `data.json`. Raises `CheckpointError` K005 if it is damaged."""
        values = self._read_json(self.data_file)
        if CHECKSUM not in values and FILES not in values:
            return values  # as older versions wrote it
        try:
            return unseal(read_text(self.data_file))
        except ValueError as error:
            message = f"{self.data_file} is damaged: {error}"
            raise CheckpointError("K005", message, PUT_BACK) from error

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            values = read_json(path)
        except FileNotFoundError as error:
            message = f"'{self.path}' is not a run folder: it has no {path.name}"
            raise CheckpointError("K005", message, PUT_BACK) from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError("K005", f"{path} cannot be read: {error}", PUT_BACK) from error
        if not isinstance(values, dict):
            raise CheckpointError("K005", f"{path} does not hold a JSON object", PUT_BACK)
        return values


def changed_fields(old: Config, new: Config, ignored: AbstractSet[str] = RESUMABLE_FIELDS) -> list[str]:
    """`section.field OLD → NEW` for each field that differs, but for `ignored`: those that may change at a resume."""
    old_values = old.to_dict()
    new_values = new.to_dict()
    return [
        f"{section}.{name} {value} → {new_values[section][name]}"
        for section, values in old_values.items()
        for name, value in values.items()
        if value != new_values[section][name] and f"{section}.{name}" not in ignored
    ]


def _compared(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any]]:
    """What identifies the tokens in `old` and differs in `new`, by name."""
    ignored = ("tokenizer", FILES, MANIFESTS_FROM)  # the tokenizer's sha256 is compared: its name may be a path
    return [(name, value) for name, value in old.items() if name not in ignored and value != new.get(name)]


class CheckpointRef(NamedTuple):
    """A checkpoint of a run: its step, "latest" or "best"."""

    run: RunFolder
    step: str = "latest"


def find_run(name: str, step: str = "latest") -> CheckpointRef:
    """The run `name` and its checkpoint `step`, or the checkpoint that `name` is the path of.

    `name` is the path of a run folder or of one of its checkpoints, or a run's name under `runs/`. Raises `ConfigError`
    C024 if there is no such run.
    """
    path = Path(name)
    if path.parent.name == "checkpoints" and path.name.isdigit():
        step = path.name
        path = path.parent.parent
    for candidate in (path, Path("runs") / path):
        if (candidate / "config.json").is_file():
            return CheckpointRef(RunFolder(candidate), step)
        if path.name:
            RunFolder(candidate).check_new()
    names = sorted(file.parent.name for file in Path("runs").glob("*/config.json"))
    help = f"{did_you_mean(path.name, names)}there are: {', '.join(names)}" if names else "train one first"
    raise ConfigError("C024", f"no run in {name!r}", help)


def _describe_tokenizer(tokens: dict[str, Any]) -> str:
    return f"{tokens.get('tokenizer')} ({str(tokens.get('tokenizer_sha256'))[:12]})"
