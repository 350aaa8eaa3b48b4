"""A new dataset without the duplicates: the documents that an audit keeps, in their order, whole or not at all."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import jaxgpt
from jaxgpt._loader import SplitWriter
from jaxgpt.audit.analysis import Analysis, AuditTarget
from jaxgpt.audit.record import METHOD
from jaxgpt.data import manifest
from jaxgpt.data.dataset import Split, translate_loader_errors
from jaxgpt.data.manifest import Manifest, PrepareSettings, SplitEntry, TokenizerEntry
from jaxgpt.errors import ConfigError, DataError, StorageError
from jaxgpt.prepare.staging import check_disk_space, check_target, staging_dir
from jaxgpt.utils.progress import ProgressReporter

SHARD_TOKENS = 100_000_000
WINDOW = 1 << 22  # tokens that are read at a time

HOW = (
    "without exact duplicates and near-duplicates (Jaccard >= 0.8 on 5-token shingles); "
    "kept is the first document of each cluster, one of validation before one of train"
)


def derivation(subject: AuditTarget) -> str:
    """What the new manifest says of its origin: the same for the same documents."""
    eot = "" if subject.eot is None else f", end of text {subject.eot}"
    return f"the tokens {subject.data.fingerprint}{eot}, {HOW} (method {METHOD})"


def check(subject: AuditTarget, out: Path) -> Manifest | None:
    """The manifest of `out` if it is this very dataset already, None if it can be made.

    Raises `ConfigError` C032 if it is the audited folder, `StorageError` S002 or S012 if it cannot be made.
    """
    if out.resolve() == subject.data.folder.resolve():
        raise ConfigError("C032", f"--dedup '{out}' is the audited folder itself", "name a new folder")
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        found = manifest.read_manifest(out) if (out / manifest.FILE_NAME).is_file() else None
        if found and found.derived == derivation(subject):
            return found
        what = f"'{out}' {'holds another dataset' if found else 'is there already'}"
        raise StorageError("S012", what, "name a new folder, or remove it yourself")
    check_target(out)
    return None


def write(analysis: Analysis, out: Path, progress: ProgressReporter) -> Manifest:
    """Makes the folder `out`. `DataError` D031 if nothing of train would remain."""
    subject, kept = analysis.subject, analysis.kept()
    data = subject.data
    if not len(kept[0]):
        what = "every document of train also stands in validation: nothing to train on would remain"
        raise DataError("D031", what, "split the data anew: python -m jaxgpt.prepare … --val-tokens N")
    dtype = np.dtype(data.train.shards.dtype)
    shard_tokens = data.manifest.settings.shard_tokens if data.manifest else SHARD_TOKENS
    with staging_dir(out) as site:
        folder = site.folder
        check_disk_space(folder, out, sum(int((places[:, 1] - places[:, 0]).sum()) for places in kept) * dtype.itemsize)
        splits = {}
        for (name, split), places in zip(subject.splits(), kept):
            with translate_loader_errors():
                writer = SplitWriter(folder, name, dtype.name, shard_tokens=shard_tokens, end_of_text=subject.eot)
                _copy(split, places, writer, _sizes(subject, split), progress)
                splits[name] = SplitEntry.from_written(writer.finish())
        made = _manifest(subject, splits, dtype, shard_tokens)
        data.tokenizer.save(folder / made.tokenizer.file)
        made.write(folder)
    return made


def _copy(
    split: Split, places: npt.NDArray[Any], writer: SplitWriter, sizes: "Sizes", progress: ProgressReporter
) -> None:
    progress.start_stage("writing", int((places[:, 1] - places[:, 0]).sum()) * sizes.itemsize)
    for group in _groups(places):
        start = int(group[0, 0])
        ids = split.ids(start, int(group[-1, 1]) - start)
        for begin, end in (group - start).tolist():
            document = ids[begin:end]
            writer.add(sizes.of(document), document.data)
        tokens = int((group[:, 1] - group[:, 0]).sum())
        progress.advance(len(group), tokens * sizes.itemsize, tokens)


def _groups(places: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Runs of documents that are read together."""
    start = 0
    while start < len(places):
        end = int(np.searchsorted(places[:, 1], places[start, 0] + WINDOW, "right"))
        end = max(end, start + 1)
        yield places[start:end]
        start = end


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of text of documents: exact for byte-level tokenizers, by the split's mean for others."""

    lengths: npt.NDArray[Any] | None
    mean: float
    itemsize: int

    def of(self, ids: npt.NDArray[Any]) -> int:
        if self.lengths is None:
            return round(self.mean * len(ids))
        return int(self.lengths[ids[ids < len(self.lengths)]].sum())


def _sizes(subject: AuditTarget, split: Split) -> Sizes:
    itemsize = np.dtype(split.shards.dtype).itemsize
    return Sizes(subject.token_bytes, (split.bytes or 0) / max(split.tokens, 1), itemsize)


def _manifest(
    subject: AuditTarget, splits: dict[str, manifest.SplitEntry], dtype: "np.dtype[Any]", shard: int
) -> Manifest:
    data = subject.data
    tool, derived = f"jaxgpt {jaxgpt.__version__}", derivation(subject)
    position = "none" if subject.eot is None else "appended"
    if data.manifest:
        entry = dataclasses.replace(
            data.manifest.tokenizer, eot=data.manifest.tokenizer.eot if subject.eot is None else subject.eot
        )
        settings = dataclasses.replace(data.manifest.settings, layout="shards")
        return dataclasses.replace(
            data.manifest,
            tool=tool,
            tokenizer=entry,
            splits=splits,
            settings=settings,
            eot_position=position,
            derived=derived,
        )
    tokenizer = data.tokenizer
    return Manifest(
        tool=tool,
        tokenizer=TokenizerEntry(
            name=tokenizer.name,
            fingerprint=tokenizer.fingerprint,
            file="tokenizer.json",
            vocab_size=tokenizer.vocab_size,
            eot=tokenizer.eot if subject.eot is None else subject.eot,
        ),
        eot_position=position,
        dtype=dtype.name,
        splits=splits,
        settings=PrepareSettings(train_tokenizer=0, val_tokens=0, text_column=None, shard_tokens=shard),
        sources=(),
        derived=derived,
    )


def described(out: Path, made: Manifest) -> str:
    """What was made, on one line for each split."""
    lines = [f"{out}: without duplicates"]
    for name, split in made.splits.items():
        lines.append(f"  {name:5}  {split.tokens:,} tokens, {split.documents:,} documents")
    return "\n".join(lines)
