"""Writes a new dataset without duplicates: the documents that an audit keeps, in their order."""

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
READ_TOKENS = 1 << 22  # tokens that are read at a time

DERIVATION = (
    "without exact duplicates and near-duplicates (Jaccard >= 0.8 on 5-token shingles); "
    "kept is the first document of each cluster, one of validation before one of train"
)


def derivation(target: AuditTarget) -> str:
    """How the new tokens are made, for their manifest; identical for identical documents."""
    eot = "" if target.eot is None else f", end of text {target.eot}"
    return f"the tokens {target.dataset.fingerprint}{eot}, {DERIVATION} (method {METHOD})"


def check(target: AuditTarget, out: Path) -> Manifest | None:
    """Returns the manifest of `out` if it already is this dataset, None if it can be created.

    Raises `ConfigError` C032 if it is the audited folder, `StorageError` S002 or S012 if it cannot be created.
    """
    if out.resolve() == target.dataset.folder.resolve():
        raise ConfigError("C032", f"--dedup '{out}' is the audited folder itself", "name a new folder")
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        existing = manifest.read_manifest(out) if (out / manifest.FILE_NAME).is_file() else None
        if existing and existing.derived == derivation(target):
            return existing
        reason = "contains another dataset" if existing else "exists already"
        raise StorageError("S012", f"'{out}' {reason}", "name a new folder, or remove it yourself")
    check_target(out)
    return None


def write(analysis: Analysis, out: Path, progress: ProgressReporter) -> Manifest:
    """Creates the folder `out`. Raises `DataError` D031 if nothing of train would remain."""
    target = analysis.target
    dataset = target.dataset
    kept = analysis.kept_documents()
    if not len(kept[0]):
        message = "every document of train is also in validation: nothing to train on would remain"
        help = "split the documents: python -m jaxgpt.prepare SOURCE --out DIR --val-tokens N"
        raise DataError("D031", message, help)
    shard_tokens = dataset.manifest.settings.shard_tokens if dataset.manifest else SHARD_TOKENS
    dtype = dataset.train.dtype
    with staging_dir(out) as staging:
        check_disk_space(staging.folder, out, sum(_total_tokens(documents) for documents in kept) * dtype.itemsize)
        splits = {}
        for (name, split), documents in zip(target.splits(), kept):
            with translate_loader_errors():
                writer = SplitWriter(
                    staging.folder, name, dtype.name, shard_tokens=shard_tokens, end_of_text=target.eot
                )
                _copy(target, split, documents, writer, progress)
                splits[name] = SplitEntry.from_written(writer.finish())
        new = _manifest(target, splits, dtype, shard_tokens)
        dataset.tokenizer.save(staging.folder / new.tokenizer.file)
        new.write(staging.folder)
    return new


def _copy(
    target: AuditTarget, split: Split, documents: npt.NDArray[Any], writer: SplitWriter, progress: ProgressReporter
) -> None:
    """Writes the `documents` of a split, given by first token and end in an array of shape (documents, 2)."""
    itemsize = split.dtype.itemsize
    token_bytes = target.token_bytes
    bytes_per_token = (split.bytes or 0) / max(split.tokens, 1)
    progress.start_stage("writing", _total_tokens(documents) * itemsize)
    for group in _groups(documents):
        start = int(group[0, 0])
        ids = split.ids(start, int(group[-1, 1]) - start)
        for begin, end in (group - start).tolist():
            document = ids[begin:end]
            writer.add(_text_bytes(document, token_bytes, bytes_per_token), document.data)
        tokens = _total_tokens(group)
        progress.advance(len(group), tokens * itemsize, tokens)


def _text_bytes(ids: npt.NDArray[Any], token_bytes: npt.NDArray[Any] | None, bytes_per_token: float) -> int:
    """Bytes of the text of a document: exact for byte-level tokenizers, where ids outside the vocabulary have none."""
    if token_bytes is None:
        return round(bytes_per_token * len(ids))
    return int(token_bytes[ids[ids < len(token_bytes)]].sum())


def _total_tokens(documents: npt.NDArray[Any]) -> int:
    return int((documents[:, 1] - documents[:, 0]).sum())


def _groups(documents: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yields consecutive documents that fit into one read."""
    start = 0
    while start < len(documents):
        end = int(np.searchsorted(documents[:, 1], documents[start, 0] + READ_TOKENS, "right"))
        end = max(end, start + 1)
        yield documents[start:end]
        start = end


def _manifest(
    target: AuditTarget, splits: dict[str, manifest.SplitEntry], dtype: "np.dtype[Any]", shard_tokens: int
) -> Manifest:
    """The audited folder's manifest with the new splits, or a new manifest if it has none."""
    old = target.dataset.manifest
    tokenizer = target.dataset.tokenizer
    changes: dict[str, Any] = {
        "tool": f"jaxgpt {jaxgpt.__version__}",
        "splits": splits,
        "eot_position": "none" if target.eot is None else "appended",
        "derived": derivation(target),
    }
    if old:
        eot = old.tokenizer.eot if target.eot is None else target.eot
        return dataclasses.replace(
            old,
            tokenizer=dataclasses.replace(old.tokenizer, eot=eot),
            settings=dataclasses.replace(old.settings, layout="shards"),
            **changes,
        )
    return Manifest(
        tokenizer=TokenizerEntry.from_tokenizer(tokenizer, tokenizer.eot if target.eot is None else target.eot),
        dtype=dtype.name,
        settings=PrepareSettings(train_tokenizer=0, val_tokens=0, text_column=None, shard_tokens=shard_tokens),
        sources=(),
        **changes,
    )
