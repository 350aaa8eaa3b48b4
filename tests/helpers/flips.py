"""Single bits that change in the files of a run or of a dataset, and whether what reads the file notices."""

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from helpers.files import files_of, flip_bit
from jaxgpt import logs
from jaxgpt.config import Config
from jaxgpt.data.dataset import open_folder
from jaxgpt.errors import JaxgptError
from jaxgpt.runs.checkpoint_files import find_damage
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import completed_saves, read_log, read_stop_reason
from jaxgpt.runs.rewinds import Rewinds
from jaxgpt.training.panel import LivePanel
from jaxgpt.training.session import _earlier_records

Detect = Callable[[], bool]


@dataclass
class Flips:
    """Flips by kind of file, and those that nothing noticed or that raised something that is no `JaxgptError`."""

    by_kind: dict[str, int] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())

    def add(self, kind: str, path: Path, bit: int, detect: Detect) -> None:
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        flip_bit(path, bit)
        try:
            if not detect():
                self.silent.append(f"{path}: bit {bit}")
        except Exception as error:
            self.crashes.append(f"{path}: bit {bit}: {error!r}")
        finally:
            flip_bit(path, bit)


@dataclass(frozen=True)
class Target:
    """A file, its kind, and what reads it: True if the damage is detected, or costs no more than it may."""

    kind: str
    path: Path
    detect: Detect

    @property
    def size(self) -> int:
        return self.path.stat().st_size


def refuses(action: Callable[[], Any]) -> bool:
    with suppress(JaxgptError):
        action()
        return False
    return True


def run_targets(folder: RunFolder) -> list[Target]:
    """The files of the newest checkpoint of a run, its own files, and its log."""
    newest = max(folder.checkpoints.iterdir(), key=lambda path: int(path.name) if path.name.isdecimal() else -1)
    targets = [Target(_kind(path), path, lambda: bool(find_damage(newest))) for path in files_of(newest)]
    for path in (folder.config_file, folder.data_file, folder.tokenizer_file):
        targets.append(Target(path.name, path, lambda: refuses(folder.check_files)))
    log = folder.log_file
    undamaged = read_log(log)
    return [*targets, Target(log.name, log, lambda: _costs_a_line(folder, undamaged))]


def dataset_targets(folder: Path) -> list[Target]:
    """The files of a folder of tokens; `train` compares the checksum of the tokens with that of the run."""
    expected = _identity(folder)
    names = ("manifest.json", "tokenizer.json")
    paths = [*folder.glob("*.bin"), *(folder / name for name in names if (folder / name).exists())]
    return [
        Target(f"dataset {path.name if path.name in names else 'shard'}", path, lambda: _differs(folder, expected))
        for path in sorted(paths)
    ]


def flip_bits(targets: list[Target], source: random.Random, count: int) -> Flips:
    """Flips one bit in each file, and the other bits at random over all bytes; each is flipped back."""
    flips = Flips()
    sizes = [target.size for target in targets]
    for target in [*targets, *source.choices(targets, sizes, k=max(0, count - len(targets)))]:
        flips.add(target.kind, target.path, source.randrange(8 * target.size), target.detect)
    return flips


def _kind(path: Path) -> str:
    return "checkpoint manifest.json" if path.name == "manifest.json" else "checkpoint file"


def _identity(folder: Path) -> Mapping[str, Any]:
    dataset = open_folder(folder)
    return dataset.identity | {"tokens_xxh3_128": dataset.verify()}


def _differs(folder: Path, expected: Mapping[str, Any]) -> bool:
    try:
        return _identity(folder) != expected
    except JaxgptError:
        return True


def _costs_a_line(folder: RunFolder, undamaged: list[dict[str, Any]]) -> bool:
    """Whether all that reads a log does so, and no more than two lines changed: a line end may be lost."""
    records = read_log(folder.log_file)
    completed_saves(records)
    read_stop_reason(folder.log_file)
    Rewinds.read(folder, 4)
    logs.read(str(folder.log_file))
    run: Any = SimpleNamespace(folder=folder, start_step=20)
    LivePanel(Config(), Console()).restore(_earlier_records(run))
    same = sum(record in undamaged for record in records)
    return len(undamaged) - same <= 2 and len(records) <= len(undamaged) + 1
