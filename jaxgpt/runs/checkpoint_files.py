"""The files of a run's checkpoints: each step's manifest, and what differs from it.

`checkpoints/STEP/manifest.json` has the size and the xxh3-128 of every file of the step, the step, the batch that the
loader reads next, the batches that are left out, the validation loss, and the config and tokens of the run. It is
sealed. It and all files are on the disk before the step's folder gets its name. So a step without a valid manifest is
not a checkpoint, except in runs from before manifests. Nothing here loads JAX.
"""

import math
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from jaxgpt import _loader
from jaxgpt.errors import JaxgptError
from jaxgpt.utils.files import read_json, read_text, sync, write_text
from jaxgpt.utils.sealed import seal, unseal

MANIFEST = "manifest.json"
VERSION = 1
THREADS = 4  # that read the files of a checkpoint: they hash about 10 GB/s from the page cache


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is: `files` has the size and the xxh3-128 of each file, by its path in the step's folder.

    `val_loss` is None if the state was not evaluated. `config` and `tokens` identify what the run trains, and on what.
    `loader_step` is the batch that the next step reads, `skipped_batches` are those that rewinds have left out.
    """

    step: int
    loader_step: int
    files: dict[str, tuple[int, str]]
    val_loss: float | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    skipped_batches: list[int] = field(default_factory=list)
    version: int = VERSION

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a step's folder. Raises `OSError` if there is none, `ValueError` if it is damaged."""
        values = unseal(read_text(folder / MANIFEST))
        if values.get("version") != VERSION:
            raise ValueError(f"its version {values.get('version')} is not {VERSION}")
        values["files"] = {name: (size, checksum) for name, (size, checksum) in values["files"].items()}
        return cls(**values)

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def write_manifest(folder: Path, step: int, val_loss: float | None, identity: Mapping[str, Any]) -> None:
    """Syncs every file and folder of the step in `folder`, and writes its manifest.

    `identity` has the `config` and the `tokens` of the run, and may have the `skipped_batches` and the `loader_step`.
    """
    paths = sorted(folder.rglob("*"))
    files = {str(path.relative_to(folder)): _measure(path) for path in paths if path.is_file()}
    for path in paths:
        sync(path)
    manifest = Manifest(step=step, val_loss=val_loss, files=files, **{"loader_step": step, **identity})
    write_text(folder / MANIFEST, seal(asdict(manifest)))
    sync(folder)


def steps_in(folder: Path) -> list[int]:
    """The steps that have a folder, ascending, whether valid or not."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir() and path.name.isdecimal()]
    return sorted(int(name) for name in names if str(int(name)) == name)


def find_damage(folder: Path) -> str:
    """What is wrong with the checkpoint in `folder`, in a few words; empty if every byte is what was saved."""
    if damage := find_manifest_damage(folder):
        return damage
    with ThreadPoolExecutor(THREADS) as threads:
        entries = Manifest.read(folder).files.items()
        problems = threads.map(lambda entry: _file_damage(folder, entry[0], *entry[1]), entries)
        return next(filter(None, problems), "")


def find_manifest_damage(folder: Path) -> str:
    """What is wrong with the manifest of the checkpoint in `folder`; empty if it is what was saved."""
    try:
        manifest = Manifest.read(folder)
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} is damaged: {error}"
    return "" if str(manifest.step) == folder.name else f"it is the checkpoint of step {manifest.step}"


def has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def read_val_loss(folder: Path) -> float:
    """The validation loss of the checkpoint in `folder`; infinite if it has none that can be read."""
    try:
        loss = Manifest.read(folder).val_loss if has_manifest(folder) else _val_loss_before_manifests(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return math.inf
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


def move_to_quarantine(folder: Path, quarantine: Path) -> Path:
    """Moves a step's folder into `quarantine` under a name that is free there, and returns the new path."""
    quarantine.mkdir(exist_ok=True)
    names = [folder.name, *(f"{folder.name}-{number}" for number in range(2, 10_000))]
    target = next(quarantine / name for name in names if not (quarantine / name).exists())
    folder.rename(target)
    sync(folder.parent)
    return target


def delete(folder: Path) -> None:
    """Deletes a step's folder, which loses its name first: an interruption leaves no partial checkpoint."""
    doomed = folder.with_name(f".{folder.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _measure(path: Path) -> tuple[int, str]:
    return path.stat().st_size, _loader.hash_file(path)


def _file_damage(folder: Path, name: str, size: int, checksum: str) -> str:
    """What differs in a file of the manifest; empty if nothing does."""
    path = folder / name
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"{name} has {actual:,} bytes instead of {size:,}"
        return "" if _loader.hash_file(path) == checksum else f"{name} has changed"
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, JaxgptError) as error:
        return f"{name} cannot be read: {getattr(error, 'message', error)}"


def _val_loss_before_manifests(folder: Path) -> Any:
    return read_json(folder / "metrics" / "metrics")["val_loss"]
